"""Training: commands at the top with what they share; the installed package imports none of it."""
