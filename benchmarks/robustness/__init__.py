"""What the node does in faults and over hours."""
