"""Sets of images and the networks that turn them into features."""
