"""The products of a traced program: which weight meets which value, along which axes.

The program is evaluated with a `Value` in the place of every array that depends on its
arguments. It knows whether the array comes from the data, and if it does not, which weights
it shows: the weight itself, cast, transposed, reshaped, scaled, masked, a slice of a stack,
one of the terms of a sum. Where such an array meets another one in a product, the axes that
the product sums over are axes of the weight.
"""

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxsparse import control, jaxprs
from jaxsparse.products.altering import ALIKE, alters, plain_of, value_of
from jaxsparse.products.factors import VIEWS, stranger
from jaxsparse.products.mixing import mixed, rows_of_product
from jaxsparse.products.sights import ENDS, Product, Sight, Value, merged
from jaxsparse.trees import Tree, flatten


def products(fn: Callable[..., Any], params: Tree, *args: Any) -> list[Product]:
    """The products of a program that weights take part in.

    Nothing runs: the program is traced. `calibration.observe` runs it, and sees what they meet.

    Args:
      fn: called as fn(params, *args).
      params: any tree of arrays or shapes.
      args: the data, arrays or shapes; what is no array is a constant.

    Returns:
      One for every equation and weight, in the order of the program.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"up": jnp.ones((4, 8)), "head": jnp.ones((3, 8))}
      >>> def mlp(params, x):
      ...     return jnp.tanh(x @ params["up"]) @ params["head"].T
      >>> [(p.path, p.in_axis, p.out_axis) for p in products(mlp, params, jnp.ones((2, 4)))]
      [('up', (0,), (1,)), ('head', (1,), (0,))]
    """
    return list(Traced(fn, params, args).read(Reader()))


class Traced:
    """A traced program, to be read once or several times.

    Args:
      fn, params, args: as in `products`.

    Attributes:
      program: of the arrays among the leaves of params and args.
      arrays: these.
      shapes: theirs, as the program has them.
      names: by array the path of the weight that it is; None of the data.
    """

    def __init__(self, fn: Callable[..., Any], params: Tree, args: Sequence[Any]):
        paths = [path for path, _ in flatten(params)]
        leaves, tree = jax.tree.flatten((params, args))
        places = [i for i, leaf in enumerate(leaves) if is_array(leaf)]
        self.arrays = [leaves[i] for i in places]
        self.names = [paths[i] if i < len(paths) else None for i in places]
        # Shapes without shardings: with explicit axes the types would name the mesh.
        self.shapes = [jax.ShapeDtypeStruct(a.shape, _as_traced(a.dtype)) for a in self.arrays]
        shapes = dict(zip(places, self.shapes, strict=True))
        self.program, self._output = jaxprs.trace(
            lambda given: fn(given[0], *given[1]), tree, leaves, shapes
        )

    def read(self, reader: "Reader") -> Iterable[Product]:
        """The products that a reader finds, without running anything."""
        jax.eval_shape(lambda *a: evaluate(self.program, reader, self.names, a), *self.shapes)
        return reader.found.values()

    def run(self, reader: "Reader") -> Any:
        """What the function returns."""
        results = evaluate(self.program, reader, self.names, self.arrays)
        return jax.tree.unflatten(self._output, results)


def evaluate(
    program: jaxprs.Program, reader: "Reader", names: Sequence[str | None], arrays: Sequence[Any]
) -> list[Any]:
    """What a program returns, evaluated by a reader.

    Args:
      program: traced.
      reader: notes the products.
      names: by argument the path of the weight that it is; None of the data.
      arrays: the arguments.
    """
    values = [
        Value(a, data=True) if name is None else Value(a, (Sight.of(name, a.shape),))
        for name, a in zip(names, arrays, strict=True)
    ]
    return reader.arrays(jaxprs.walk(program, values, reader.visit))


def is_array(leaf: Any) -> bool:
    """Whether a leaf is an argument of the traced program; what is not is a constant of it."""
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


def _as_traced(dtype: Any) -> Any:
    """The dtype that NumPy's numbers of 64 bits have in a program."""
    return jax.dtypes.canonicalize_dtype(dtype, allow_extended_dtype=True)


