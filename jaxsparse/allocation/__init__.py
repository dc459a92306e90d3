"""How sparse each layer is to be: what layers cost, how they take pruning, and the search."""
