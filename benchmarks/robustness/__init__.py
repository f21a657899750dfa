"""The node in faults, and over hours."""
