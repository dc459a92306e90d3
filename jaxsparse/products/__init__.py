"""What multiplies by packed weights: `sparse_dot`, and `sparsify` for whole models."""
