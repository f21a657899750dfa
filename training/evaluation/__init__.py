"""Retrieval metrics of the papers."""
