"""What a weight meets, turned from the axes of the program back to those of the weight.

A product sums over axes of a weight that the program may have cast, transposed, reshaped or
taken from a stack. A statistic is to know nothing of that.
"""

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

from jaxsparse.calibration.reducers import Reducer
from jaxsparse.calibration.site import Met, Site
from jaxsparse.products.convolution import windows
from jaxsparse.products.factors import Axis, Factor
from jaxsparse.products.sights import ENDS, Sight, Value


def _backwards(at, size: int):
    """A position counted from the other end; what is past the end stays so."""
    if isinstance(at, int):
        return size - 1 - at if at < size else size
    return jnp.where(at < size, size - 1 - at, size)


_PUT_TOGETHER = (
    "it is one of several arrays that were put together, and which of them meets the value "
    "cannot be told",
    "one stack in the parameters, or ",
)


class Turned:
    """A value, turned to the axes of the weight that it meets.

    Attributes:
      array: axes that number kernels first, then all others as they come.
      stacked: those axes of the weight.
      index: which kernels they are, of all of the weight: slices, numbers and scalar arrays.

    Args:
      site, equation, sight, position, other: as `Reader.meet` has them.
      caller: whose errors they are, and what would leave the weight out there.
    """

    def __init__(
        self,
        site: Site,
        equation,
        sight: Sight,
        position: int,
        other: Value,
        caller: tuple[str, str] = ("observe", "paths= that leaves it out"),
    ):
        self._site, self._equation, self._weight = site, equation, sight.shape
        self._caller = caller
        name = equation.primitive.name
        if name == "ragged_dot_general":
            self._refuse("each kernel of a stack meets rows that data choose")
        summed, batched = ENDS[name](equation, position)
        self._summed = [sight.axes[i] for i in summed]
        if name == "conv_general_dilated":
            if position == 0:
                self._refuse("it is the image of a convolution, not its kernel")
            self._labels: list[Axis | None] = [None] * other.array.ndim
        else:
            theirs = ENDS[name](equation, 1 - position)
            labels = dict(zip(theirs[0], self._summed, strict=True))
            labels |= {i: sight.axes[k] for i, k in zip(theirs[1], batched, strict=True)}
            self._labels = [labels.get(i) for i in range(other.array.ndim)]
        self._sight = sight
        places = self._places(sight)
        self._check([sight.axes[i] for i in batched])
        self._turn(other.array, places)

    def _refuse(self, why: str, instead: str = ""):
        name, without = self._caller
        raise ValueError(
            f"{name}: {self._site.path!r} of shape {self._site.shape}: {why} "
            f"({self._equation.primitive.name}); {instead}{without} would work"
        )

    def _check(self, batched: Sequence[Axis]) -> None:
        """Refuses values that are no whole row of inputs for every output."""
        site, pieces = self._site, self._sight.pieces
        sizes = {axis: 1 for axis in site.in_axis}
        for axes, apart in ((self._summed, False), (batched, True)):
            for name, size in (factor for axis in axes for factor in axis):
                if name[0] < 0 and name[0] in pieces:
                    self._refuse(*_PUT_TOGETHER)
                elif name[0] < 0:
                    self._refuse("it was repeated before the product")
                elif name[0] in sizes and apart and size != 1:
                    stored = f"the weight stored as {self._weight}, or "
                    self._refuse("blocks of its inputs meet values of their own", stored)
                elif name[0] in sizes:
                    sizes[name[0]] *= size
                elif name[0] not in site.batch_axis:
                    self._refuse("groups of its outputs meet values of their own")
        if any(size != site.shape[axis] for axis, size in sizes.items()):
            self._refuse("part of its inputs, or a sum over them, meets the value")
        if pieces & set(site.in_axis):
            self._refuse(
                "part of its inputs, or parts put together in an order that is not known, meet the "
                "value",
                "folding that order into the weight, or ",
            )
        if pieces & set(site.batch_axis):
            self._refuse("which kernel of the stack it is cannot be told, of kernels put together")

    def _places(self, sight: Sight) -> dict[int, Any]:
        """By axis of the weight, the kernel that was taken from it."""
        places = {}
        for (role, axis), at in zip(sight.taken, sight.at, strict=True):
            long = [factor for factor in axis if factor[1] != 1]
            if role != "batch" or not long:
                continue
            if any(name[0] in sight.pieces for name, _ in long if name[0] < 0):
                self._refuse(*_PUT_TOGETHER)
            if all(name[0] < 0 for name, _ in long):
                continue  # repeated: all slices are the weight
            [(name, size), *others] = long
            whole = name[0] >= 0 and (len(name), size) == (1, self._site.shape[name[0]])
            if others or not whole or at is None:
                self._refuse("which kernel of the stack it is cannot be told")
            turned = sight.backwards(name)
            places[name[0]] = _backwards(at, size) if turned else at
        return places

    def _turn(self, array: Array, places: Mapping[int, Any]) -> None:
        kernels = self._site.batch_axis
        flat: list[tuple[Factor | None, int]] = []
        for label, size in zip(self._labels, array.shape, strict=True):
            flat += [(None, size)] if label is None else [(factor, factor[1]) for factor in label]
        array = array.reshape([size for _, size in flat])
        names = [None if factor is None else factor[0] for factor, _ in flat]
        self.stacked = [a for a in kernels if (a,) in names]
        for axis in kernels:
            whole = axis in places or axis in self.stacked or self._site.shape[axis] == 1
            if not whole:
                self._refuse("the axis that numbers its kernels is in parts")
        fronts = [names.index((axis,)) for axis in self.stacked]
        rest = [i for i in range(len(names)) if i not in fronts]
        turned = [self._sight.backwards((axis,)) for axis in self.stacked]
        array = jnp.flip(array, [i for i, t in zip(fronts, turned, strict=True) if t])
        self.array = array.transpose(*fronts, *rest)
        self._factors = [flat[i][0] for i in rest]
        self.index = tuple(slice(None) if a in self.stacked else places.get(a, 0) for a in kernels)

    def reduced(self, reducer: Reducer, state, index: tuple[Any, ...]):
        """A state, at some kernels of it, with what they meet here."""
        site = self._site
        update = lambda state, x: reducer.update(state, Met(x, self.rows), site)  # noqa: E731
        for _ in self.stacked:
            update = jax.vmap(update)
        after = update(jax.tree.map(lambda a: a[index], state), self.array)
        return jax.tree.map(lambda a, b: a.at[index].set(b), state, after)

    @property
    def count(self) -> int:
        """How many rows the matrix has."""
        if self._equation.primitive.name == "conv_general_dilated":
            [out] = self._equation.outvars
            return (
                out.aval.size
                // out.aval.shape[self._equation.params["dimension_numbers"].out_spec[1]]
            )
        sizes = self.array.shape[len(self.stacked) :]
        return math.prod(n for n, f in zip(sizes, self._factors, strict=True) if f is None)

    @property
    def way(self) -> Hashable:
        """Equal for weights of which every one makes the same `array` and rows of a value."""
        site, backwards = self._site, self._sight.backwards
        major = {axis: place for place, axis in enumerate(site.in_axis)}
        columns = tuple(
            f and (major[f[0][0]], f[0][1:], f[1], backwards(f[0])) for f in self._factors
        )
        window = ()
        if self._equation.primitive.name == "conv_general_dilated":
            window = [(name, str(value)) for name, value in self._equation.params.items()]
        return tuple(site.shape[axis] for axis in site.in_axis), columns, tuple(window)

    def rows(self, array: Array) -> Array:
        """See `Met.rows`."""
        factors = self._factors
        if self._equation.primitive.name == "conv_general_dilated":
            params = self._equation.params
            if params["feature_group_count"] * params["batch_group_count"] != 1:
                self._refuse("each group of the convolution has a matrix of its own")
            array = windows(array, self._weight, params)
            whole = [factor for axis in self._summed for factor in axis]
            free = array.ndim - len(self._summed)
            array = array.reshape(*array.shape[:free], *[size for _, size in whole])
            factors = [None] * free + whole
        major = {axis: place for place, axis in enumerate(self._site.in_axis)}
        columns = sorted((major[f[0][0]], f[0], i) for i, f in enumerate(factors) if f is not None)
        array = jnp.flip(array, [i for _, name, i in columns if self._sight.backwards(name)])
        free = [i for i, factor in enumerate(factors) if factor is None]
        array = array.transpose(*free, *(i for _, _, i in columns))
        return array.reshape(-1, self._site.inputs)
