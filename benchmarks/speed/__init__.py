"""The speed of each step, and how it grows."""
