"""`sparsify`: run a function that was written for dense weights on packed ones."""

import dataclasses
import functools
import math
import warnings
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxsparse.kernels as kernels
from jaxsparse import control, jaxprs
from jaxsparse.packed.base import is_packed
from jaxsparse.patterns.views import spelled
from jaxsparse.products.convolution import convolution
from jaxsparse.products.factors import VIEWS
from jaxsparse.products.sights import ENDS
from jaxsparse.products.sparse_dot import matrix_product
from jaxsparse.products.standins import StandIn
from jaxsparse.trees import flatten

_TAKES_PACKED = "takes_packed_weights"


def sparsify(
    function: Callable[..., Any],
    *,
    implementation: str | None = None,
    on_dense: Literal["warn", "error", "ignore"] = "warn",
) -> Callable[..., Any]:
    """Makes a function of dense weights one of packed weights.

    The function is traced as if every packed weight in its arguments were a
    dense array. In the program that comes out, each product with such a weight
    (`dot_general`, convolution, embedding lookup) becomes a `sparse_dot`, seen
    through casts, transposes, reshapes, scaling, indexing of stacked kernels,
    `jit`, `remat`, `scan`, `while`, `cond` and functions with custom gradients
    (which are then differentiated as written). Everything else runs as it was.

    Args:
      function: any traceable function; a Flax `apply`, for example. Packed
        weights have to come as arguments, anywhere in their trees.
      implementation: as in `sparse_dot`.
      on_dense: what to do about a weight which some operation needs dense: name
        it with the operation in a warning, raise, or keep silent. It is made
        dense there and stays packed elsewhere.

    Returns:
      A function of the same arguments, where any array may be a packed weight.
      Packed weights that it returns unchanged stay packed. Numbers, strings and
      the like are constants of the trace.

    Raises:
      TypeError: `function` is none.
      ValueError: (when called) `on_dense="error"` and a weight is needed dense.

    Example:
      >>> import jax.numpy as jnp, jaxsparse as js
      >>> def layer(params, x):
      ...     return jnp.tanh(x @ params["kernel"] + params["bias"])
      >>> params = {"kernel": js.pack(jnp.eye(8), js.Block(4, 4)), "bias": jnp.zeros(8)}
      >>> js.sparsify(layer)(params, jnp.ones((2, 8))).shape
      (2, 8)
    """
    return evaluated(function, Run, implementation, on_dense)


def evaluated(
    function: Callable[..., Any],
    run: Callable[[str | None, str], "Run"],
    implementation: str | None,
    on_dense: str,
) -> Callable[..., Any]:
    """`sparsify` with an evaluation of one's own: what `run` makes of products."""
    if not callable(function):
        raise TypeError(
            f"sparsify: {type(function).__name__} is no function; sparsify(model.apply)(params, x) "
            "would work"
        )
    if on_dense not in ("warn", "error", "ignore"):
        raise ValueError(f"on_dense={on_dense!r} is none of 'warn', 'error', 'ignore'.")
    if implementation is not None:
        kernels.check(implementation)

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        leaves, tree = jax.tree.flatten((args, kwargs), is_leaf=is_packed)
        paths = [path for path, _ in flatten((args, kwargs), is_packed)]
        given = {i: leaf for i, leaf in enumerate(leaves) if is_packed(leaf) or _is_array(leaf)}
        shapes = {
            i: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_packed(leaf) else leaf
            for i, leaf in given.items()
        }
        program, output_tree = jaxprs.trace(
            lambda called: function(*called[0], **called[1]), tree, leaves, shapes
        )
        operands = [
            StandIn.of(leaf, _name(paths[i])) if is_packed(leaf) else leaf
            for i, leaf in given.items()
        ]
        evaluation = run(implementation, on_dense)
        outputs = evaluation.walk(program, operands)
        return jax.tree.unflatten(output_tree, [evaluation.returned(o) for o in outputs])

    setattr(wrapped, _TAKES_PACKED, True)
    return wrapped


def takes_packed(function: Callable[..., Any]) -> bool:
    """Whether a function runs on packed weights as it is, for `sparsify` made it."""
    return getattr(function, _TAKES_PACKED, False)


def _is_array(leaf):
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _name(path):
    # The first two parts say which argument it is, and are ours, not the user's.
    _, argument, *rest = path.split("/", 2)
    return rest[0] if rest else f"argument {argument}"


