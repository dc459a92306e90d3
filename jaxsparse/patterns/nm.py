"""N:M sparsity: n of every m consecutive inputs are kept.

Sources: Mishra et al. 2021, arXiv 2104.08378 (2:4); Hubara et al. 2021,
arXiv 2102.08124 (transposable masks).
"""

import dataclasses
import functools
import itertools
import operator
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt

from jaxsparse.patterns.base import Pattern, real
from jaxsparse.patterns.groups import check_divides, cuts_tiles, fill_tiles, tile, untile
from jaxsparse.patterns.views import View
from jaxsparse.top_k import ordered_bits

MAX_BEST = 4  # 2:4 has 90 transposable patterns, 4:8 more than 10^14


@dataclasses.dataclass(frozen=True)
class NM(Pattern):
    """Keeps n of every m consecutive entries along the input axis.

    - method "1d": the n largest of every m along K; ties keep the lowest index.
    - method "best": transposable, at most n in every row *and* column of each
      m x m tile, so that W and W^T are both n:m: the best of all such patterns
      (90 for 2:4), m up to 4.
    - method "greedy": transposable, entries by descending score while their row
      and column have room. A tile may end with fewer than n in a row or column.

    A schedule on n:m first prunes the m-groups (tiles) that lose least, and ends
    at exactly n:m everywhere.

    Attributes:
      n: entries kept of every m. (Some tools name how many are pruned.)
      m: length of a group.
      method: "1d", "best" or "greedy".
      pad: allow sizes that m does not divide: padded, masked, sliced back.

    >>> NM(2, 4).max_sparsity
    0.5
    """

    tiled: ClassVar[bool] = True
    fixed: ClassVar[bool] = True
    n: int
    m: int
    method: Literal["1d", "best", "greedy"] = "1d"
    pad: bool = False

    def __post_init__(self):
        if not 0 < self.n < self.m:
            raise ValueError(f"{self}: 0 < n < m must hold; n is how many of m are kept")
        if self.method not in ("1d", "best", "greedy"):
            raise ValueError(f"{self}: method is none of '1d', 'best', 'greedy'")
        if self.method == "best" and self.m > MAX_BEST:
            raise ValueError(f"{self}: too many patterns to try; method='greedy' would work")

    @property
    def max_sparsity(self) -> float:
        return (self.m - self.n) / self.m  # rounded once: 9:10 prunes 0.1

    def check(self, path: str, view: View) -> None:
        if not self.pad:
            k, n = view.matrix_shape
            check = functools.partial(
                check_divides, f"{self}", path, view, name="m", least=self.n + 1
            )
            check("input", size=k, block=self.m)
            if self.method != "1d":
                check("output", size=n, block=self.m)

    def group_shape(self, view: View) -> tuple[int, ...]:
        return (*view.batch_shape, *self._padded(view))

    def pool(self, entries, view, reduce=None):
        del reduce  # every entry has a bit of its own
        return fill_tiles(view.matrix(real(entries)), self.m, self._columns, -jnp.inf)

    def expand(self, groups, view):
        k, n = view.matrix_shape
        return view.leaf(groups[..., :k, :n])

    def group_size(self, view: View) -> int:
        return 1

    def cut_by(self, view, shard):
        return cuts_tiles(view, shard, self.m, self._columns)

    def storage(self, view):
        return self

    def units(self, view: View) -> int:
        k, n = self._padded(view)
        return k // self.m * (n // self._columns)

    def unit_scores(self, scores, allowed, view):
        """A unit is an m-group or tile; its score is what pruning it would lose."""
        # The padding scores -inf and is nobody's loss.
        real = fill_tiles(jnp.ones(view.matrix_shape, bool), self.m, self._columns, False)
        lost = jnp.where(self._pruned(scores, allowed) | ~real, 0, scores)
        dense = None if allowed is None else jnp.all(self._tiles(allowed), axis=(-3, -1))
        return jnp.sum(self._tiles(lost), axis=(-3, -1)), dense

    def finish(self, kept, scores, allowed, view):
        pruned = self._tiles(self._pruned(scores, allowed))
        return untile(pruned | kept[..., :, None, :, None])

    @property
    def _columns(self) -> int:
        """Columns of a unit: "1d" groups are m x 1 tiles."""
        return 1 if self.method == "1d" else self.m

    def _padded(self, view: View) -> tuple[int, int]:
        k, n = view.matrix_shape
        return k + -k % self.m, n + -n % self._columns

    def _tiles(self, matrix: Array) -> Array:
        return tile(matrix, self.m, self._columns)

    def _pruned(
        self, scores: Float[Array, "*batch K N"], allowed: Bool[Array, "*batch K N"] | None
    ) -> Bool[Array, "*batch K N"]:
        """The n:m mask of every group, whether or not selection wants it pruned yet."""
        bits = self._tiles(ordered_bits(scores, allowed))
        if self.method == "1d":
            return untile(_largest(bits[..., 0], self.n)[..., None])
        if self.method == "greedy":
            mask = _greedy(jnp.swapaxes(bits, -3, -2), self.n)
        else:
            ranks = self._tiles(_ranks(scores, allowed))
            finite = self._tiles(jnp.where(jnp.isfinite(scores), scores, 0))
            mask = _best(jnp.swapaxes(ranks, -3, -2), jnp.swapaxes(finite, -3, -2), self.n)
        return untile(jnp.swapaxes(mask, -3, -2))


