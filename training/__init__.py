"""Commands that train and prepare, and what they share; the package imports none of it."""
