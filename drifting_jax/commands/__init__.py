"""What the commands share: flags, errors in a line, and the work of `prepare`."""
