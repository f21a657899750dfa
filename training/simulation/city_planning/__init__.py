"""Lays out cities: streets, ground, buildings and what stands beside them, from a seed."""