def _largest(bits: UInt[Array, "*b G m N"], n: int) -> Bool[Array, "*b G m N"]:
    """The n largest along the second last axis; ties keep the lowest index."""
    m = bits.shape[-2]
    before = jnp.tri(m, k=-1, dtype=bool)[:, :, None]  # [i, j]: j comes before i
    mine, other = bits[..., :, None, :], bits[..., None, :, :]
    ahead = (other > mine) | ((other == mine) & before)
    return jnp.sum(ahead, axis=-2, dtype=jnp.int32) < n


def _greedy(bits: UInt[Array, "*b m m"], n: int) -> Bool[Array, "*b m m"]:
    """Entries by descending score (ties by row-major index) while row and column have room."""
    m = bits.shape[-1]
    order = jnp.argsort(~bits.reshape(*bits.shape[:-2], m * m), axis=-1, stable=True)

    def take(step, mask):
        at = jax.nn.one_hot(order[..., step], m * m, dtype=bool).reshape(mask.shape)
        row_full = jnp.sum(mask, axis=-1, keepdims=True) >= n
        column_full = jnp.sum(mask, axis=-2, keepdims=True) >= n
        return mask | (at & ~row_full & ~column_full)

    # Begins as a function of the scores, so that it is sharded as they are.
    return jax.lax.fori_loop(0, m * m, take, bits != bits)


def _best(
    ranks: Int[Array, "*b m m"], finite: Float[Array, "*b m m"], n: int
) -> Bool[Array, "*b m m"]:
    """Of all patterns with n in every row and column that with the largest total."""
    m = finite.shape[-1]
    patterns = jnp.asarray(_transposable(n, m).reshape(-1, m * m), finite.dtype)

    def totals(entries):
        # Added in one order, and not by a product, which rounds as its shards happen to be cut.
        entries = entries.astype(patterns.dtype)
        added = (entries[..., i // m, i % m, None] * patterns[:, i] for i in range(m * m))
        return functools.reduce(operator.add, added)

    rank = totals(ranks)
    total = jnp.where(rank == jnp.max(rank, axis=-1, keepdims=True), totals(finite), -jnp.inf)
    chosen = jax.nn.one_hot(jnp.argmax(total, axis=-1), len(patterns), dtype=patterns.dtype)
    return jnp.matmul(chosen, patterns).reshape(finite.shape) > 0


@functools.cache
def _transposable(n: int, m: int) -> np.ndarray:
    """All m x m patterns with n ones in every row and column, as (patterns, m, m)."""
    rows = [row for row in itertools.product((True, False), repeat=m) if sum(row) == n]
    tiles = np.array(list(itertools.product(rows, repeat=m)))
    return tiles[(tiles.sum(axis=1) == n).all(axis=1)]


def _ranks(scores: Array, allowed: Array | None) -> Int[Array, "..."]:
    """Orders what cannot be added, since infinities would swallow the other scores.

    1 for infinity, 0 for numbers, -1 for NaN and -infinity (the padding), and less
    than all of these for what is not allowed.
    """
    low = jnp.isnan(scores) | jnp.isneginf(scores)
    ranks = jnp.isposinf(scores).astype(jnp.int32) - low.astype(jnp.int32)
    return ranks if allowed is None else jnp.where(allowed, ranks, -2)
