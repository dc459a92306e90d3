"""`sparsify` in integers: products with int8 weights run on codes, and hand codes on."""

import collections
import contextlib
import dataclasses
import functools
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import core

from jaxsparse import jaxprs
from jaxsparse.products.sparsify import Run, evaluated
from jaxsparse.products.standins import StandIn
from jaxsparse.quantized.affine import DTYPES, Affine
from jaxsparse.quantized.int8_dot import int8_dot
from jaxsparse.quantized.linear import linear
from jaxsparse.trees import near_misses

# Equations whose programs may run several times, or not at all.
BODIES = (*jaxprs.CONTROL, "checkpoint", "remat2")
# What a pending product becomes part of, by primitive: methods of `_Integers`.
_ABSORBED: dict[str, Callable[..., Any]] = {}
_absorbs = jaxprs.table(_ABSORBED)


def sparsify(
    function: Callable[..., Any],
    inputs: Mapping[str, Affine] | None = None,
    *,
    implementation: str | None = None,
    on_dense: Literal["warn", "error", "ignore"] = "warn",
    on_float: Literal["warn", "error", "ignore"] = "warn",
    hand_on: bool = True,
) -> Callable[..., Any]:
    """Makes a function of dense weights one that multiplies by packed int8 weights in integers.

    As `jaxsparse.sparsify`, and besides:

    * A product of floats with a weight of int8 values and scales quantizes the floats, and is an
      `int8_dot`. A bias that is added, and a ReLU behind it, become part of it; so do the codes
      of the next product where nothing else reads what is between, so that layers hand each
      other codes.
    * A product of codes with a weight of codes (int8 values packed without scales), summed in
      int32, is the same sums: the program's own scales, as those of a model that qwix
      quantized, stay where they are, and every bit of its results.

    Everything else runs as `jaxsparse.sparsify` runs it: a product by the transposed weight, or
    a convolution, in floating point.

    Args:
      function: as in `jaxsparse.sparsify`.
      inputs: by path of the weight the codes of what it meets, as `calibrate` finds them; None
        for those of each array's own range, found anew at every call.
      implementation: as in `int8_dot`.
      on_dense: as in `jaxsparse.sparsify`.
      on_float: what to do about an int8 weight whose product stays in floating point: name it
        with the reason in a warning, raise, or keep silent.
      hand_on: whether layers hand each other codes. Codes have no gradient; with False the
        function is differentiated as `linear` is, straight through.

    Returns:
      A function of the same arguments, where any array may be a packed weight.

    Raises:
      TypeError: `inputs` is no dict, or codes are no `Affine`.
      ValueError: (when called) codes for a path that no int8 product has; `on_float="error"` or
        `on_dense="error"` and there is such a weight.

    Example:
      >>> import jax.numpy as jnp, jaxsparse as js
      >>> def layer(params, x):
      ...     return jnp.maximum(x @ params["kernel"] + params["bias"], 0)
      >>> kernel = js.pack(jnp.eye(8), js.Block(4, 4), dtype=jnp.int8)
      >>> params = {"kernel": kernel, "bias": jnp.ones(8)}
      >>> codes = {"kernel": js.quantized.of_range(0, 2.55)}
      >>> js.quantized.sparsify(layer, codes)(params, jnp.full((1, 8), 0.501))[0, 0]
      Array(1.5, dtype=float32)
    """
    if on_float not in ("warn", "error", "ignore"):
        raise ValueError(f"on_float={on_float!r} is none of 'warn', 'error', 'ignore'.")
    if not isinstance(inputs, Mapping | None):
        raise TypeError(
            f"sparsify: inputs is of type {type(inputs).__name__}, no dict of an Affine by path; "
            "what calibrate returns would work"
        )
    for path, affine in (inputs or {}).items():
        if not isinstance(affine, Affine):
            raise TypeError(
                f"sparsify: inputs[{path!r}] is a {type(affine).__name__}, no Affine; what "
                "calibrate returns would work"
            )
    start = functools.partial(_Integers, inputs=inputs, on_float=on_float, hand_on=hand_on)
    return evaluated(function, start, implementation, on_dense)


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["x", "weight", "inputs", "bias"],
    meta_fields=["name", "activation", "shape", "dtype"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class _Pending:
    """A product that what comes next may still become part of.

    Attributes:
      x: numbers, or codes of `inputs`, of shape (..., K).
      weight: the packed weight.
      inputs: as in `linear`.
      bias: of shape (N,), or None.
      name: the path of the weight.
      activation: as in `linear`.
      shape, dtype: of the array that it stands for.
    """

    x: Any
    weight: Any
    inputs: Affine | None
    bias: Any
    name: str
    activation: Literal["relu"] | None
    shape: tuple[int, ...]
    dtype: Any


class _Integers(Run):
    """An evaluation with products in integers."""

    def __init__(self, implementation, on_dense, *, inputs, on_float, hand_on):
        super().__init__(implementation, on_dense)
        self._inputs, self._on_float, self._hand_on = inputs, on_float, hand_on
        self._used, self._in_float = set[str](), set[str]()
        self._shared: set[Any] = set()

    def walk(self, program, operands):
        self._shared = _read_several_times(program[0])
        results = super().walk(program, operands)
        if unused := sorted(set(self._inputs or ()) - self._used - self._in_float):
            names = [o.name for o in operands if isinstance(o, StandIn)]
            raise ValueError(
                f"sparsify: inputs has codes for {unused[0]!r}, which no int8 product of the "
                f"program is by; {near_misses(unused[0], names)}"
            )
        return results

    def special(self, value):
        return isinstance(value, StandIn | _Pending)

    def array(self, value, operation):
        return self._done(value) if isinstance(value, _Pending) else super().array(value, operation)

    def returned(self, value):
        return self._done(value) if isinstance(value, _Pending) else super().returned(value)

    def visit(self, equation, operands):
        if equation.primitive.name in BODIES:  # in a loop it would be multiplied in every turn
            operands = [self._done(operand) for operand in operands]
        elif inner := jaxprs.programs(equation):
            pairs = zip(inner[0][0].invars, operands, strict=True)
            operands = [self._done(o) if var in self._shared else o for var, o in pairs]
        results = super().visit(equation, operands)
        pairs = zip(equation.outvars, results, strict=True)
        return [self._done(result) if var in self._shared else result for var, result in pairs]

    def apply(self, equation, operands):
        rule = _ABSORBED.get(equation.primitive.name)
        result = rule(self, equation, *operands) if rule else None
        if result is not None:
            return [result]
        operands = [self._done(operand) for operand in operands]
        if not any(map(self.special, operands)):
            return jaxprs.bind(equation, operands)
        if equation.primitive.name == "conv_general_dilated":
            for operand in operands:
                if isinstance(operand, StandIn) and _is_quantized(operand.packed):
                    self._stays_in_float(operand, "it is the kernel of a convolution")
        return super().apply(equation, operands)

    def product(self, x, w, summed, batched, dtype):
        if jnp.issubdtype(x.dtype, jnp.integer):
            sums = x.dtype in DTYPES and dtype == jnp.int32
            if not sums or w.packed.scales is not None or w.packed.values.dtype != jnp.int8:
                return None
            with _naming(w.name):
                return w.product(x, summed, batched, self._sums)
        if not _is_quantized(w.packed) or not jnp.issubdtype(x.dtype, jnp.floating):
            return super().product(x, w, summed, batched, dtype)
        if self._has_codes(w):
            inputs = self._codes(w)
            x = x.astype(jnp.promote_types(x.dtype, dtype))  # y is rounded to x's dtype
            with _naming(w.name):
                y = w.product(x, summed, batched, functools.partial(self._product, inputs))
            if y is not None:
                return y.astype(dtype)
            self._stays_in_float(w, "a product sums over its outputs")
        return super().product(x, w, summed, batched, dtype)

    def _sums(self, x, packed, *, transpose):
        """Sums of codes by codes; None of the transposed weight."""
        if transpose:
            return None
        packed = packed.replace(scales=jnp.ones(packed.matrix_shape[1], jnp.float32))
        return int8_dot(
            x,
            packed,
            scale=1.0,
            preferred_element_type=jnp.int32,
            implementation=self.implementation,
        ).reshape(x.shape[0], -1)

    def _product(self, inputs, x, packed, *, transpose):
        if transpose:
            return None
        x = x.reshape(*x.shape[:-1], *packed.input_shape)
        y = linear(x, packed, inputs, implementation=self.implementation)
        return y.reshape(x.shape[0], -1)

    def _has_codes(self, w):
        if self._inputs is None or w.name in self._inputs:
            return True
        self._stays_in_float(w, "inputs has no codes for it")
        return False

    def _codes(self, w):
        self._used.add(w.name)
        return None if self._inputs is None else self._inputs[w.name]

    def _stays_in_float(self, w, why):
        if w.name in self._in_float:
            return
        self._in_float.add(w.name)
        message = f"sparsify: {w.name} {w.packed} is multiplied in floating point: {why}"
        if self._on_float == "error":
            raise ValueError(f"{message}; on_float='ignore' would let it")
        if self._on_float == "warn":
            warnings.warn(message, stacklevel=2)

    def _done(self, value, out=None):
        """The array that a product stands for, or its codes."""
        if not isinstance(value, _Pending):
            return value
        with _naming(value.name):
            y = linear(
                value.x,
                value.weight,
                value.inputs,
                bias=value.bias,
                activation=value.activation,
                out=out,
                implementation=self.implementation,
            ).reshape(value.shape)
        return y if out is not None else y.astype(value.dtype)

    @_absorbs("dot_general")
    def _dot_general(self, equation, x, w):
        if not isinstance(w, StandIn) or isinstance(x, StandIn) or not _is_quantized(w.packed):
            return None
        rank, plain = len(x.shape), StandIn.of(w.packed, w.name)
        last = (((rank - 1,), (0,)), ((), ()))
        if equation.params["dimension_numbers"] != last or w.axes != plain.axes:
            return None
        if len(w.axes) != 2 or w.inputs != w.axes[0] or w.outputs != w.axes[1]:
            return None
        if not jnp.issubdtype(x.dtype, jnp.floating) or not self._has_codes(w):
            return None
        out, inputs = equation.outvars[0].aval, self._codes(w)
        handed = isinstance(x, _Pending) and inputs is not None and self._hand_on
        x = self._done(x, inputs if handed else None)
        if jnp.issubdtype(x.dtype, jnp.floating):
            x = x.astype(jnp.promote_types(x.dtype, out.dtype))  # y is rounded to x's dtype
        return _Pending(x, w.packed, inputs, None, w.name, None, out.shape, out.dtype)

    @_absorbs("add")
    def _add(self, equation, a, b):
        product, bias = (a, b) if isinstance(a, _Pending) else (b, a)
        if not isinstance(product, _Pending) or isinstance(bias, StandIn | _Pending):
            return None
        if product.bias is not None or product.activation is not None:
            return None
        columns = product.shape[-1]
        if np.ndim(bias) == 0 or bias.shape[-1] != columns or bias.size != columns:
            return None
        return dataclasses.replace(product, bias=bias.reshape(columns))

    @_absorbs("max")
    def _max(self, equation, a, b):
        product, least = (a, b) if isinstance(a, _Pending) else (b, a)
        known = isinstance(least, np.ndarray | np.generic | int | float)
        if not isinstance(product, _Pending) or not known or np.any(np.asarray(least) != 0):
            return None
        return dataclasses.replace(product, activation="relu")


@contextlib.contextmanager
def _naming(path):
    """Errors of a product with the path of its weight."""
    try:
        yield
    except (TypeError, ValueError) as error:
        kind = TypeError if isinstance(error, TypeError) else ValueError
        raise kind(f"sparsify: {path!r}: {error}") from error


def _is_quantized(packed):
    return packed.values.dtype == jnp.int8 and packed.scales is not None


def _read_several_times(jaxpr):
    """Variables of a program, and of those in it, that more than one equation or result reads."""
    counts, seen = collections.Counter[Any](), set[int]()
    inner = [jaxpr]
    while inner:
        here = inner.pop()
        if id(here) in seen:  # two equations may run one program
            continue
        seen.add(id(here))
        read = [*(atom for e in here.eqns for atom in e.invars), *here.outvars]
        counts.update(atom for atom in read if not isinstance(atom, core.Literal))
        inner += [program for e in here.eqns for program, _ in jaxprs.programs(e)]
    return {variable for variable, count in counts.items() if count > 1}
