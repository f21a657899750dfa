"""Errors of single frames, with controls."""
