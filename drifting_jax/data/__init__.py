"""Sources of real samples and the grain pipeline: NumPy in, NumPy out."""
