"""Weights that keep n of every m consecutive inputs."""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse.kernels.layouts import NMLayout
from jaxsparse.packed.base import Packed
from jaxsparse.packed.held import hold
from jaxsparse.packed.storages import register
from jaxsparse.patterns.nm import NM


@register
@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class NMSparse(Packed):
    """A weight that keeps n of every m consecutive inputs.

    Attributes:
      values: (ceil(K/m) * n, N); row g*n + i is the i-th weight kept of group g.
      positions: uint32 (words, ceil(N/columns)); see `NMLayout` for the bits.
      n: weights stored in a group.
      m: inputs in a group.
      columns: consecutive outputs that share their positions. With all of them,
        the product is one dense product with the columns of x it needs.
    """

    values: Any
    positions: Any
    n: int
    m: int
    view: Any
    columns: int = 1
    scales: Any = None
    held: Any = None
    stores = NM
    index_arrays: ClassVar = {"positions": ("uint32",)}

    @property
    def layout(self) -> NMLayout:
        return NMLayout(self.matrix_shape, self.n, self.m, self.columns)

    @classmethod
    def store(cls, flat, kept, xp, *, pattern, columns):
        n, m, (batch, k, width) = pattern.n, pattern.m, flat.shape
        layout = NMLayout((k, width), n, m, columns)
        flat = xp.pad(flat, ((0, 0), (0, -k % m), (0, 0)))
        lost = np.pad(~kept, ((0, 0), (0, -k % m), (0, 0)))
        kept = np.pad(kept, ((0, 0), (0, -k % m), (0, -width % columns)))
        groups, sets = -(-k // m), -(-width // columns)
        shared: Any = kept.reshape(batch, groups * m, sets, columns).any(axis=3)
        counts: Any = shared.reshape(batch, groups, m, sets).sum(axis=2)
        if (counts > n).any():
            stack, group, column = (int(axis[0]) for axis in np.nonzero(counts > n))
            sharing = f" shared by {columns} columns" if columns > 1 else ""
            raise ValueError(
                f"group {group} (inputs {group * m} to {group * m + m - 1}) of column "
                f"{column * columns} keeps {counts[stack, group, column]} entries, {n}:{m}"
                f"{sharing} stores {n}; prune with NM({n}, {m}) first."
            )
        positions = np.stack([group_positions(s, n, m) for s in shared])
        words = np.stack([layout.encode(p) for p in positions])
        wide = np.repeat(positions, columns, axis=2)[:, :, :width]
        rows = wide + (np.arange(wide.shape[1]) // n * m)[:, None]
        arrays = {"values": xp.take_along_axis(flat, rows, axis=1), "positions": words}
        arrays |= hold(np.take_along_axis(lost, rows, axis=1))
        return cls, arrays, {"n": n, "m": m, "columns": columns}

    @classmethod
    def draw(cls, key, view, pattern, sparsity):
        layout = NMLayout(view.matrix_shape, pattern.n, pattern.m)
        drawn = jax.random.uniform(key, (layout.padded[0] // layout.m, layout.m, layout.shape[1]))
        inside = jnp.arange(layout.padded[0]).reshape(-1, layout.m, 1) < layout.shape[0]
        chosen = jnp.argsort(jnp.where(inside, drawn, 2.0), axis=1)[:, : layout.n]
        found = jnp.sort(chosen, axis=1).reshape(layout.values_shape)
        return cls(None, layout.encode(found), layout.n, layout.m, view)

    def check_shapes(self):
        if self.n > self.m:
            raise ValueError(f"field 'n': {self.n} of every {self.m} cannot be kept")
        super().check_shapes()

    def check_index(self, words):
        positions = self.layout.decode(words)
        groups = np.sort(
            positions.reshape(len(positions) // self.n, self.n, positions.shape[-1]), axis=1
        )
        if groups.size and groups.max() >= self.m:
            g, _, c = np.argwhere(groups >= self.m)[0]
            raise ValueError(
                f"group {g} of column {c} has a position {groups[g, :, c].max()}, m is {self.m}"
            )
        twice = np.argwhere(np.diff(groups, axis=1) == 0)
        if len(twice):
            g, _, c = twice[0]
            raise ValueError(f"group {g} of column {c} names a position twice: {groups[g, :, c]}")

    def _describe(self):
        return f"[{self.n}:{self.m}]"


def group_positions(kept: np.ndarray, n: int, m: int) -> np.ndarray:
    """Positions of the n slots of every group of m rows.

    Args:
      kept: boolean, of shape (groups * m, columns), at most n true in a group.

    Returns:
      positions (groups * n, columns), int32, ascending in a group. One which keeps
      fewer than n fills up with others.
    """
    groups = kept.reshape(len(kept) // m, m, kept.shape[1])
    # Kept ones first, each part in order; then the chosen n back in order.
    chosen = np.sort(np.argsort(~groups, axis=1, kind="stable")[:, :n], axis=1)
    return chosen.astype(np.int32).reshape(len(groups) * n, kept.shape[1])
