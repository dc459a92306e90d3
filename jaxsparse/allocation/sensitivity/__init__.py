"""How much each layer loses when it alone is pruned, and the sparsities that follow."""
