"""How fast each step is, and how that grows."""
