"""The channel rules against another's: Shardy's factors of every operation that it knows.

Shardy, which shards the programs of JAX, says of an operation which axes of its operands and
results are cut together: an axis is a product of factors, and axes that share a factor share
their channels. A factor that is a `permutation` (a slice, a window) or needs replication (a
sort) must stay in its order. It was written by others, for another end.
"""

import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jaxlib.mlir import passmanager

from jaxsparse import jaxprs
from jaxsparse.graph.analysis.registry import CHANNELS
from jaxsparse.graph.analysis.trace import Analysis

POPULATE = "builtin.module(func.func(sdy-populate-op-sharding-rules))"
A = (4, 6)


def conv(groups, batches=1, padding="SAME"):
    def fn(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), padding, feature_group_count=groups, batch_group_count=batches
        )

    return fn


ROWS = lax.GatherDimensionNumbers((1,), (0,), (0,))
WRITE = lax.ScatterDimensionNumbers((1,), (0,), (0,))
SCATTERS = {
    "scatter": lax.scatter,
    "scatter-add": lax.scatter_add,
    "scatter-max": lax.scatter_max,
    "scatter-min": lax.scatter_min,
    "scatter-mul": lax.scatter_mul,
}
INDICES = np.array([[1], [0], [2]])
WINDOW = ((2, 1), (2, 1), "VALID")

CASES = {  # by primitive: programs of it alone, with the shapes of their operands
    "transpose": [(lambda a: a.transpose(2, 0, 1), (2, 3, 5))],
    "squeeze": [(lambda a: lax.squeeze(a, (1,)), (4, 1, 6))],
    "broadcast_in_dim": [
        (lambda a: lax.broadcast_in_dim(a, (5, 4, 6), (1, 2)), A),
        (lambda a: lax.broadcast_in_dim(a, (4, 6, 5), (0, 1)), (4, 1)),
    ],
    "reshape": [
        (lambda a: a.reshape(24), A),
        (lambda a: a.reshape(4, 2, 3), A),
        (lambda a: a.reshape(2, 2, 1, 6), A),
        (lambda a: a.reshape(2, 15, 7), (2, 3, 5, 7)),
        (lambda a: a.reshape(2, 6, 5), (4, 3, 5)),
    ],
    "slice": [
        (lambda a: lax.slice(a, (0, 1), (4, 5)), A),
        (lambda a: lax.slice(a, (0, 0), (4, 6), (1, 2)), A),
    ],
    "pad": [
        (lambda a: lax.pad(a, jnp.zeros(()), ((0, 0, 0), (1, 2, 0))), A),
        (lambda a: lax.pad(a, jnp.zeros(()), ((0, 0, 0), (0, 0, 1))), A),
    ],
    "rev": [(lambda a: lax.rev(a, (1,)), A)],
    "sort": [(lambda a: lax.sort(a, dimension=0), A)],
    "select_n": [(lambda a, b: lax.select_n(a > 0, a, b), A, A)],
    "clamp": [(lambda a, b, c: lax.clamp(a, b, c), A, A, A)],
    "convert_element_type": [(lambda a: a.astype(jnp.bfloat16), A)],
    "bitcast_convert_type": [
        (lambda a: lax.bitcast_convert_type(a, jnp.int32), A),
        (lambda a: lax.bitcast_convert_type(a, jnp.int16), A),
    ],
    "reduce_precision": [(lambda a: lax.reduce_precision(a, 5, 10), A)],
    "dot_general": [
        (lambda a, b: a @ b, A, (6, 5)),
        (lambda a, b: jnp.einsum("bqhd,bkhd->bhqk", a, b), (2, 3, 5, 7), (2, 11, 5, 7)),
        (lambda a, b: jnp.einsum("bnh,nhd->bd", a, b), (2, 3, 5), (3, 5, 7)),
    ],
    "conv_general_dilated": [
        (conv(1), (2, 3, 8, 8), (5, 3, 3, 3)),
        (conv(2), (2, 6, 8, 8), (10, 3, 3, 3)),
        (conv(6), (2, 6, 8, 8), (6, 1, 3, 3)),
        (conv(1, 2), (4, 3, 8, 8), (10, 3, 3, 3)),
        (conv(1, padding="VALID"), (2, 3, 1, 1), (5, 3, 1, 1)),
    ],
    "reduce_sum": [(lambda a: lax.reduce_sum_p.bind(a, axes=(1,), out_sharding=None), (2, 3, 5))],
    "reduce_max": [(lambda a: lax.reduce_max_p.bind(a, axes=(0,), out_sharding=None), (2, 3, 5))],
    "reduce_min": [(lambda a: lax.reduce_min_p.bind(a, axes=(0,), out_sharding=None), (2, 3, 5))],
    "reduce_prod": [(lambda a: jnp.prod(a, (0, 2)), (2, 3, 5))],
    "reduce_window_max": [(lambda a: lax.reduce_window(a, -jnp.inf, lax.max, *WINDOW), (8, 5))],
    "reduce_window_min": [(lambda a: lax.reduce_window(a, jnp.inf, lax.min, *WINDOW), (8, 5))],
    "reduce_window_sum": [(lambda a: lax.reduce_window(a, 0.0, lax.add, *WINDOW), (8, 5))],
    "gather": [
        (lambda a: lax.gather(a, INDICES, ROWS, (1, 6)), A),
    ],
    **{
        name: [(lambda a, u, f=scatter: f(a, INDICES, u, WRITE), A, (3, 6))]
        for name, scatter in SCATTERS.items()
    },
    "dynamic_slice": [(lambda a: lax.dynamic_slice(a, (jnp.int32(1), jnp.int32(0)), (2, 6)), A)],
    "dynamic_update_slice": [
        (lambda a, b: lax.dynamic_update_slice(a, b, (jnp.int32(1), jnp.int32(0))), A, (2, 6))
    ],
}
# Shardy also cuts axes along which positions are looked up or written to, for an index finds
# its place among the parts. Channels there stay. (operand, axis), pinned here.
INDEXED = {
    "gather": ((0, 0),),
    "dynamic_update_slice": ((0, 0),),
    # Where two updates meet, the last may win.
    **dict.fromkeys(SCATTERS, ((0, 0), (1, 0))),
}


