"""2:4 weights for cuSPARSELt, and where its library is looked for."""

import jax.numpy as jnp
import numpy as np

import jaxsparse as js
from jaxsparse import kernels
from jaxsparse.kernels.cusparselt import library


def weight(shape, dtype, n=2, seed=0):
    """A packed weight of small whole numbers, whose products round nowhere."""
    rng = np.random.default_rng(seed)
    groups = rng.random((shape[0] // 4, 4, shape[1])).argsort(1) < n
    dense = np.where(groups.reshape(shape), rng.choice([-2, -1, 1, 2], shape), 0)
    packed = js.pack(jnp.asarray(dense, jnp.float32), js.NM(n, 4))
    return packed.with_values(packed.values.astype(dtype))


def draw(shape, dtype, seed=1):
    return jnp.asarray(np.random.default_rng(seed).integers(-2, 3, shape), dtype)


def forget():
    """Lets the next question look for the library again."""
    for cached in (library._load, library.register, kernels.load):
        cached.cache_clear()
