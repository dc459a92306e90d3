"""Block-sparse problems with their float64 answers, for kernels that take large blocks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.kernels.layouts import BlockLayout
from tests.packed_cases import assert_close


@dataclasses.dataclass(frozen=True)
class Case:
    """Blocks at random places, one column of them empty, `spare` unused entries last."""

    block: tuple[int, int]
    grid: tuple[int, int]
    rows: int
    dtype: str = "bfloat16"
    spare: int = 0
    density: float = 0.6

    @property
    def kept(self) -> np.ndarray:
        kept = np.random.default_rng(7).random(self.grid) < self.density
        kept[0, 0] = True
        kept[:, -1] = False
        return kept

    @property
    def layout(self) -> BlockLayout:
        shape = (self.grid[0] * self.block[0], self.grid[1] * self.block[1])
        return BlockLayout(shape, self.block, int(self.kept.sum()) + self.spare)

    @property
    def places(self) -> tuple[np.ndarray, np.ndarray]:
        """Block row and column of every entry in use, in the order of storage."""
        cols, rows = np.nonzero(self.kept.T)
        return rows, cols

    @property
    def index(self) -> tuple[jax.Array, jax.Array]:
        rows, _ = self.places
        indptr = np.concatenate([[0], np.cumsum(self.kept.sum(0))])
        return jnp.asarray(indptr, jnp.int32), jnp.asarray(np.pad(rows, (0, self.spare)), jnp.int32)

    def draw(self, shape, seed) -> jax.Array:
        values = np.random.default_rng(seed).standard_normal(shape)
        return jnp.asarray(values, self.dtype)

    @property
    def x(self) -> jax.Array:
        return self.draw((self.rows, self.layout.shape[0]), 1)

    @property
    def g(self) -> jax.Array:
        return self.draw((self.rows, self.layout.shape[1]), 2)

    @property
    def values(self) -> jax.Array:
        values = self.draw(self.layout.values_shape, 3)
        return values.at[self.layout.nnz - self.spare :].set(0)

    @property
    def dense(self) -> np.ndarray:
        dense = np.zeros((*self.grid, *self.block))
        rows, cols = self.places
        dense[rows, cols] = np.asarray(self.values, np.float64)[: len(rows)]
        return dense.transpose(0, 2, 1, 3).reshape(self.layout.shape)

    def check(self, kernels, op: str, out_dtype: str) -> None:
        """Compares one direction ("product", "transposed" or "sampled") with float64."""
        x, g, dense = (np.asarray(a, np.float64) for a in (self.x, self.g, self.dense))
        options = {"layout": self.layout, "out_dtype": jnp.dtype(out_dtype)}
        if op == "sampled":
            found = jax.jit(lambda *a: kernels.sampled(*a, **options))(self.x, self.g, *self.index)
            (down, across), (bk, bn) = self.grid, self.block
            rows, cols = self.places
            full = (x.T @ g).reshape(down, bk, across, bn)
            expected = np.zeros(self.layout.values_shape)
            expected[: len(rows)] = full[rows, :, cols]
        else:
            left, right = (x, dense) if op == "product" else (g, dense.T)
            options["transpose"] = op == "transposed"
            found = jax.jit(lambda *a: kernels.product(*a, **options))(
                self.g if options["transpose"] else self.x, self.values, *self.index
            )
            expected = left @ right
        assert found.dtype == out_dtype
        assert_close(found, expected, out_dtype)


DIRECTIONS = ("product", "transposed", "sampled")
