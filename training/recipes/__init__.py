"""How training batches are drawn for each kind of network."""
