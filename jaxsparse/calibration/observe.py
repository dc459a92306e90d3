"""`observe`: the program runs, and at each product what a weight meets goes into a statistic.

A product sums over axes of a weight that the program may have cast, transposed, reshaped or
taken from a stack. What the weight meets is turned back to the axes of the weight as it is in
the parameters, so that a statistic knows nothing of how the program was written. Statistics go
through loops and branches with all else that these carry: nothing large is kept.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxsparse.calibration.reducers import Reducer
from jaxsparse.products.convolution import windows
from jaxsparse.products.factors import Axis, Factor
from jaxsparse.products.reading import Reader, Traced
from jaxsparse.products.sights import ENDS, Sight, Value
from jaxsparse.trees import Tree


@dataclasses.dataclass(frozen=True, order=True)
class Site:
    """A weight, and one way in which products sum over it.

    Products that sum over the same axes of a weight (a tied kernel, a layer that runs twice)
    are one site.

    Attributes:
      path: of the weight.
      shape: of the weight.
      in_axis: axes of the weight that are summed over, major to minor, as in `Rule`.
      batch_axis: axes along which every slice is a kernel of its own.
      altered: whether a product multiplies something else than the weight: see `observe`.
      mixed: whether the weight meets another weight, or a constant, whose rows data then sum over,
        as w in `x @ (v @ w)`: see `observe`.
    """

    path: str
    shape: tuple[int, ...]
    in_axis: tuple[int, ...]
    batch_axis: tuple[int, ...]
    altered: bool = dataclasses.field(default=False, compare=False)
    mixed: bool = dataclasses.field(default=False, compare=False)

    @property
    def inputs(self) -> int:
        """How many numbers of a value one number of the result is summed over."""
        return math.prod(self.shape[axis] for axis in self.in_axis)

    @property
    def kernels(self) -> tuple[int, ...]:
        """Sizes of `batch_axis`: how many kernels there are."""
        return tuple(self.shape[axis] for axis in self.batch_axis)


@dataclasses.dataclass(frozen=True)
class Met:
    """What one kernel meets in one product.

    Attributes:
      array: the value as the program has it, without axes that number kernels; of a
        convolution the image.
    """

    array: Array
    _rows: Callable[[Array], Array]

    def rows(self) -> Float[Array, "rows inputs"]:
        """The value as a matrix X, so that X @ W is what the product computes.

        Its columns are numbered as the flattened `in_axis` of the site; of a convolution its
        rows are the windows.

        Raises:
          ValueError: of a convolution in groups, each of which has a matrix of its own.
        """
        return self._rows(self.array)


def sites(fn: Callable[..., Any], params: Tree, *args: Any, paths: str = ".*") -> list[Site]:
    """What `observe` sees, in the order of the program; nothing runs.

    Args:
      fn, params, args: as in `observe`; shapes will do.
      paths: regular expression of the weights to look at.

    Example:
      >>> params = {"up": jnp.ones((4, 8)), "head": jnp.ones((3, 8))}
      >>> def mlp(params, x):
      ...     return jnp.tanh(x @ params["up"]) @ params["head"].T
      >>> [(site.path, site.in_axis, site.inputs) for site in sites(mlp, params, jnp.ones((2, 4)))]
      [('up', (0,), 4), ('head', (1,), 8)]
    """
    return _sites(Traced(fn, params, args), paths)


def observe(
    fn: Callable[..., Any],
    params: Tree,
    *args: Any,
    reducer: Reducer,
    paths: str = ".*",
    states: Mapping[Site, Any] | None = None,
) -> tuple[Any, dict[Site, Any]]:
    """Runs a function, and reduces what its weights meet in products to one state a site.

    Weights are followed through casts, transposes, flips, reshapes, scaling, masks, `jit`, `vmap`,
    `remat`, `scan`, `while`, `cond`, functions with gradients of their own and stacks, in any
    framework. A kernel that a loop uses several times is met as often. Lookups in a table
    are no products. What `cond` does not run is not met, and what the condition of a
    `while` multiplies is not, either.

    Not followed, so that there is no site and no error: rows or columns picked by an array of
    positions (`w[order]`, which is a lookup), `jnp.where(data, w, v)` and whatever else is
    computed from weights and data, parts of axes that a reshape put together, products inside
    `shard_map` and kernels of other libraries. `sites` has what is followed.

    What is met is met by the operand of the product, which need not be the weight alone: where
    the program multiplies by `g * w`, by `tanh(w)`, a normed weight or `w + v`, X @ (g * w) is
    the product and X @ w is not. `Site.altered` says so. Casts, transposes, flips, reshapes,
    kernels of a stack, negation, a factor or divisor that is one number, and bool masks leave
    it False: `jnp.where(mask, w, number)` and `mask * w` are the weight where it is kept.

    Of `x @ (v @ w)` it is v that w meets, and not what the data make of it: `Site.mixed` says so.
    Learned queries and tables are met as they are, where no product sums over their rows.

    It is a pure function and can be jitted. Batch by batch, give `states` of the batch
    before. Later layers see what the `params` given make of their inputs: to have them see
    those of pruned layers, observe once more with the pruned weights. Under `jit`, what
    comes after the sites observed does not run if the outputs are not used.

    Args:
      fn: called as fn(params, *args).
      params: a tree of arrays.
      args: the data; what is no array is a constant.
      reducer: of the values; see `Reducer`, `gram`, `square_norms`, `largest`, `zeros`.
      paths: regular expression of the weights to observe.
      states: to go on from.

    Returns:
      What the function returns; and by site the state. Of a site with `batch_axis` every
      array of its state has these axes first, one state for every kernel.

    Raises:
      ValueError: what a weight meets cannot be told: several kernels at once whose rows data
        choose, a part of a kernel, parts or layers that the program puts together, blocks of
        inputs or groups of outputs that meet values of their own. Path and shape are quoted.

    Example:
      >>> from jaxsparse.calibration import gram
      >>> params = {"up": jnp.ones((4, 8)), "stack": jnp.ones((3, 8, 8))}
      >>> def model(params, x):
      ...     x = jnp.tanh(x @ params["up"])
      ...     return jax.lax.scan(lambda x, w: (x @ w, None), x, params["stack"])[0]
      >>> y, states = observe(model, params, jnp.ones((2, 4)), reducer=gram())
      >>> {site.path: state["products"].shape for site, state in states.items()}
      {'up': (4, 4), 'stack': (3, 8, 8)}
    """
    traced = Traced(fn, params, args)
    found = _sites(traced, paths)
    if states is None:
        states = {site: _stacked(reducer.init(site), site.kernels) for site in found}
    elif set(states) != set(found):
        other = sorted(site.path for site in set(states) ^ set(found))
        raise ValueError(f"observe: the states are of other sites than the program: {other}")
    observer = _Observer(reducer, dict(states))
    outputs = traced.run(observer)
    return outputs, {site: observer.state[site] for site in found}


def _sites(traced: Traced, paths: str) -> list[Site]:
    finder = _Finder(paths)
    traced.read(finder)
    return list(with_mixed(finder.sites.values(), finder).values())


def site_of(equation, sight: Sight, position: int) -> Site:
    """The site of a product in which an array that shows a weight is the operand at a position."""
    name = equation.primitive.name
    product = sight.product(name, *ENDS[name](equation, position))
    axes = product.in_axis, product.batch_axis
    return Site(product.path, product.shape, *axes, altered=sight.altered)


def note(sites: dict[Site, Site], site: Site) -> None:
    """Adds the site of a product to those of the products before it."""
    altered = site.altered or sites.get(site, site).altered
    sites[site] = dataclasses.replace(site, altered=altered)


def with_mixed(sites: Iterable[Site], reader: Reader) -> dict[Site, Site]:
    """Sites, once all products are read: which of them meet rows that data sum over."""
    return {site: dataclasses.replace(site, mixed=site.path in reader.mixed) for site in sites}


class _Finder(Reader):
    """A reader that notes sites."""

    def __init__(self, paths: str):
        super().__init__()
        self._paths, self.sites = paths, dict[Site, Site]()

    def meet(self, equation, sight, position, other):
        if re.fullmatch(self._paths, sight.path):
            note(self.sites, site_of(equation, sight, position))


def _stacked(state, sizes):
    return jax.tree.map(lambda a: jnp.broadcast_to(a, (*sizes, *jnp.shape(a))), state)


class _Observer(Reader):
    """A reader that reduces what weights meet; its state goes through control flow."""

    def __init__(self, reducer: Reducer, states: dict[Site, Any]):
        super().__init__()
        self._reducer, self.state = reducer, states

    def meet(self, equation, sight, position, other):
        site = site_of(equation, sight, position)
        if site in self.state:
            value = Turned(site, equation, sight, position, other)
            new = value.reduced(self._reducer, self.state[site], value.index)
            self.state = self.state | {site: new}


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
