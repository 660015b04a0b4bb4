"""Drifting Models (arXiv 2602.04770) in JAX: one-pass generators trained with a drifting field."""

__version__ = "0.1.0"
