"""Raw-array kernels, one folder per backend; installed as `jaxsparse.kernels`.

A kernel takes and returns arrays: it knows nothing of rules, masks or optax.
"""
