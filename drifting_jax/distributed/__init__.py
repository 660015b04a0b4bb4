"""Devices and processes: meshes, rows of a batch, agreement, collectives."""
