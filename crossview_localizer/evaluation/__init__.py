"""How far poses are from the truth, as numbers, pictures and a page."""