# What a stand-in can be without being made dense, by primitive: methods of `Run`, called
# with the equation and its operands. None means that it cannot.
_RULES: dict[str, Callable[..., Any]] = {}
_rule = jaxprs.table(_RULES)


class Run(control.Evaluator):
    """One evaluation of a program with stand-ins among its values."""

    def __init__(self, implementation, on_dense):
        self.implementation = implementation
        self.on_dense = on_dense
        self.named = set()

    def walk(self, program, operands):
        """What a program returns."""
        return jaxprs.walk(program, operands, self.visit)

    def special(self, value):
        return isinstance(value, StandIn)

    def stack(self, value):
        if isinstance(value, StandIn) and value.axes[0] and value.axes[0] == value.batch[:1]:
            return value
        return self.array(value, _taken_apart("scan", value, 0))

    def slice(self, arrays):
        return arrays.slice() if isinstance(arrays, StandIn) else arrays

    def apply(self, equation, operands):
        name = equation.primitive.name
        if name in VIEWS:
            results = VIEWS[name](operands[0], equation.params)
        else:
            rule = _RULES.get(name)
            results = rule(self, equation, *operands) if rule else None
        if results is None:
            arrays = [self.array(o, _why_dense(equation, i, o)) for i, o in enumerate(operands)]
            results = jaxprs.bind(equation, arrays)
        return results if isinstance(results, list) else [results]

    def array(self, value, operation):
        if not isinstance(value, StandIn):
            return value
        if value.name not in self.named:
            self.named.add(value.name)
            message = f"sparsify: {value.name} {value.packed} is made dense for {operation}"
            if self.on_dense == "error":
                raise ValueError(f"{message}; on_dense='ignore' would let it")
            if self.on_dense == "warn":
                warnings.warn(message, stacklevel=2)
        return value.todense()

    def returned(self, value):
        if not isinstance(value, StandIn):
            return value
        original = StandIn.of(value.packed, value.name)
        return value.packed if value.axes == original.axes else self.array(value, "being returned")

    @_rule("convert_element_type")
    def _convert_element_type(self, equation, w):
        dtype = equation.params["new_dtype"]
        return w.cast(dtype) if jnp.issubdtype(dtype, jnp.floating) else None

    @_rule("copy copy_p sharding_constraint")
    def _copy(self, equation, w):
        del equation
        return w

    @_rule("stop_gradient")
    def _stop_gradient(self, equation, w):
        del equation
        return dataclasses.replace(w, packed=lax.stop_gradient(w.packed))

    @_rule("optimization_barrier")
    def _optimization_barrier(self, equation, *operands):
        del equation
        return list(lax.optimization_barrier(operands))

    @_rule("neg")
    def _neg(self, equation, w):
        del equation
        return w.scale(-1)

    @_rule("mul")
    def _mul(self, equation, a, b):
        del equation
        w, scalar = (a, b) if isinstance(a, StandIn) else (b, a)
        return None if isinstance(scalar, StandIn) or np.ndim(scalar) else w.scale(scalar)

    @_rule("div")
    def _div(self, equation, w, scalar):
        del equation
        if not isinstance(w, StandIn) or isinstance(scalar, StandIn) or np.ndim(scalar):
            return None
        return w.scale(1 / scalar)

    # Indexing of stacks, and lookups.

    @_rule("slice")
    def _slice(self, equation, w):
        params = equation.params
        if params["strides"] is not None and any(step != 1 for step in params["strides"]):
            return None
        starts = params["start_indices"]
        sizes = [end - start for start, end in zip(starts, params["limit_indices"], strict=True)]
        return _one_of(w, starts, sizes)

    @_rule("dynamic_slice")
    def _dynamic_slice(self, equation, w, *starts):
        return _one_of(w, starts, equation.params["slice_sizes"])

    @_rule("gather")
    def _gather(self, equation, w, ids):
        if not isinstance(w, StandIn) or len(w.axes) != 2:
            return None
        params = equation.params
        numbers, sizes = params["dimension_numbers"], params["slice_sizes"]
        fills = params["mode"] == lax.GatherScatterMode.FILL_OR_DROP
        cut = [i for i in range(2) if i in numbers.collapsed_slice_dims or sizes[i] != w.shape[i]]
        # A clipped start of an axis that is taken whole is 0.
        whole = set(numbers.start_index_map) - set(cut)
        if len(cut) != 1 or sizes[cut[0]] != 1 or (fills and whole):
            return None
        [axis] = cut
        ids = ids[..., numbers.start_index_map.index(axis)]
        rows = w.take(axis, jnp.clip(ids, 0, w.shape[axis] - 1))
        if rows is None:
            return None
        if fills:
            fill = params["fill_value"]
            inside = ((ids >= 0) & (ids < w.shape[axis]))[..., None]
            rows = jnp.where(inside, rows, jnp.nan if fill is None else fill)
        if axis not in numbers.collapsed_slice_dims:
            rows = jnp.expand_dims(rows, rows.ndim - 1 + axis)
        ends = range(ids.ndim, rows.ndim)
        return jnp.moveaxis(rows, ends, numbers.offset_dims)

    # Products.

    def product(self, x, w, summed, batched, dtype):
        """x, of shape (*batched, rows, *summed), by a weight; None where there is no such one."""
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return None
        return w.product(x, summed, batched, self.matrix_product(dtype))

    def matrix_product(self, dtype):
        """The product of a matrix by a packed weight, rounded to a dtype."""
        return functools.partial(
            matrix_product, implementation=self.implementation, out_dtype=dtype
        )

    @_rule("dot_general")
    def _dot_general(self, equation, a, b):
        if isinstance(a, StandIn) and isinstance(b, StandIn):
            return None
        first = isinstance(a, StandIn)
        w, x = (a, b) if first else (b, a)
        w_sum, w_batch = ENDS["dot_general"](equation, 0 if first else 1)
        x_sum, x_batch = ENDS["dot_general"](equation, 1 if first else 0)
        free = [i for i in range(x.ndim) if i not in (*x_sum, *x_batch)]
        shape = [[x.shape[i] for i in part] for part in (x_batch, free, x_sum)]
        x = jnp.transpose(x, (*x_batch, *free, *x_sum))
        x = x.reshape(*shape[0], math.prod(shape[1]), *shape[2])
        dtype = equation.outvars[0].aval.dtype
        y = self.product(x, w, w_sum, w_batch, dtype)
        if y is None:
            return None
        mine = y.shape[len(w_batch) + 1 :]
        y = y.reshape(*shape[0], *shape[1], *mine)
        if first:  # the weight's axes come before those of x
            start, count = len(w_batch), len(shape[1])
            y = jnp.moveaxis(y, range(start, start + count), range(-count, 0)) if count else y
        return y

    @_rule("conv_general_dilated")
    def _conv_general_dilated(self, equation, x, w):
        params = equation.params
        groups = params["feature_group_count"] * params["batch_group_count"]
        if isinstance(x, StandIn) or groups != 1:
            return None
        out = equation.outvars[0].aval
        return convolution(x, w, params, out, self.implementation, self.matrix_product(out.dtype))


