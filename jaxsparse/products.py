"""The products of a traced program: which weight meets which value, along which axes.

The program is evaluated with a `Value` in the place of every array that depends on its
arguments. It knows whether the array comes from the data, and if it does not, which weights
it shows: the weight itself, cast, transposed, reshaped, scaled, masked, a slice of a stack,
one of the terms of a sum. Where such an array meets another one in a product, the axes that
the product sums over are axes of the weight.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from jaxsparse import jaxprs
from jaxsparse.factors import VIEWS, stranger
from jaxsparse.sights import ENDS, Product, Sight, Value
from jaxsparse.trees import Tree, flatten

Observe = Callable[[Product, jax.Array], None]


def products(
    fn: Callable[..., Any], params: Tree, *args: Any, observe: Observe | None = None
) -> list[Product]:
    """The products of a program that weights take part in.

    Args:
      fn: called as fn(params, *args).
      params: any tree of arrays; without `observe` shapes will do.
      args: the data, arrays or shapes; what is no array is a constant.
      observe: if given, the program runs, and this is called as observe(product, x) at every
        product, with the array that the weight meets; inside loops with a tracer.

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
    paths = [path for path, _ in flatten(params)]
    leaves, tree = jax.tree.flatten((params, args))
    dynamic = [i for i, leaf in enumerate(leaves) if _is_array(leaf)]
    arrays = [leaves[i] for i in dynamic]

    def flat(*arrays):
        given = dict(zip(dynamic, arrays, strict=True))
        params, args = tree.unflatten([given.get(i, leaf) for i, leaf in enumerate(leaves)])
        return jax.tree.leaves(fn(params, *args))

    # Shapes without shardings: with explicit axes the types would name the mesh.
    shapes = [jax.ShapeDtypeStruct(a.shape, a.dtype) for a in arrays]
    program = jax.make_jaxpr(flat)(*shapes)
    reader = _Reader(observe)

    def evaluate(*arrays):
        values = [
            Value(a, (Sight.of(paths[i], a.shape),) if i < len(paths) else (), i >= len(paths))
            for i, a in zip(dynamic, arrays, strict=True)
        ]
        jaxprs.walk(jaxprs.opened(program), values, reader.visit)

    if observe is None:
        jax.eval_shape(evaluate, *shapes)
    else:
        evaluate(*arrays)
    return list(reader.found.values())


def _is_array(leaf):
    return isinstance(leaf, jax.Array | np.ndarray | np.generic | jax.ShapeDtypeStruct)


class _Reader(jaxprs.Evaluator):
    """One evaluation of a program."""

    def __init__(self, observe):
        self.observe = observe
        # The body of a loop may be traced more than once.
        self.found: dict[tuple[int, str], Product] = {}

    def special(self, value):
        return isinstance(value, Value)

    def array(self, value, operation):
        del operation
        return value.array if isinstance(value, Value) else value

    def carried(self, array):
        # In the loop it may be the initial value or any later one.
        return Value(array, data=True)

    def stack(self, value):
        return value

    def slice(self, arrays):
        if not isinstance(arrays, Value):
            return arrays
        sights = tuple(sight.without([0], "batch") for sight in arrays.sights)
        return dataclasses.replace(arrays, sights=sights)

    def result(self, array, operands):
        return Value(array, data=any(o.data for o in operands if isinstance(o, Value)))

    def apply(self, equation, operands):
        values = [o if isinstance(o, Value) else Value(o) for o in operands]
        results = jaxprs.bind(equation, [value.array for value in values])
        shown = [()] * len(results)
        rule = _RULES.get(equation.primitive.name)
        if rule is not None and any(value.sights for value in values):
            shown = [_merged(sights) for sights in rule(self, equation, values)]
        data = any(value.data for value in values)
        # A weight that data picks from a stack is a weight.
        return [
            Value(result, sights, data and not sights)
            for result, sights in zip(results, shown, strict=True)
        ]

    def meet(self, equation, sight, summed, batched, other):
        """Notes a product."""
        product = sight.product(equation.primitive.name, summed, batched)
        self._note(equation, product, other.array)

    def look_up(self, equation, sight, indexed, ids):
        """Notes a lookup along some axes."""
        rest = [i for i in range(len(sight.axes)) if i not in indexed]
        product = sight.product(equation.primitive.name, rest, [])
        self._note(equation, dataclasses.replace(product, sums=False), ids)

    def _note(self, equation, product, x):
        self.found.setdefault((id(equation), product.path), product)
        if self.observe is not None:
            self.observe(product, x)


