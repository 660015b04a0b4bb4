"""Tasks to control: a 2-D one of our own, Meta-World, Push-T, and the table of them."""
