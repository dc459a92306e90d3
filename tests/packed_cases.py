"""The storages, and how to draw a weight for one: shared by every test of packed weights."""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse import kernels
from jaxsparse.packed.base import Packed
from jaxsparse.packed.packing import pack
from jaxsparse.packed.singles import CSR
from jaxsparse.patterns.base import Pattern, Unstructured
from jaxsparse.patterns.groups import Block
from jaxsparse.patterns.nm import NM
from tests import own_storage

RELATIVE_ERROR = {"float32": 1e-5, "bfloat16": 1e-2, "float16": 5e-3, "int8": 1e-5}
IMPLEMENTATIONS = [n for n, state in kernels.implementations().items() if state == "available"]


@dataclasses.dataclass(frozen=True)
class Storage:
    """A pattern to store by, and how to draw a mask which it stores exactly."""

    name: str
    pattern: Pattern
    draw: Callable[..., np.ndarray]
    columns: int | None = 1  # None: all of them
    kind: type[Packed] | None = None  # None: the one that the pattern is stored in unasked

    def mask(self, rng, k, n, density):
        return self.draw(rng, k, n, density)

    def pack(self, weight, mask, dtype=None) -> Packed:
        columns = max(1, weight.shape[-1]) if self.columns is None else self.columns
        return pack(weight, self.pattern, mask, dtype=dtype, columns=columns, storage=self.kind)


def blocks(bk, bn) -> Storage:
    def draw(rng, k, n, density):
        kept = rng.random((-(-k // bk), -(-n // bn))) < density
        return np.kron(kept, np.ones((bk, bn), bool)).astype(bool)[:k, :n]

    return Storage(f"block{bk}x{bn}", Block(bk, bn), draw)


def _nm(n, m, columns=1):
    def draw(rng, k, width, density):
        shared = max(1, width) if columns is None else columns
        scores = rng.random((-(-k // m), m, -(-width // shared)))
        chosen = scores.argsort(1).argsort(1) < n
        chosen &= rng.random(chosen.shape) < min(1, density * 2)
        return np.repeat(chosen.reshape(-(-k // m) * m, chosen.shape[2]), shared, axis=1)[
            :k, :width
        ]

    suffix = "" if columns == 1 else f"v{columns or 'all'}"
    return Storage(f"{n}of{m}{suffix}", NM(n, m), draw, columns)


def _singles(share):
    return lambda rng, k, n, density: rng.random((k, n)) < share * density


STORAGES = [
    blocks(32, 32),
    blocks(4, 16),
    blocks(1, 16),
    blocks(3, 5),
    Storage("bitmap", Unstructured(), _singles(1)),
    Storage("csc", Unstructured(), _singles(0.1)),  # too few for bits to pay
    Storage("csr", Unstructured(), _singles(0.5), kind=CSR),
    _nm(2, 4),
    _nm(1, 4),
    _nm(3, 8),
    _nm(2, 5),
    _nm(2, 4, 4),
    _nm(2, 4, None),
    Storage("own", own_storage.Diagonals(), own_storage.draw),
]
BY_NAME = {storage.name: storage for storage in STORAGES}


def draw(storage, k, n, density, seed=0, dtype="float32"):
    """A packed weight and the dense float64 matrix it stands for."""
    rng = np.random.default_rng(seed)
    mask = storage.mask(rng, k, n, density)
    weight = jnp.asarray(np.where(mask, rng.standard_normal((k, n)), 0), jnp.float32)
    packed = storage.pack(weight, mask, dtype)
    return packed, np.asarray(packed.todense(), np.float64)


def draw_x(rows, k, seed=1, dtype="float32"):
    x = np.random.default_rng(seed).standard_normal((rows, k))
    return jnp.asarray(x, "float32" if dtype == "int8" else dtype)


def assert_close(actual, expected, dtype="float32", scale=None):
    """Relative to the largest magnitude that the sums went through."""
    actual = np.asarray(jax.device_get(actual), np.float64)
    expected = np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    scale = np.max(np.abs(expected), initial=0) if scale is None else scale
    error = np.max(np.abs(actual - expected), initial=0)
    assert error <= RELATIVE_ERROR[dtype] * scale, (error, scale)
