"""Metrics of samples against real data, for toys, small images and large ones."""
