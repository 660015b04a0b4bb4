"""Published weights: reads and writes their files, and converts names and layouts."""
