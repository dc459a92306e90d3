"""n of every m consecutive inputs."""

import dataclasses

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Int, UInt

from jaxsparse.kernels.layouts.base import Layout, dot, like, module_of


@dataclasses.dataclass(frozen=True)
class NMLayout(Layout):
    """n of every m consecutive inputs, chosen per `columns` consecutive outputs.

    Row r = g*n + i of the values holds the i-th weight of group g. Its input is
    g*m + position. A position takes `bits` = ceil(log2 m) bits, and a word of 32
    holds `per_word` of them: that of row r lies in word r // per_word, its lowest
    bit at bits * (r % per_word).
    """

    n: int
    m: int
    columns: int = 1

    @property
    def bits(self) -> int:
        return max(1, (self.m - 1).bit_length())

    @property
    def per_word(self) -> int:
        return 32 // self.bits

    @property
    def padded(self) -> tuple[int, int]:
        return -(-self.shape[0] // self.m) * self.m, self.shape[1]

    @property
    def values_shape(self) -> tuple[int, int]:
        return self.padded[0] // self.m * self.n, self.shape[1]

    @property
    def index_shapes(self) -> tuple[tuple[int, ...], ...]:
        words = -(-self.values_shape[0] // self.per_word)
        return ((words, -(-self.shape[1] // self.columns)),)

    def encode(
        self, positions: Int[Array | np.ndarray, "R sets"]
    ) -> UInt[Array | np.ndarray, "words sets"]:
        """Words of the positions of R rows of values; NumPy's where they are."""
        xp, (rows, sets) = module_of(positions), positions.shape
        words = -(-rows // self.per_word)
        positions = xp.pad(positions, ((0, words * self.per_word - rows), (0, 0)))
        fields = positions.reshape(words, self.per_word, sets).astype(np.uint32)
        return xp.sum(fields << self._shifts(xp), axis=1, dtype=np.uint32)

    def decode(
        self, words: UInt[Array | np.ndarray, "words sets"]
    ) -> Int[Array | np.ndarray, "R sets"]:
        """Undoes `encode`."""
        fields = (words[:, None] >> self._shifts(module_of(words))) & (2**self.bits - 1)
        found = fields.reshape(len(words) * self.per_word, words.shape[1])
        return found[: self.values_shape[0]].astype(np.int32)

    def positions(self, words: UInt[Array, "words sets"]) -> Int[Array, "R N"]:
        """The place of every value within its group."""
        found = jnp.asarray(self.decode(words))
        if self.columns > 1:
            found = jnp.repeat(found, self.columns, axis=1)[:, : self.shape[1]]
        return found

    def todense(self, values, *index):
        values, found = self._groups(values), self._groups(self.positions(*index))
        place = jnp.arange(self.m, dtype=jnp.int32)[:, None]
        dense = jnp.zeros((values.shape[0], self.m, self.shape[1]), values.dtype)
        for i in range(self.n):
            # Selected, not summed: -0.0 and NaN come back as they were stored.
            dense = jnp.where(found[:, i, None] == place, values[:, i, None], dense)
        return dense.reshape(self.padded)[: self.shape[0]]

    def gather(self, dense, *index):
        dense = jnp.pad(dense, ((0, self.padded[0] - self.shape[0]), (0, 0)))
        group = jnp.arange(self.values_shape[0])[:, None] // self.n * self.m
        return jnp.take_along_axis(dense, group + self.positions(*index), axis=0)

    def take_outputs(self, values, *index, ids):
        [words] = index
        narrow = dataclasses.replace(self, shape=(self.shape[0], ids.size), columns=1)
        return narrow.todense(values[:, ids], words[:, ids // self.columns]).T

    def take_inputs(self, values, *index, ids):
        [words] = index
        stored = (ids // self.m * self.n)[:, None] + jnp.arange(self.n, dtype=ids.dtype)
        shift = (self.bits * (stored % self.per_word)).astype(jnp.uint32)[..., None]
        found = (words[stored // self.per_word] >> shift) & jnp.uint32(2**self.bits - 1)
        found = jnp.repeat(found, self.columns, axis=2)[..., : self.shape[1]]
        kept = found == (ids % self.m).astype(jnp.uint32)[:, None, None]
        # Of n positions one at most is the row's.
        values = jnp.where(kept, values[stored], jnp.zeros((), values.dtype))
        return jnp.sum(values, axis=1, dtype=values.dtype)

    def product(self, x, values, *index, transpose, to):
        if not self._shared:
            return super().product(x, values, *index, transpose=transpose, to=to)
        rows = self._shared_rows(*index)
        if not transpose:
            # Gathered along the first axis: XLA's CPU compiler in jax 0.10 decides how to multiply
            # bfloat16 before it turns x[:, rows] into this, and then cannot.
            return dot(self.reach(x, 0).T[rows], values, (0, 0), to)
        y = dot(x, values, (1, 1), to)
        spread = like(jnp.zeros((x.shape[0], self.padded[0]), to), y, *index)
        return spread.at[:, rows].set(y)[:, : self.shape[0]]

    def sampled(self, x, g, *index, to):
        """Of a dense gradient one position of every group is at hand at a time."""
        x = self.reach(x, 0)
        if self._shared:
            return dot(x[:, self._shared_rows(*index)], g, (0, 0), to)
        found = self._groups(self.positions(*index))
        x = x.reshape(x.shape[0], self.padded[0] // self.m, self.m)

        def place(values, j):
            at_j = lax.dynamic_index_in_dim(x, j, 2, keepdims=False)
            return jnp.where(found == j, dot(at_j, g, (0, 0), to)[:, None], values), None

        zeros = like(jnp.zeros(found.shape, to), x, g, *index)
        values, _ = lax.scan(place, zeros, jnp.arange(self.m, dtype=jnp.int32))
        return values.reshape(self.values_shape)

    @property
    def _shared(self) -> bool:
        """Whether all columns have the same positions: their product is a dense one."""
        return self.columns >= self.shape[1]

    def _shared_rows(self, words):
        group = jnp.arange(self.values_shape[0], dtype=jnp.int32) // self.n
        return group * self.m + self.decode(words)[:, 0]

    def _groups(self, rows):
        return rows.reshape(rows.shape[0] // self.n, self.n, self.shape[1])

    def _shifts(self, xp):
        return xp.arange(self.per_word, dtype=np.uint32)[:, None] * np.uint32(self.bits)
