"""How accurate single frames are, with controls."""
