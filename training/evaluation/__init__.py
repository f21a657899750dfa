"""How good trained networks are: the papers' retrieval metrics, the confidence of the dense one."""
