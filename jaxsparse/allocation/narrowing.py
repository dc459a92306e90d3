"""`narrow`: masks of whole units for the number that each group is to keep."""

import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from jaxsparse.graph import Structure, StructuredGroup
from jaxsparse.graph.hosts import whole
from jaxsparse.trees import Tree, leaves_by_path, near_misses

Scores = dict[str, Float[np.ndarray, " units"]]
Score = (
    Literal["l2", "l1"] | Callable[[StructuredGroup, Mapping[str, Array]], Float[Array, " units"]]
)


def narrow(
    structure: Structure,
    params: Tree,
    widths: Mapping[str, int],
    *,
    score: Score = "l2",
) -> dict[str, Bool[Array, "..."]]:
    """Masks that keep so many units of each group: those whose writing weights are largest.

    A unit goes from every leaf that it lies in: the kernels that write and read it, depthwise
    ones between them, biases and norms beside them. `js.graph.shrink` then removes it.

    Args:
      structure: the units, `js.graph.structure(fn, params, *inputs)`.
      params: the model's weights; numbers, no shapes.
      widths: how many units are kept, by name of the group. Groups that are not named are whole.
      score: as in `unit_scores`.

    Returns:
      bool masks by path, of all leaves that units lie in, whatever the widths: a program that
      takes them is compiled once.

    Raises:
      ValueError: a width of no group, or outside of 1 to its units; and as `unit_scores`.
      TypeError: a width that is no whole number; and as `unit_scores`.

    Example:
      >>> import jaxsparse as js
      >>> def mlp(params, x):
      ...     return jnp.tanh(x @ params["up"]) @ params["down"]
      >>> params = {"up": jnp.array([[1.0, -3.0, 2.0, 2.0]]), "down": jnp.ones((4, 2))}
      >>> structure = js.graph.structure(mlp, params, jnp.ones((5, 1)))
      >>> masks = js.allocation.narrow(structure, params, {"up, down": 2})
      >>> masks["up"].tolist(), masks["down"].any(axis=1).tolist()
      ([[False, True, True, False]], [False, True, True, False])

    References:
      Yang et al. 2018, arXiv 1804.03230: filters with the largest L2 norm stay.
    """
    check_widths(structure, widths)
    return unit_masks(
        structure, params, keep_largest(unit_scores(structure, params, score), widths)
    )


def unit_scores(structure: Structure, params: Tree, score: Score = "l2") -> Scores:
    """How large every unit is, by name of its group.

    Args:
      structure, params: as in `narrow`.
      score: "l2", the norm of all weights that write the unit together; "l1", the sum of their
        absolute values; or a function of a group and the leaves by path that gives a number
        for each of its units.

    Returns:
      A float64 vector for each group.

    Raises:
      ValueError: for another word, scores of another shape, and NaN or infinite ones.
      TypeError: for parameters of which only the shapes are given, and complex scores.
      KeyError: for a structure of other parameters.

    Example:
      >>> from jaxsparse.graph import Member, Structure, StructuredGroup
      >>> group = StructuredGroup("mlp", "neurons", 2, (
      ...     Member("up", 1, 2, "writes"), Member("down", 0, 2, "reads")))
      >>> params = {"up": jnp.array([[3.0, 1.0], [-4.0, 1.0]]), "down": jnp.ones((2, 1))}
      >>> unit_scores(Structure((group,)), params, "l1")["mlp"].tolist()
      [7.0, 2.0]
    """
    if not callable(score) and score not in ("l2", "l1"):
        raise ValueError(
            f"narrow: score={score!r}; 'l2', 'l1' or a function of a group and the leaves by path "
            "would work"
        )
    leaves = leaves_by_path(params)
    found = {}
    for group in structure.groups:
        _check_leaves(group, leaves)
        scores = np.asarray(
            score(group, leaves) if callable(score) else _norms(score, group, leaves)
        )
        if np.iscomplexobj(scores):
            raise TypeError(
                f"narrow: the score of {group.name!r} is of {scores.dtype}, which has no order; "
                "absolute values would work"
            )
        scores = scores.astype(np.float64)
        if scores.shape != (group.units,):
            raise ValueError(
                f"narrow: the score of {group.name!r} has shape {scores.shape}; ({group.units},), "
                f"a number for each of its {group.kind}, would work"
            )
        if not np.isfinite(scores).all():
            writers = ", ".join(str(member) for member in group.weights if member.role == "writes")
            raise ValueError(
                f"narrow: {(~np.isfinite(scores)).sum()} of {group.units} scores of "
                f"{group.name!r}, written by {writers}, are NaN or infinite; finite ones would work"
            )
        found[group.name] = scores
    return found


def keep_largest(
    scores: Mapping[str, Float[np.ndarray, " units"]], widths: Mapping[str, int]
) -> dict[str, Bool[np.ndarray, " units"]]:
    """Which units have the largest scores; of equal ones those of the lower numbers.

    >>> keep_largest({"a": np.array([1.0, 3.0, 1.0])}, {"a": 2})["a"].tolist()
    [True, True, False]
    """
    kept = {}
    for name, found in scores.items():
        kept[name] = np.zeros(found.size, bool)
        kept[name][np.argsort(-found, kind="stable")[: widths.get(name, found.size)]] = True
    return kept


