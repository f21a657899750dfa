"""Georeferenced imagery, routes, and the map of satellite embeddings made from them."""