def unary_and_binary():
    """The elementwise primitives of one operand or two, each with the operands that it takes."""
    primitives = {n: getattr(lax, f"{n}_p", None) for n in jaxprs.ELEMENTWISE.split()}
    ways = list(itertools.product((jnp.int32, jnp.float32), (1, 2), ({}, {"accuracy": None})))
    for name in (name for name, primitive in primitives.items() if primitive is not None):
        for dtype, count, params in ways:
            fn = functools.partial(primitives[name].bind, **params)
            arguments = [jax.ShapeDtypeStruct(A, dtype)] * count
            try:
                jax.jit(fn).lower(*arguments)
            except Exception:  # not so many operands, not of this dtype, other parameters
                continue
            yield name, (fn, arguments)


def theirs(fn, arguments):
    """By Shardy, the places (array, axis, stride) that share a factor which may be permuted.

    Arrays are numbered, the arguments first. None of what is no operation, or several, and
    of an operation that Shardy does not know.
    """
    module = jax.jit(fn).lower(*arguments).compiler_ir("stablehlo")
    with module.context:
        passmanager.PassManager.parse(POPULATE).run(module.operation)
        block = module.body.operations[0].regions[0].blocks[0]
        *before, done = block.operations
        operation = before[-1] if before else done
        if "sdy.sharding_rule" not in operation.attributes:
            return None
        text = str(operation.attributes["sdy.sharding_rule"])
        given = [
            next((i for i, argument in enumerate(block.arguments) if argument == value), None)
            for value in operation.operands
        ]
        assert list(done.operands) == list(operation.results)
    if not set(range(len(block.arguments))) <= set(given):
        return None  # several operations
    mappings, sizes, fixed = re.fullmatch(r".*?<(.*) \{([^{}]*)\}(.*)>", text).groups()
    operands, results = (re.findall(r"\[([^\]]*)\]", part) for part in mappings.split("->"))
    sizes = {name: int(n) for name, n in re.findall(r"(\w+)=(\d+)", sizes)}
    held = re.findall(r"(?:permutation|need_replication|blocked_propagation)=\{([^}]*)\}", fixed)
    held = {name.strip() for names in held for name in names.split(",")}
    numbers = [*given, *range(len(block.arguments), len(block.arguments) + len(results))]
    places = {}
    for number, tensor in zip(numbers, (*operands, *results), strict=True):
        for axis, factors in enumerate(tensor.split(", ") if tensor else ()):
            names = re.findall(r"[a-z](?:_\d+)?", factors)
            for i, name in enumerate(names):
                stride = int(np.prod([sizes[n] for n in names[i + 1 :]], dtype=int))
                if number is not None and sizes[name] != 1:
                    places.setdefault(name, set()).add((number, axis, stride))
    return {frozenset(where) for name, where in places.items() if name not in held}


class Open(Analysis):
    """An analysis in which what the function returns is free."""

    def _output(self, value):
        pass


def ours(fn, arguments):
    """The same of the channel graph."""
    analysis = Open(lambda arrays: fn(*arrays), list(arguments), (), removal=True)
    terms, places, parts = analysis.terms, {}, set()
    for number, value in enumerate((*analysis.leaves.values(), *analysis.walked.results)):
        for axis, term in enumerate(value.axes):
            pieces = terms.pieces(term)
            for piece in pieces:
                for factor in piece.factors:
                    if factor.cause is None:
                        where = number, axis, factor.stride
                        places.setdefault(factor.atom, set()).add(where)
                    if len(pieces) > 1:  # Shardy knows no sums: it calls them permutations
                        parts.add(factor.atom)
    return {frozenset(where) for atom, where in places.items() if atom not in parts}


def compare(name, fn, arguments):
    expected = theirs(fn, arguments)
    if expected is None:
        return False
    indexed = INDEXED.get(name, ())
    expected = {w for w in expected if not any(place[:2] in indexed for place in w)}
    assert ours(fn, arguments) == expected
    return True


@pytest.mark.parametrize(
    "name,case", [(name, i) for name in CASES for i in range(len(CASES[name]))]
)
def test_axes_move_together_as_shardy_says(name, case):
    fn, *shapes = CASES[name][case]
    assert compare(name, fn, [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes])


def test_elementwise_primitives_as_shardy_says():
    cases = dict(unary_and_binary())
    known = {name for name, case in cases.items() if compare(name, *case)}
    assert len(known) > 40, known


# Several operations, or none that Shardy knows; of iota and concatenate it says other things.
APART = """
    argmax argmin concatenate cumlogsumexp cummax cummin cumprod cumsum iota random_bits reduce
    reduce_and reduce_or reduce_window reduce_xor scatter-sub split stack tile top_k unstack
"""


def test_no_rule_is_left_out():
    known = {*CASES, *jaxprs.ELEMENTWISE.split(), *jaxprs.IDENTITIES.split()}
    assert set(CHANNELS) - known == set(APART.split())
