"""The views of an image that the networks are given, and camera motion from pairs of images."""
