"""Lays out places: roads, ground, lots, streets and what stands on them, from a seed."""
