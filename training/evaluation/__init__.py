"""How good trained networks are: the papers' retrieval metrics, the dense confidence."""
