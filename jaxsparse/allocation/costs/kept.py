"""How many entries masks keep: whole groups of a pattern, never fewer than they do."""

import math
from collections.abc import Sequence

from jaxsparse.patterns.rules import LeafSpec, Rule, check_rules, resolve
from jaxsparse.pruning.distributions import known_target
from jaxsparse.trees import Tree


def open_specs(rules: Sequence[Rule], params: Tree) -> dict[str, LeafSpec]:
    """By path what rules say of the leaves whose sparsity they leave open."""
    specs = resolve(check_rules(rules), params)
    return {path: spec for path, spec in specs.items() if known_target(spec) is None}


def entries_of(spec: LeafSpec, groups: int) -> int:
    """How many entries so many groups of a kernel have at most, as those at its edges have fewer.

    >>> import jax
    >>> from jaxsparse import Block, Rule
    >>> from jaxsparse.patterns.rules import resolve
    >>> spec = resolve([Rule("w", Block(4, 4, pad=True))], {"w": jax.numpy.ones((4, 6))})["w"]
    >>> spec.units, entries_of(spec, 1), entries_of(spec, 2)
    (2, 16, 24)
    """
    return min(groups * spec.pattern.group_size(spec.view), math.prod(spec.view.matrix_shape))


def kept_entries(spec: LeafSpec, density: float) -> int:
    """How many entries of a leaf masks of a density keep at most, all its kernels together.

    Where a density is half-way between two numbers of groups the larger counts.
    """
    return math.prod(spec.view.batch_shape) * entries_of(spec, spec.kept(pruned_share(density)))


def pruned_share(density: float) -> float:
    """The sparsity that a density stands for, at least 0 and rather too small.

    1 - (1 - s) is not s to the last bit, and s n may be half-way between two numbers.
    """
    return max(1 - float(density) - 2**-52, 0.0)
