"""Channels in the order under which n:m sparsity keeps most."""
