"""Figures of merit: float64 statistics of samples and of their features."""
