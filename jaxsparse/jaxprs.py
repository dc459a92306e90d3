"""Traced programs and a walk over them: what `sparsify`, `products` and the graph stand on."""

import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import jax
from jax.extend import core, source_info_util

Program = tuple[Any, Sequence[Any]]  # an open jaxpr and the values of its constants
Visit = Callable[[Any, list[Any]], Sequence[Any]]
T = TypeVar("T")

# Folders of code that a user did not write.
LIBRARIES = tuple(str(pathlib.Path(file).parent) for file in (jax.__file__, __file__))
CONTROL = ("scan", "while", "cond")
# By primitive the parameters that hold the programs which it runs. All but CONTROL run one
# program once, on the operands they have.
_PROGRAMS = {
    "scan": ("jaxpr",),
    "while": ("cond_jaxpr", "body_jaxpr"),
    "cond": ("branches",),
    "jit": ("jaxpr",),
    "pjit": ("jaxpr",),
    "closed_call": ("call_jaxpr",),
    "core_call": ("call_jaxpr",),
    "checkpoint": ("jaxpr",),
    "remat2": ("jaxpr",),
    "custom_jvp_call": ("call_jaxpr",),
    "custom_vjp_call": ("call_jaxpr",),
    "custom_vjp_call_jaxpr": ("fun_jaxpr",),
}

# Primitives that map every entry alike: operands are of one shape, or scalars.
ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e cbrt ceil
    clamp clz complex conj convert_element_type copy copy_p cos cosh digamma div eq eq_to erf
    erf_inv erfc exp exp2 expm1 floor ge gt igamma igammac imag integer_pow is_finite le le_to
    lgamma log log1p log2 logistic lt lt_to max min mul mulhi name ne neg nextafter not
    one_minus_square or polygamma polynomial population_count pow real reduce_precision
    regularized_incomplete_beta rem round rsqrt select_n shift_left shift_right_arithmetic
    shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh xor zeta
"""
# One result for every operand, each as its operand is.
IDENTITIES = """
    device_put optimization_barrier reshard sharding_constraint layout_constraint pvary
"""


def table(rules: dict[str, Any]) -> Callable[[str], Callable[[T], T]]:
    """The decorator that enters a function into a table of rules, under names of primitives.

    >>> rules = {}
    >>> rule = table(rules)
    >>> @rule("exp log")
    ... def elementwise(x):
    ...     return x
    >>> sorted(rules)
    ['exp', 'log']
    """

    def rule(names: str) -> Callable[[T], T]:
        def enter(function: T) -> T:
            rules.update(dict.fromkeys(names.split(), function))
            return function

        return enter

    return rule


def walk(program: Program, args: Sequence[Any], visit: Visit) -> list[Any]:
    """Evaluates a program with values of any kind.

    Args:
      program: an open jaxpr, and the values of its constants.
      args: values of its arguments.
      visit: called as visit(equation, values of its operands) for every equation
        in order; returns the values of its results.

    Returns:
      The values of the program's results.
    """
    jaxpr, consts = program
    values = dict(zip((*jaxpr.constvars, *jaxpr.invars), (*consts, *args), strict=True))

    def read(atom):
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        results = visit(equation, [read(atom) for atom in equation.invars])
        values.update(zip(equation.outvars, results, strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def bind(equation, operands: Sequence[Any]) -> list[Any]:
    """Computes an equation as JAX would, on arrays and tracers."""
    params = equation.primitive.get_bind_params(equation.params)
    with equation.ctx.manager:
        results = equation.primitive.bind(*operands, **params)
    return list(results) if equation.primitive.multiple_results else [results]


def opened(jaxpr) -> Program:
    """A jaxpr, closed or open, and its constants."""
    return (jaxpr.jaxpr, jaxpr.consts) if isinstance(jaxpr, core.ClosedJaxpr) else (jaxpr, ())


def programs(equation) -> list[Program]:
    """The programs that an equation runs: of `while` condition and body, of `cond` the branches."""
    found = []
    for name in _PROGRAMS.get(equation.primitive.name, ()):
        held = equation.params.get(name, ())
        found += held if isinstance(held, tuple) else [held]
    return [opened(jaxpr) for jaxpr in found]


def equations(jaxpr) -> Iterator[Any]:
    """Every equation of a jaxpr, and after it those of the programs that it runs."""
    for equation in opened(jaxpr)[0].eqns:
        yield equation
        for program, _ in programs(equation):
            yield from equations(program)


def where(equation) -> str:
    """The place that an equation comes from, in code that is neither JAX's nor ours."""
    stack = equation.source_info.traceback
    for frame in stack.frames if stack else ():
        if not frame.file_name.startswith(LIBRARIES):
            return f"{frame.file_name}:{frame.line_num} ({frame.function_name})"
    return source_info_util.summarize(equation.source_info)


def split_loop(equation, operands: Sequence[T]) -> tuple[list[T], list[T], list[T], list[T]]:
    """The operands of a `while` or `scan`.

    Returns:
      Constants of the condition, constants of the body, the carry, and what `scan` takes
      slices of.
    """
    params, operands = equation.params, list(operands)
    if equation.primitive.name == "while":
        first, second, third = params["cond_nconsts"], params["body_nconsts"], len(operands)
    elif "ft_in" in params:  # jax 0.11 and later
        first, (second, third) = 0, [len(part) for part in params["ft_in"].unpack()][:2]
    else:
        first, second, third = 0, params["num_consts"], params["num_carry"]
    second += first
    third += second
    return operands[:first], operands[first:second], operands[second:third], operands[third:]


def trace(
    function: Callable[[Any], Any], tree: Any, leaves: Sequence[Any], shapes: Mapping[int, Any]
) -> tuple[Program, Any]:
    """Traces a function of a tree of which some leaves are arrays; the others are constants.

    Args:
      function: of the tree.
      tree: its structure.
      leaves: its leaves.
      shapes: of those that are arrays, by their place among the leaves.

    Returns:
      The program, of these arrays; and the structure of what the function returns, which the
      program does as leaves.
    """
    structure = None

    def flat(*arrays):
        nonlocal structure
        given = dict(zip(shapes, arrays, strict=True))
        whole = jax.tree.unflatten(tree, [given.get(i, leaf) for i, leaf in enumerate(leaves)])
        outputs, structure = jax.tree.flatten(function(whole))
        return outputs

    return opened(jax.make_jaxpr(flat)(*shapes.values())), structure
