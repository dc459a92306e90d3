"""Readers of units are fitted anew to those that are kept, by least squares.

A weight W that reads inputs X is to make of the inputs that are kept what it made of all,

    V = argmin |X W - X_S V|² = (G_SS)⁻¹ (G W)_S,   G = XᵀX,

so that G, which calibration gives once, is all that any kept set S needs: no inputs are held, and
whichever policy is tried, its solve is exact. AMC's code solves from sampled positions of every
image anew for each policy, and for 1x1 kernels alone.
"""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float, Int

from jaxsparse.calibration import Site, gram, observe, sites
from jaxsparse.calibration.layer_loss import matmul, quadratic
from jaxsparse.graph import Member, StructuredGroup
from jaxsparse.trees import Tree, any_of, apart, leaves_by_path, together

Kept = Mapping[str, Bool[Array, " units"]]


class Problem(NamedTuple):
    """Least squares of a weight, scaled to a diagonal of ones.

    Attributes:
      gram: the damped second moments of its inputs.
      scale: roots of their diagonal.
      wanted: the right hand side.
    """

    gram: Float[Array, "kernels inputs inputs"]
    scale: Float[Array, "kernels inputs"]
    wanted: Float[Array, "kernels inputs outputs"]


@dataclasses.dataclass(frozen=True)
class Reader:
    """A weight that reads units.

    Attributes:
      order: of its axes: those that number kernels, those summed over, the rest.
      shape: of the weight with its axes in that order.
      units: by name of a group the unit that each input is, past the last for none.
    """

    order: tuple[int, ...]
    shape: tuple[int, ...]
    units: Mapping[str, Int[np.ndarray, " inputs"]]

    def solved(self, problem: Problem, kept: Kept) -> Float[Array, "..."]:
        """The weight for the units that are kept, float32 in its own shape; zero for others."""
        stays = jnp.ones(problem.scale.shape[-1], bool)
        for name, units in self.units.items():
            stays &= jnp.append(kept[name], True)[units]
        both = stays[:, None] & stays
        matrix = jnp.where(both, problem.gram, jnp.eye(len(stays), dtype=jnp.float32))
        rest = jnp.where(stays[:, None], problem.wanted, 0)

        def solve(matrix, rest):
            return jax.scipy.linalg.cho_solve(jax.scipy.linalg.cho_factor(matrix), rest)

        # One after the other: factors of all kernels at once are as many times as large.
        found = lax.map(lambda each: solve(*each), (matrix, rest)) / problem.scale[..., None]
        return found.reshape(self.shape).transpose(np.argsort(self.order))