class Reader(control.Evaluator):
    """One evaluation of a program.

    Attributes:
      found: the products, by equation and path.
      mixed: paths of weights that met weights or constants in a product whose rows data then
        sum over: of w in x @ (v @ w).
    """

    def __init__(self):
        # The body of a loop may be traced more than once.
        self.found: dict[tuple[int, str], Product] = {}
        self.mixed = set[str]()

    def special(self, value):
        return isinstance(value, Value)

    def array(self, value, operation):
        del operation
        return value.array if isinstance(value, Value) else value

    def carried(self, array):
        # In the loop it may be the initial value or any later one.
        return Value(array, data=True)

    def stack(self, value):
        if not isinstance(value, Value) or not value.sights:
            return value
        length = value.array.shape[0]

        def repeated(place):
            return None if place is None else jnp.broadcast_to(place, (length,))

        sights = tuple(
            dataclasses.replace(sight, at=tuple(map(repeated, sight.at))) for sight in value.sights
        )
        value = dataclasses.replace(value, sights=sights)
        return value, jnp.arange(length, dtype=jnp.int32)

    def slice(self, arrays):
        if not isinstance(arrays, tuple):
            return arrays
        value, place = arrays
        sights = tuple(sight.without([0], "batch", [place]) for sight in value.sights)
        return dataclasses.replace(value, sights=sights)

    def result(self, array, operands):
        return Value(array, data=any(o.varies for o in operands if isinstance(o, Value)))

    def visit(self, equation, operands):
        results = super().visit(equation, operands)
        if equation.primitive.name in ALIKE:
            plain = plain_of(operands[0])
            results = [
                result
                if plain == plain_of(result)
                else dataclasses.replace(value_of(result), plain=plain)
                for result in results
            ]
        return results

    def apply(self, equation, operands):
        values = [value_of(operand) for operand in operands]
        results = jaxprs.bind(equation, [value.array for value in values])
        shown = [()] * len(results)
        rule = _RULES.get(equation.primitive.name)
        if rule is not None and any(value.sights for value in values):
            shown = [merged(sights) for sights in rule(self, equation, values)]
        varies = any(value.varies for value in values)
        rows = _rows(self, equation, values)
        # A weight that data picks from a stack is a weight.
        return [
            Value(result, sights, varies and not sights, chosen=varies and bool(sights), rows=rows)
            for result, sights in zip(results, shown, strict=True)
        ]

    def meet(self, equation, sight: Sight, position: int, other: Value) -> None:
        """Notes a product in which an array that shows a weight is the operand at a position."""
        name = equation.primitive.name
        product = sight.product(name, *ENDS[name](equation, position))
        self.found.setdefault((id(equation), product.path), product)

    def look_up(self, equation, sight, indexed):
        """Notes a lookup along some axes."""
        rest = [i for i in range(len(sight.axes)) if i not in indexed]
        product = sight.product(equation.primitive.name, rest, [])
        product = dataclasses.replace(product, sums=False)
        self.found.setdefault((id(equation), product.path), product)


# What the results of an equation show: rules by primitive, each called with the reader, the
# equation and its operands, returning sights for every result.
_RULES: dict[str, Callable[..., Sequence[Sequence[Sight]]]] = {}
_rule = jaxprs.table(_RULES)


def _some(sights):
    return [sight for sight in sights if sight is not None]


@_rule(" ".join(VIEWS))
def _view(reader, equation, values):
    view, params, sights = VIEWS[equation.primitive.name], equation.params, values[0].sights
    if equation.primitive.name == "reshape" and params["dimensions"]:
        # `vmap` of a convolution over kernels makes groups of them.
        sights = [sight.transpose(params["dimensions"]) for sight in sights]
        params = params | {"dimensions": None}
    return [_some(view(sight, params) for sight in sights)]


@_rule(jaxprs.ELEMENTWISE)
def _elementwise(reader, equation, values):
    if any(value.data for value in values):
        return [()]
    rank = len(equation.outvars[0].aval.shape)
    whole = {s.path for value in values if plain_of(value) != "mask" for s in value.sights}
    return [
        [
            dataclasses.replace(s, altered=s.altered or alters(equation, values, place, s.path))
            for place, value in enumerate(values)
            for s in value.sights
            # A mask that is made of the weight beside it is no version of it.
            if len(s.axes) == rank and not (plain_of(value) == "mask" and s.path in whole)
        ]
    ]


@_rule(jaxprs.IDENTITIES)
def _identity(reader, equation, values):
    return [value.sights for value in values]


@_rule("rev")
def _rev(reader, equation, values):
    return [[sight.flip(equation.params["dimensions"]) for sight in values[0].sights]]


@_rule("reduce_sum")
def _reduce_sum(reader, equation, values):
    return [[sight.without(equation.params["axes"], "in") for sight in values[0].sights]]


@_rule("concatenate pad")
def _resized(reader, equation, values):
    sights = [sight for value in values for sight in value.sights]
    shape = equation.outvars[0].aval.shape
    data = any(value.data for value in values)
    shown = () if data else _some(sight.resized(shape) for sight in sights)
    # What a pad cuts at one end and adds at the other keeps its size.
    padded = [i for i, ends in enumerate(equation.params.get("padding_config", ())) if any(ends)]
    return [[sight.in_pieces(padded) for sight in shown]]


@_rule("split")
def _split(reader, equation, values):
    shown, axis, start = [], equation.params["axis"], 0
    for variable in equation.outvars:
        shape = variable.aval.shape
        starts = [start if i == axis else 0 for i in range(len(shape))]
        shown.append(_some(sight.resized(shape, starts) for sight in values[0].sights))
        start += shape[axis]
    return shown


