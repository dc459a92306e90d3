"""What units contribute to the layers that read them, in a pruned model and in its teacher."""

import dataclasses
import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

from jaxsparse.calibration import Reducer, Site, observe
from jaxsparse.trees import Tree, any_of, apart, leaves_by_path, together


@dataclasses.dataclass(frozen=True)
class Read:
    """How a weight reads units.

    Attributes:
      site: the weight, and what it sums over.
      inputs: of the site, which ones each unit is: (units, each).
    """

    site: Site
    inputs: Int[np.ndarray, "units each"]


class Contributions:
    """Sums over data of products of what units contribute, kernel by kernel.

    The contribution of unit u is C_u = X_u W_u, its part of X W. Products of two follow from
    Gram matrices, sum of (C_u * C_v) = sum of (X_uᵀX_v) * (W_u W_vᵀ), so that no contribution
    is ever written out.

    Args:
      fn, params: the model, dense, whose weights contributions are made with.
      teacher: parameters of the model that is imitated.
      batches: the inputs.
      paths: of all weights that units may be read by.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        params: Tree,
        teacher: Tree,
        batches: Sequence[tuple[Any, ...]],
        paths: Collection[str],
    ):
        self._fn, self._teacher, self._batches = fn, teacher, batches
        self._weights, self._paths = leaves_by_path(params), paths

    def normal_equations(
        self,
        student: Tree,
        reads: Sequence[Read],
        units: Int[np.ndarray, " n"],
        theirs: Int[np.ndarray, " m"],
        *,
        constant: bool,
    ) -> tuple[Float[np.ndarray, "k k"], Float[np.ndarray, " k"]]:
        """M = AᵀA and b = Aᵀy in float64, over all batches and readers.

        Args:
          student: parameters of the model whose units make A, a column for each.
          reads: by what the units are read.
          units: which ones.
          theirs: those of the teacher's that add up to y.
          constant: whether A has a last column of ones.

        Raises:
          ValueError: a reader that meets other numbers of rows in the two models, in a loop
            whose turns follow from the data.
        """
        kernels = [self._kernels(read.site) for read in reads]
        sites = {read.site for read in reads}
        paths = any_of(site.path for site in sites)
        counted = self._counted if sites <= self._counted[0].keys() else self._count(paths)

        def step(numbers, kernels, rest, tree, capacity):
            student, teacher, inputs = together(numbers, rest, tree)
            reducer = _rows(dict(capacity))
            ours = observe(self._fn, student, *inputs, reducer=reducer, paths=paths)[1]
            other = observe(self._fn, teacher, *inputs, reducer=reducer, paths=paths)[1]
            sums = [
                _sums(ours[read.site]["rows"], other[read.site]["rows"], w, read, units, theirs)
                for read, w in zip(reads, kernels, strict=True)
            ]
            met = {read.site: ours[read.site]["count"] for read in reads}
            return jax.tree.map(lambda *parts: sum(parts), *sums), met

        step = jax.jit(step, static_argnums=(2, 3, 4))
        size = len(units) + 1
        products, wanted = np.zeros((size, size)), np.zeros(size)
        for inputs, all_counts in zip(self._batches, counted, strict=True):
            numbers, rest, tree = apart((student, self._teacher, inputs))
            counts = {site: count for site, count in all_counts.items() if site in sites}
            capacity = tuple((site, int(np.max(met))) for site, met in counts.items())
            sums, met = step(numbers, kernels, rest, tree, capacity)
            _check_counts(counts, met)
            products += np.asarray(sums[0], np.float64)
            wanted += np.asarray(sums[1], np.float64)
        return (products, wanted) if constant else (products[:-1, :-1], wanted[:-1])

    @functools.cached_property
    def _counted(self) -> list[dict[Site, np.ndarray]]:
        """By batch how many rows the teacher's kernels meet, of all paths where that can be told.

        Once for all groups: the teacher stays, and to trace it again for each would take as long
        as its part of what follows.
        """
        try:
            return self._count(any_of(self._paths))
        except ValueError:  # of one of them; the group that has it says so
            return [{} for _ in self._batches]

    def _count(self, paths: str) -> list[dict[Site, np.ndarray]]:
        def count(numbers, rest, tree):
            teacher, inputs = together(numbers, rest, tree)
            return observe(self._fn, teacher, *inputs, reducer=COUNT, paths=paths)[1]

        count = jax.jit(count, static_argnums=(1, 2))
        found = (count(*apart((self._teacher, inputs))) for inputs in self._batches)
        return [{site: np.asarray(met) for site, met in counts.items()} for counts in found]

    def _kernels(self, site: Site) -> Float[Array, "kernels inputs outputs"]:
        weight = jnp.asarray(self._weights[site.path])
        used = (*site.batch_axis, *site.in_axis)
        outputs = [axis for axis in range(weight.ndim) if axis not in used]
        turned = weight.transpose(*used, *outputs).astype(jnp.float32)
        return turned.reshape(math.prod(site.kernels), site.inputs, -1)


COUNT = Reducer(
    lambda site: jnp.zeros((), jnp.int32),
    lambda state, met, site: state + met.rows().shape[0],
)


def _rows(capacity: Mapping[Site, int]) -> Reducer:
    """All rows that a kernel meets, one after the other, through loops too."""

    def init(site):
        rows = jnp.zeros((capacity[site], site.inputs), jnp.float32)
        return {"rows": rows, "count": jnp.zeros((), jnp.int32)}

    def update(state, met, site):
        del site
        new, count = met.rows().astype(jnp.float32), state["count"]
        rows = lax.dynamic_update_slice(state["rows"], new, (count, 0))
        return {"rows": rows, "count": count + len(new)}

    return Reducer(init, update)


def _sums(ours, other, kernels, read: Read, units, theirs):
    """M and b of one reader, with a last column of ones."""
    mine, yours = read.inputs[units], read.inputs[theirs]

    def one(x, y, w):
        x, y = x[:, mine.ravel()], y[:, yours.ravel()]
        w, v = w[mine.ravel()], w[yours.ravel()]
        pairs = ((x.T @ x) * (w @ w.T)).reshape(*mine.shape, *mine.shape).sum((1, 3))
        wanted = ((x.T @ y) * (w @ v.T)).reshape(*mine.shape, -1).sum((1, 2))
        # Sums of all entries of contributions, and of what they are to make.
        column = (x.sum(0) * w.sum(1)).reshape(mine.shape).sum(1)
        total, entries = y.sum(0) @ v.sum(1), jnp.float32(x.shape[0] * w.shape[1])
        products = jnp.block([[pairs, column[:, None]], [column[None], entries[None, None]]])
        return products, jnp.append(wanted, total)

    ours, other = (rows.reshape(len(kernels), *rows.shape[-2:]) for rows in (ours, other))
    return jax.tree.map(lambda sums: sums.sum(0), jax.vmap(one)(ours, other, kernels))


def _check_counts(counts: Mapping[Site, np.ndarray], met: Mapping[Site, Array]) -> None:
    for site, count in counts.items():
        if (met[site] != np.max(count)).any() or (count != np.max(count)).any():
            raise ValueError(
                f"retrain_free: {site.path!r} of shape {site.shape} meets {np.asarray(met[site])} "
                f"rows in the pruned model and {count} in its teacher; tune=False, or "
                "its group in untuned=, would work"
            )
