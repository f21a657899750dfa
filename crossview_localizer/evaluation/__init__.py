"""How far poses are from the truth, as numbers, figures and a page."""