def _merged(sights):
    """One for every way in which a weight is seen: a norm of it beside itself is none."""
    kept = {}
    least = {}
    for sight in sights:
        least[sight.path] = min(len(sight.taken), least.get(sight.path, len(sight.taken)))
    for sight in sights:
        if len(sight.taken) == least[sight.path]:
            kept.setdefault((sight.path, sight.axes), sight)
    return tuple(kept.values())


# What the results of an equation show: rules by primitive, each called with the reader, the
# equation and its operands, returning sights for every result.
_RULES: dict[str, Callable[..., Sequence[Sequence[Sight]]]] = {}
_rule = jaxprs.table(_RULES)


def _some(sights):
    return [sight for sight in sights if sight is not None]


@_rule(" ".join(VIEWS))
def _view(reader, equation, values):
    view = VIEWS[equation.primitive.name]
    return [_some(view(sight, equation.params) for sight in values[0].sights)]


@_rule(jaxprs.ELEMENTWISE)
def _elementwise(reader, equation, values):
    if any(value.data for value in values):
        return [()]
    rank = len(equation.outvars[0].aval.shape)
    return [[s for value in values for s in value.sights if len(s.axes) == rank]]


@_rule(f"{jaxprs.IDENTITIES} rev")
def _identity(reader, equation, values):
    return [value.sights for value in values]


@_rule("reduce_sum")
def _reduce_sum(reader, equation, values):
    return [[sight.without(equation.params["axes"], "in") for sight in values[0].sights]]


@_rule("concatenate pad slice split")
def _resized(reader, equation, values):
    shapes = [variable.aval.shape for variable in equation.outvars]
    sights = [sight for value in values for sight in value.sights]
    if any(value.data for value in values):
        return [()] * len(shapes)
    return [
        _part(reader, equation, sights, shape, None)
        if equation.primitive.name == "slice"
        else _some(sight.resized(shape) for sight in sights)
        for shape in shapes
    ]


@_rule("dynamic_slice")
def _dynamic_slice(reader, equation, values):
    weight, *starts = values
    shape = equation.params["slice_sizes"]
    return [_part(reader, equation, weight.sights, shape, starts)]


def _part(reader, equation, sights, shape, starts):
    """What slices show: members of stacks, parts of weights, or a row that is looked up."""
    shown = []
    for sight in sights:
        cut = [i for i, (a, b) in enumerate(zip(shape, sight.shape, strict=True)) if a < b]
        part = sight.resized(shape)
        if part is None or len(part.ends) > 1 or not cut:
            shown += _some([part])
        elif len(sight.ends) == 2 and [shape[i] for i in cut] == [1]:
            reader.look_up(equation, sight, cut, starts and starts[cut[0]].array)
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
        part = sight.without(indexed, "batch")
        if len(part.ends) > 1:
            axes = [stranger(size) if isinstance(size, int) else () for size in shape]
            for place, i in zip(numbers.offset_dims, stay, strict=True):
                axes[place] = () if i in indexed else sight.axes[i]
            shown.append(part.seen(axes, {}))
        elif len(sight.ends) == 2:
            reader.look_up(equation, sight, indexed, ids.array)
    return [shown]


@_rule("unstack")
def _unstack(reader, equation, values):
    sights = [s.without([equation.params["axis"]], "batch") for s in values[0].sights]
    return [sights] * len(equation.outvars)


@_rule("stack")
def _stack(reader, equation, values):
    if any(value.data for value in values):
        return [()]
    axis, new = equation.params["axis"], stranger(len(values))
    sights = [sight for value in values for sight in value.sights]
    return [[s.seen((*s.axes[:axis], new, *s.axes[axis:]), {}) for s in sights]]


@_rule(" ".join(ENDS))
def _product(reader, equation, values):
    for position, (one, other) in enumerate(zip(values[:2], values[1::-1], strict=True)):
        for sight in one.sights:
            reader.meet(equation, sight, *ENDS[equation.primitive.name](equation, position), other)
    return [()]
