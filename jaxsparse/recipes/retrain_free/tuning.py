"""Mask tuning: kept units are scaled so that layers add up to what they did, by least squares."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxsparse.calibration import Site, sites
from jaxsparse.graph import Member, StructuredGroup
from jaxsparse.recipes.retrain_free.contributions import Contributions, Read
from jaxsparse.recipes.retrain_free.fisher import as_tuple
from jaxsparse.recipes.retrain_free.readers import readers, scaled
from jaxsparse.trees import Tree, any_of

LIMIT = 10.0  # a scale beyond it says that the least squares are ill posed


def rescale(
    products: Float[np.ndarray, "n n"], wanted: Float[np.ndarray, " n"]
) -> Float[np.ndarray, " n"]:
    """Scales by which contributions add up to what is wanted, held near 1.

    With M = AᵀA of the contributions A and b = Aᵀy of what is wanted

        s = 1 + argmin over x of |M x - (b - M 1)|² + |x|²

    The damping acts on M, not on A. One unit is b / M.

    Args:
      products: M.
      wanted: b.

    Example:
      >>> rescale(np.array([[383.0]]), np.array([-14.7])).round(4).tolist()
      [-0.0384]

    References:
      Kwon et al. 2022, arXiv 2204.09656, section 4.4, as its code solves it.
    """
    if len(wanted) == 1:
        return wanted / products[0] if products[0] else np.ones(1)
    values, vectors = np.linalg.eigh(products)
    rest = vectors.T @ (wanted - products.sum(1))
    return 1 + vectors @ (values / (values * values + 1) * rest)


def tuned_scales(
    fn: Callable[..., Any],
    params: Tree,
    batches: Iterable[tuple[Any, Any]],
    groups: Sequence[StructuredGroup],
    kept: Mapping[str, Bool[np.ndarray, " units"]],
    teacher: Mapping[str, Bool[np.ndarray, " units"]],
    untuned: Sequence[str] = (),
) -> tuple[dict[str, Float[np.ndarray, " units"]], dict[str, str]]:
    """A scale for every unit, group by group in the order in which units are read.

    A group's scales are those with which its kept units, as they are when all groups before are
    pruned and scaled, come nearest to what the readers make of the teacher's units, in all
    batches (`rescale`). Of heads a constant is fitted too, and dropped, as in the source.
    Residual streams are not part of the target.

    Args:
      fn, params, batches: the model and its data; targets are not looked at.
      groups: in that order.
      kept: the units that stay.
      teacher: the units of the model that is imitated.
      untuned: names of groups that are left at 1.

    Returns:
      By name the scales, 0 for units that go; and by name of a group that was left at 1 why.
    """
    scales = {name: np.asarray(units, np.float64) for name, units in kept.items()}
    left: dict[str, str] = {}
    given = [as_tuple(inputs) for inputs, _ in batches]
    paths = [member.path for group in groups for member in readers(group)]
    found = sites(fn, params, *given[0], paths=any_of(paths))
    met = Contributions(fn, params, scaled(params, groups, teacher), given, paths)
    for group in groups:
        if group.name in untuned:
            left[group.name] = "left out by untuned="
            continue
        reads = _reads(group, found)
        if isinstance(reads, str):
            left[group.name] = f"what {reads!r} meets is not seen as it stands in the parameters"
            continue
        units, theirs = np.flatnonzero(kept[group.name]), np.flatnonzero(teacher[group.name])
        student = scaled(params, groups, scales)
        try:
            products, wanted = met.normal_equations(
                student, reads, units, theirs, constant=group.kind == "heads"
            )
        except ValueError as error:  # what a reader meets cannot be told: `observe` says why
            left[group.name] = str(error)
            continue
        best = rescale(products, wanted)[: len(units)]
        if not np.isfinite(best).all() or np.abs(best).max() > LIMIT:
            left[group.name] = f"scales up to {np.abs(best).max():.3g} were beyond {LIMIT:g}"
            continue
        scales[group.name][units] = best
    return scales, left


def _reads(group: StructuredGroup, found: Sequence[Site]) -> list[Read] | str:
    """How each reader sums over the units; the path of one of which that is not known."""
    reads = []
    for member in readers(group):
        of_path = [site for site in found if site.path == member.path]
        if len(of_path) != 1 or member.axis not in of_path[0].in_axis:
            return member.path
        [site] = of_path
        if site.altered or site.mixed:
            return member.path
        reads.append(Read(site, _inputs(member, site, group.units)))
    return reads


def _inputs(member: Member, site: Site, units: int) -> Int[np.ndarray, "units each"]:
    """The inputs of the site, numbered as its flattened `in_axis`, that each unit is."""
    sizes, at = [site.shape[axis] for axis in site.in_axis], site.in_axis.index(member.axis)
    numbers = np.arange(site.inputs).reshape(sizes)
    return np.moveaxis(np.take(numbers, member.positions(units), axis=at), at, 0).reshape(units, -1)
