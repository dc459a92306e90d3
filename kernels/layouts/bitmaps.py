"""Single weights under a bit for every place of the weight."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Int, Shaped, UInt

from jaxsparse.kernels.layouts.base import STRIPS, Layout, dot, like, module_of

CHUNK = 64  # columns of a bitmap whose values have a common start


@dataclasses.dataclass(frozen=True)
class BitmapLayout(Layout):
    """Single weights in strips of rows, ordered by strip, then by column, then by row.

    A strip has 256 rows, or as many as there are, in whole words of 32. `bits`, of
    shape (strips, N, strip / 32), has a bit for every place of W, the first row's
    lowest. `starts`, of shape (strips * chunks + 1,), says where the values of a
    chunk of 64 columns begin: those of chunk c in strip s are
    values[starts[i]:starts[i + 1]] with i = s * chunks + c.
    """

    nnz: int

    @property
    def strip(self) -> int:
        """Rows of a strip."""
        return min(256, max(1, -(-self.shape[0] // 32)) * 32)

    @property
    def strips(self) -> int:
        return max(1, -(-self.shape[0] // self.strip))

    @property
    def chunks(self) -> int:
        return -(-self.shape[1] // CHUNK)

    @property
    def values_shape(self) -> tuple[int]:
        return (self.nnz,)

    @property
    def index_shapes(self) -> tuple[tuple[int, ...], ...]:
        return (self.strips * self.chunks + 1,), (self.strips, self.shape[1], self.strip // 32)

    def encode(
        self, kept: Bool[Array | np.ndarray, "K N"]
    ) -> tuple[Int[Array | np.ndarray, "starts"], UInt[Array | np.ndarray, "strips N words"]]:
        """starts and bits of what is kept; NumPy's where `kept` is."""
        xp, kept = module_of(kept), self.by_strips(kept)
        if xp is np:
            bits = np.packbits(np.ascontiguousarray(kept), axis=2, bitorder="little").view("<u4")
        else:
            words = kept.reshape(*self.index_shapes[1], 32).astype(jnp.uint32)
            bits = jnp.sum(words << jnp.arange(32, dtype=jnp.uint32), axis=-1, dtype=jnp.uint32)
        counts = self.chunk_counts(kept)
        return xp.concatenate([xp.zeros(1, np.int32), xp.cumsum(counts, dtype=np.int32)]), bits

    def by_strips(
        self, dense: Shaped[Array | np.ndarray, "K N"]
    ) -> Shaped[Array | np.ndarray, "strips N strip"]:
        """The order of the values; below the last row, zeros."""
        missing = self.strips * self.strip - dense.shape[0]
        dense = module_of(dense).pad(dense, ((0, missing), (0, 0)))
        return dense.reshape(self.strips, self.strip, dense.shape[1]).swapaxes(1, 2)

    def chunk_counts(
        self, kept: Shaped[Array | np.ndarray, "strips N strip"]
    ) -> Int[Array | np.ndarray, "parts"]:
        """What every chunk of columns of every strip keeps."""
        xp = module_of(kept)
        counts = xp.sum(kept, axis=2, dtype=np.int32)
        counts = xp.pad(counts, ((0, 0), (0, -self.shape[1] % CHUNK)))
        return counts.reshape(-1, CHUNK).sum(1, dtype=np.int32)

    def todense(self, values, *index):
        _, bits = index
        kept, ranks = self._ranks(bits, _words_before(bits))
        found = values.at[ranks].get(mode="fill", fill_value=0)
        dense = jnp.where(kept, found, jnp.zeros((), values.dtype)).swapaxes(1, 2)
        return dense.reshape(self.strips * self.strip, self.shape[1])[: self.shape[0]]

    def gather(self, dense, *index):
        _, bits = index
        kept, _ = self._ranks(bits, _words_before(bits))
        places = jnp.flatnonzero(kept, size=self.nnz, fill_value=kept.size)
        ordered = jnp.asarray(self.by_strips(dense)).reshape(-1)
        return ordered.at[places].get(mode="fill", fill_value=0)

    def sampled(self, x, g, *index, to):
        """Of a dense gradient an eighth of the columns is at hand at a time."""
        _, bits = index
        width = -(-self.shape[1] // STRIPS)
        strips = -(-self.shape[1] // width)
        missing = strips * width - self.shape[1]

        def cut(array, axis):
            array = jnp.pad(array, [(0, missing * (i == axis)) for i in range(array.ndim)])
            shape = (*array.shape[:axis], strips, width, *array.shape[axis + 1 :])
            return jnp.moveaxis(array.reshape(shape), axis, 0)

        def strip(values, inputs):
            g, bits, before = inputs
            kept, ranks = self._ranks(bits, before)
            dense = self.by_strips(dot(x, g, (0, 0), to))
            return values.at[jnp.where(kept, ranks, self.nnz)].set(dense, mode="drop"), None

        zeros = like(jnp.zeros(self.values_shape, to), x, g, bits)
        parts = cut(g, 1), cut(bits, 1), cut(_words_before(bits), 1)
        return lax.scan(strip, zeros, parts)[0]

    def take_outputs(self, values, *index, ids):
        """Values counted from where their chunk begins."""
        starts, bits = index

        def column(i):
            chunk = i // CHUNK
            others = chunk * CHUNK + jnp.arange(CHUNK, dtype=jnp.int32)
            counts = _counts(bits.at[:, others].get(mode="fill", fill_value=0)).sum(axis=2)
            first = starts[jnp.arange(self.strips) * self.chunks + chunk]
            first += jnp.sum(jnp.where(others < i, counts, 0), axis=1)
            mine = bits[:, i, None]
            kept, ranks = self._ranks(mine, _words_before(mine))
            ranks = ranks - ranks[:, :, :1] + first[:, None, None]
            found = jnp.where(kept, values.at[ranks].get(mode="fill", fill_value=0), 0)
            return found.reshape(-1)[: self.shape[0]]

        return jax.vmap(column)(ids)

    def take_inputs(self, values, *index, ids):
        """Values counted from where their word of 32 rows begins."""
        starts, bits = index
        strips, chunks, n = self.strips, self.chunks, self.shape[1]
        counts = jnp.pad(_counts(bits), ((0, 0), (0, chunks * CHUNK - n), (0, 0)))
        counts = counts.reshape(strips, chunks, -1)  # a chunk's columns, each with its words
        begin = jnp.cumsum(counts, axis=2) - counts + starts[:-1].reshape(strips, chunks, 1)
        begin = begin.reshape(strips, chunks * CHUNK, -1)[:, :n]
        strip, word = ids // self.strip, ids % self.strip // 32
        bit = (ids % 32).astype(jnp.uint32)[:, None]
        mine = bits[strip, :, word]
        below = _counts(mine & ((jnp.uint32(1) << bit) - 1))
        found = values.at[begin[strip, :, word] + below].get(mode="fill", fill_value=0)
        return jnp.where((mine >> bit) & 1 == 1, found, jnp.zeros((), found.dtype))

    def _ranks(self, bits, before):
        """Which places (strips, columns, strip) are kept, and how many kept come before each."""
        place = jnp.arange(32, dtype=jnp.uint32)
        kept = (bits[..., None] >> place) & 1 == 1
        ranks = before[..., None] + _counts(bits[..., None] & ((jnp.uint32(1) << place) - 1))
        shape = (*bits.shape[:2], self.strip)
        return kept.reshape(shape), ranks.reshape(shape)


def _counts(bits):
    return lax.population_count(bits).astype(jnp.int32)


def _words_before(bits):
    """How many bits are set before every word."""
    counts = _counts(bits)
    return (jnp.cumsum(counts) - counts.reshape(-1)).reshape(counts.shape)