class Readers:
    """The weights that read the units of some groups.

    Args:
      fn, params: the model, dense.
      groups: whose readers they are.
      batches: tuples of its inputs, unlabelled.

    Attributes:
      weights: by path how each lies.
      problems: by path what is solved.
      rows: by path how many inputs it was seen to meet; of stacked kernels, the fewest.
      unfitted: by path why one is not: nothing is known of what it meets.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        params: Tree,
        groups: Sequence[StructuredGroup],
        batches: Sequence[tuple[Any, ...]],
    ):
        leaves = leaves_by_path(params)
        self.unfitted: dict[str, str] = {}
        members: dict[str, list[tuple[str, int, Member]]] = {}
        for group in groups:
            for member in group.weights:
                if member.role == "reads":
                    here = members.setdefault(member.path, [])
                    here.append((group.name, group.units, member))
        found: dict[str, Site] = {}
        for site in sites(fn, params, *batches[0], paths=any_of(members)):
            axes = {m.axis for _, _, m in members[site.path]}
            if site.path in found or site.altered or not axes <= set(site.in_axis):
                why = "several products read it, or what they multiply by is made of it"
                self.unfitted[site.path] = why
            found[site.path] = site
        for path in members.keys() - found.keys():
            self.unfitted[path] = "what it meets is not seen as it stands in the parameters"
        wanted = [path for path in members if path not in self.unfitted]
        moments = self._moments(fn, params, wanted, batches)
        self.weights: dict[str, Reader] = {}
        self.problems: dict[str, Problem] = {}
        self.rows: dict[str, int] = {}
        for path, (products, rows) in moments.items():
            reader = _reader(found[path], members[path])
            self.weights[path] = reader
            self.rows[path] = int(rows.min())
            self.problems[path] = _problem(
                jnp.asarray(leaves[path]).transpose(reader.order), found[path], products
            )
        self._warn_of_few()

    def _warn_of_few(self) -> None:
        few = {
            path: f"{rows} for {self.problems[path].scale.shape[-1]} inputs"
            for path, rows in self.rows.items()
            if rows < self.problems[path].scale.shape[-1]
        }
        if few:
            warnings.warn(
                f"amc: readers are fitted to fewer rows than they have inputs, {few}: what is "
                "fitted need not hold for other data; batches= of more examples, or "
                "reconstruct=False, would work",
                stacklevel=5,
            )

    def _moments(self, fn, params, wanted, batches) -> dict[str, tuple[Array, Array]]:
        """Second moments and rows by path; of what cannot be told apart from others, run alone."""
        try:
            return _summed(fn, params, wanted, batches) if wanted else {}
        except ValueError as error:
            if len(wanted) == 1:
                self.unfitted[wanted[0]] = str(error)
                return {}
        found = {}
        for path in wanted:
            found |= self._moments(fn, params, [path], batches)
        return found

    def solved(
        self, leaves: Mapping[str, Any], problems: Mapping[str, Problem], kept: Kept
    ) -> dict[str, Array]:
        """Readers by path, solved for the units that are kept. Traced or not.

        Args:
          leaves: by path, whose dtypes are kept.
          problems: the attribute, as an argument of what is compiled.
          kept: by group, whether each unit stays.
        """
        return {
            path: reader.solved(problems[path], kept).astype(leaves[path].dtype)
            for path, reader in self.weights.items()
        }


def _summed(fn, params, paths, batches) -> dict[str, tuple[Array, Array]]:
    """XᵀX of each weight's inputs over all batches, and how many rows X has."""
    reducer = gram()

    def step(numbers, rest, tree, states):
        params, inputs = together(numbers, rest, tree)
        return observe(fn, params, *inputs, reducer=reducer, paths=any_of(paths), states=states)[1]

    step = jax.jit(step, static_argnums=(1, 2))
    states = None
    for inputs in batches:
        states = step(*apart((params, inputs)), states)
    assert states is not None
    return {site.path: (state["products"], state["rows"]) for site, state in states.items()}


def _reader(site: Site, members: Sequence[tuple[str, int, Member]]) -> Reader:
    before = (*site.batch_axis, *site.in_axis)
    order = (*before, *(axis for axis in range(len(site.shape)) if axis not in before))
    sizes = [site.shape[axis] for axis in site.in_axis]
    units = {}
    for name, count, member in members:
        unit_of = np.full(member.axis_size, count)
        unit_of[member.positions(count)] = np.arange(count)[:, None]
        along = [-1 if axis == member.axis else 1 for axis in site.in_axis]
        units[name] = np.broadcast_to(unit_of.reshape(along), sizes).reshape(-1)
    return Reader(order, tuple(site.shape[axis] for axis in order), units)


@functools.partial(jax.jit, static_argnums=1)
def _problem(turned: Float[Array, "..."], site: Site, products: Float[Array, "..."]) -> Problem:
    """What is solved for a weight whose axes are in the reader's order."""
    kernels, inputs = math.prod(site.kernels), site.inputs
    matrices = turned.reshape(kernels, inputs, turned.size // (kernels * inputs))
    damped = jax.vmap(quadratic)(matrices, products.reshape(kernels, inputs, inputs))
    scale = jnp.sqrt(jax.vmap(jnp.diagonal)(damped.gram))
    gram = damped.gram / scale[:, :, None] / scale[:, None, :]
    return Problem(gram, scale, jax.vmap(matmul)(gram, damped.weight * scale[..., None]))