@_rule("slice")
def _slice(reader, equation, values):
    shape, starts = equation.outvars[0].aval.shape, equation.params["start_indices"]
    return [_part(reader, equation, values[0].sights, shape, starts)]


@_rule("dynamic_slice")
def _dynamic_slice(reader, equation, values):
    weight, *starts = values
    shape = equation.params["slice_sizes"]
    # Past the end the last slice is meant.
    starts = [
        _clipped(_whole(start.array), have) if size == 1 else start.array
        for start, have, size in zip(starts, weight.array.shape, shape, strict=True)
    ]
    return [_part(reader, equation, weight.sights, shape, starts)]


def _part(reader, equation, sights, shape, starts):
    """What slices show: members of stacks, parts of weights, or a row that is looked up."""
    shown = []
    for sight in sights:
        cut = [i for i, (a, b) in enumerate(zip(shape, sight.shape, strict=True)) if a < b]
        part = sight.resized(shape, starts)
        if part is None or len(part.ends) > 1 or not cut:
            shown += _some([part])
        elif len(sight.ends) == 2 and [shape[i] for i in cut] == [1]:
            reader.look_up(equation, sight, cut)
        else:
            shown.append(part)
    return shown


@_rule("gather")
def _gather(reader, equation, values):
    weight, ids = values
    params, shape = equation.params, equation.outvars[0].aval.shape
    numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
    gone = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
    stay = [i for i in range(len(sizes)) if i not in gone]
    shown = []
    for sight in weight.sights:
        indexed = [i for i in range(len(sizes)) if i in gone or sizes[i] == 1 != sight.shape[i]]
        if any(sizes[i] != sight.shape[i] for i in stay if i not in indexed):
            continue
        places = [_place(ids.array, params, i, sight.shape[i]) for i in indexed]
        part = sight.without(indexed, "batch", places)
        if len(part.ends) > 1:
            axes = [stranger(size) if isinstance(size, int) else () for size in shape]
            for place, i in zip(numbers.offset_dims, stay, strict=True):
                axes[place] = () if i in indexed else sight.axes[i]
            shown.append(part.seen(axes, {}))
        elif len(sight.ends) == 2:
            reader.look_up(equation, sight, indexed)
    return [shown]


def _place(ids, params, axis, size):
    """The position along an axis that a `gather` takes, None if these are several."""
    numbers = params["dimension_numbers"]
    if axis not in numbers.start_index_map or set(ids.shape[:-1]) - {1}:
        return None
    place = _whole(ids[..., numbers.start_index_map.index(axis)].reshape(()))
    if params["mode"] is lax.GatherScatterMode.CLIP:
        return _clipped(place, size)
    # Below 0 as past the end: filled, no slice of it.
    if isinstance(place, int):
        return size if place < 0 else place
    return jnp.where(place < 0, size, place)


def _clipped(place, size):
    if isinstance(place, int):
        return min(max(place, 0), size - 1)
    return jnp.clip(place, 0, size - 1)


def _whole(number):
    """An index that can say any size, a number where it is one."""
    if isinstance(number, np.ndarray | np.generic | int):
        return int(number)
    return jnp.asarray(number).astype(jnp.int32)


@_rule("unstack")
def _unstack(reader, equation, values):
    axis, count = equation.params["axis"], len(equation.outvars)
    return [[s.without([axis], "batch", [i]) for s in values[0].sights] for i in range(count)]


@_rule("stack")
def _stack(reader, equation, values):
    if any(value.data for value in values):
        return [()]
    axis, new = equation.params["axis"], stranger(len(values))
    sights = [sight for value in values for sight in value.sights]
    sights = [s.seen((*s.axes[:axis], new, *s.axes[axis:]), {}) for s in sights]
    return [[sight.in_pieces([axis]) for sight in sights]]


@_rule(" ".join(ENDS))
def _product(reader, equation, values):
    for position, (one, other) in enumerate(zip(values[:2], values[1::-1], strict=True)):
        for sight in one.sights:
            reader.meet(equation, sight, position, other)
    return [()]


def _rows(reader, equation, values) -> tuple[Sight, ...]:
    """`Value.rows` of what an equation returns; notes the weights whose rows data sum over."""
    name = equation.primitive.name
    if name == "dot_general":
        reader.mixed |= mixed(equation, values)
        return rows_of_product(equation, values)
    follow = _RULES.get(name)
    if follow is None or follow not in (_view, _identity, _elementwise):
        return ()
    if not any(value.rows for value in values):
        return ()
    found = follow(reader, equation, [dataclasses.replace(v, sights=v.rows) for v in values])
    return tuple(found[0]) if len(found) == 1 else ()
