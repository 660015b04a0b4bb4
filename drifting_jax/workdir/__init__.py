"""Files of a run: checkpoints, metrics, pictures, the lock, signals."""
