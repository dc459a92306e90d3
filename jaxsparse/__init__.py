"""A functional sparsity toolkit for JAX and Flax."""