def _one_of(w, starts, sizes):
    """A kernel of a stack, or a row or column of a matrix."""
    cut = [i for i, (size, whole) in enumerate(zip(sizes, w.shape, strict=True)) if size != whole]
    if len(cut) != 1 or sizes[cut[0]] != 1:
        return None
    [axis] = cut
    kernel = w.index(axis, starts[axis])
    if kernel is not None:
        return kernel
    row = w.take(axis, jnp.clip(jnp.asarray(starts[axis]), 0, w.shape[axis] - 1))
    return None if row is None else jnp.expand_dims(row, axis)


def _why_dense(equation, position, value):
    """An operation that needs a weight dense, with what would spare it."""
    name, params = equation.primitive.name, equation.params
    if name in ("slice", "dynamic_slice"):
        sizes = params.get("slice_sizes") or equation.outvars[0].aval.shape
        cut = [i for i, size in enumerate(sizes) if size == 1 != value.shape[i]]
        return _taken_apart(name, value, cut[0]) if len(cut) == 1 else name
    if name not in ENDS or not isinstance(value, StandIn):
        return name
    product = value.sight.product(name, *ENDS[name](equation, position))
    if product.partial:
        return f"{name}, which sums over part of the axes {product.partial}"
    if product.agrees(value.view):
        return name
    axes = spelled(product.in_axis, product.out_axis, product.batch_axis)
    return f"{name}, which sums over other axes; with {axes} in its rule it would stay packed"


def _taken_apart(name, value, axis):
    ends = value.axes[axis] if isinstance(value, StandIn) else ()
    if len(ends) != 1 or len(ends[0][0]) != 1:
        return name
    return (
        f"{name}, which takes axis {ends[0][0][0]} apart; with the axes that js.read_axes gives "
        "its rule it would stay packed"
    )
