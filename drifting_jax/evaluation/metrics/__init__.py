"""Metrics: float64, independent of where features come from."""
