"""Training programs: assembly, the loop, and the three tasks."""
