"""Drifting fields: V of one set of samples, one file a field, and the table that names them."""
