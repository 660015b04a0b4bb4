"""Weights that others published: files read and written, names and layouts translated."""