def unit_masks(
    structure: Structure, params: Tree, kept: Mapping[str, Bool[Array | np.ndarray, " units"]]
) -> dict[str, Bool[Array, "..."]]:
    """Masks that keep these units of each group; groups that are not named are whole.

    Which units are kept may be traced, so that it runs inside `jit`.

    Args:
      structure: the units.
      params: the model's weights, shapes are enough.
      kept: by name of a group, whether each unit stays.

    Returns:
      bool masks by path, of all leaves that units lie in.

    Example:
      >>> from jaxsparse.graph import Member, Structure, StructuredGroup
      >>> group = StructuredGroup("mlp", "neurons", 2, (
      ...     Member("up", 1, 2, "writes"), Member("down", 0, 2, "reads")))
      >>> params = {"up": jnp.ones((1, 2)), "down": jnp.ones((2, 1))}
      >>> masks = unit_masks(Structure((group,)), params, {"mlp": np.array([True, False])})
      >>> masks["up"].tolist(), masks["down"].tolist()
      ([[True, False]], [[True], [False]])
    """
    leaves, masks = leaves_by_path(params), {}
    for group in structure.groups:
        stays = jnp.asarray(kept.get(group.name, np.ones(group.units, bool)))
        for member in group.members:
            # A layer between two others has units on both of its axes.
            mask = masks.get(member.path)
            mask = jnp.ones(jnp.shape(leaves[member.path]), bool) if mask is None else mask
            masks[member.path] = mask & member.spread(stays, mask)
    return masks


def check_widths(structure: Structure, widths: Mapping[str, Any], what: str = "widths") -> None:
    """Raises a ValueError or TypeError on widths that the groups of a structure cannot have.

    Args:
      structure: the units.
      widths: by name of a group.
      what: the argument, which an error begins with.
    """
    if not isinstance(structure, Structure) or not isinstance(widths, Mapping):
        raise TypeError(
            f"{what}: {type(widths).__name__}, of {type(structure).__name__}; a number of units by "
            "name of a group, of js.graph.structure(fn, params, *inputs), would work"
        )
    groups = {group.name: group for group in structure.groups}
    for name, width in widths.items():
        if name not in groups:
            raise ValueError(
                f"{what}: {name!r} is no group of units that can go: residual streams are none, "
                f"nor is what inputs, outputs or other operations pin; {near_misses(name, groups)}"
            )
        if isinstance(width, bool) or not isinstance(width, numbers.Integral):
            raise TypeError(f"{what}: {name!r} keeps {width!r}; a whole number of units would work")
        if not 1 <= int(width) <= groups[name].units:
            raise ValueError(
                f"{what}: {name!r} keeps {width} of {groups[name].units} {groups[name].kind}; 1 to "
                f"{groups[name].units} would work"
            )


def chosen_groups(
    structure: Structure, names: Sequence[str] | None, caller: str
) -> tuple[StructuredGroup, ...]:
    """The groups of these names in the order of the model, by default all.

    Raises:
      ValueError: a name of no group, no names at all, and a model without groups.
      TypeError: one string in the place of a list.
    """
    if not structure.groups:
        raise ValueError(
            f"{caller}: the model has no heads, neurons or channels that weights alone read; "
            "js.graph.channels tells what holds them"
        )
    if names is None:
        return structure.groups
    if isinstance(names, str):
        raise TypeError(f"{caller}: groups={names!r} is no list; [{names!r}] would work")
    check_widths(structure, dict.fromkeys(names, 1), f"{caller}: groups")
    if not names:
        known = ", ".join(repr(group.name) for group in structure.groups)
        raise ValueError(f"{caller}: groups={names!r} is empty; of {known} some would work")
    return tuple(group for group in structure.groups if group.name in names)


def _check_leaves(group: StructuredGroup, leaves: Mapping[str, Array]) -> None:
    for member in group.members:
        if member.path not in leaves:
            raise KeyError(
                f"narrow: {group.name!r} lies in {member.path!r}, and the parameters have no such "
                f"leaf; {near_misses(member.path, leaves)}"
            )
        leaf = leaves[member.path]
        if isinstance(leaf, jax.ShapeDtypeStruct):
            raise TypeError(
                f"narrow: {member.path!r} is {leaf}, a shape: which units are largest is asked of "
                "the numbers, so arrays would work"
            )
        shape = jnp.shape(leaf)
        if shape[member.axis : member.axis + 1] != (member.axis_size,):
            raise ValueError(
                f"narrow: {member.path!r} has shape {shape}, and {group.name!r} has "
                f"{member.axis_size} positions on axis {member.axis} of it; the structure of these "
                "parameters would work"
            )


def _norms(
    score: str, group: StructuredGroup, leaves: Mapping[str, Array]
) -> Float[np.ndarray, " units"]:
    """The norms of all weights that write a unit, in float64, whose squares do not overflow."""
    total = np.zeros(group.units)
    for member in group.weights:
        if member.role == "writes":
            weight = whole(leaves[member.path])
            weight = np.abs(
                weight.astype(np.complex128 if weight.dtype.kind == "c" else np.float64)
            )
            others = tuple(axis for axis in range(weight.ndim) if axis != member.axis)
            entries = (weight**2 if score == "l2" else weight).sum(others)
            total += entries[member.positions(group.units)].sum(1)
    return np.sqrt(total) if score == "l2" else total
