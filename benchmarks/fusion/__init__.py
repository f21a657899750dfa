"""How far the fused pose can be trusted."""
