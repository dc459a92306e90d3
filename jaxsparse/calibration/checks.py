"""What `prune_oneshot` refuses, before and after it has seen what kernels meet."""

import itertools
import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from jaxsparse.calibration.pieces import Unit
from jaxsparse.calibration.reducers import Reducer, statistics
from jaxsparse.calibration.site import Site
from jaxsparse.calibration.straight import Line
from jaxsparse.patterns.rules import LeafSpec
from jaxsparse.trees import Tree, leaves_by_path

SMALLEST = 1e-18  # its square is still a normal float32
LARGEST = 1e32  # of a sum of squares, so that a few thousand of them are a float32, too
LEAST_WEIGHT = 1e-30  # what is 24 bits below it is still a normal float32


def check_batches(batches: Sequence[tuple[Any, ...]]) -> None:
    """Refuses none, and NaN in one."""
    if not batches:
        raise ValueError("prune_oneshot: no batches; one tuple of arrays would work")
    for number, batch in enumerate(batches):
        for path, leaf in leaves_by_path(batch).items():
            if not hasattr(leaf, "dtype") or not jnp.issubdtype(leaf.dtype, jnp.inexact):
                continue
            if count := int(np.isnan(np.asarray(leaf)).sum()):
                raise ValueError(
                    f"prune_oneshot: argument {path} of batch {number}, of shape {leaf.shape}, "
                    f"has {count} NaN; batches without would work"
                )


def check_numbers(params: Tree, specs: Mapping[str, LeafSpec]) -> None:
    """Refuses weights that are complex, none, not finite, or too small for float32."""
    leaves = leaves_by_path(params)
    for path, spec in specs.items():
        leaf, shape = leaves[path], spec.view.shape
        if jnp.iscomplexobj(leaf):
            raise ValueError(
                f"prune_oneshot: {path!r} of shape {shape} is complex; js.compute_masks, "
                "which goes by the modulus, would work"
            )
        if 0 in shape:
            raise ValueError(
                f"prune_oneshot: {path!r} of shape {shape} has no entries; a rule that "
                "leaves it out would work"
            )
        if not jnp.isfinite(leaf).all():
            count = int((~jnp.isfinite(leaf)).sum())
            raise ValueError(
                f"prune_oneshot: {count} entries of {path!r} of shape {shape} are not finite; "
                "weights that are would work"
            )
        one_kernel = tuple(axis for axis in range(len(shape)) if axis not in spec.view.batch)
        largest = np.asarray(jnp.max(jnp.abs(jnp.asarray(leaf, jnp.float32)), one_kernel))
        # Devices may read denormal numbers as zero: which are is for NumPy to say.
        zero = ~np.any(np.asarray(leaf) != 0, one_kernel)
        if (wrong := ~np.isfinite(largest) | (largest < LEAST_WEIGHT) & ~zero).any():
            which = f" of kernels {np.argwhere(wrong).tolist()}" if largest.ndim else ""
            raise ValueError(
                f"prune_oneshot: all entries of {path!r} of shape {shape}{which} are below "
                f"{LEAST_WEIGHT}, or one is above {np.finfo(np.float32).max:.3g}, with which "
                "float32 does not compute; weights scaled by one number would work"
            )


def check_met(path: str, size: Array, state: Any) -> None:
    """Refuses kernels whose statistics say nothing, by the largest number that they met.

    Args:
      path: of the kernels.
      size: the largest number that each met.
      state: of the criterion's reducer.
    """
    small, large = float(jnp.min(size)), float(jnp.max(size))
    if not np.isfinite(large) or not np.isfinite(small):
        raise ValueError(
            f"prune_oneshot: what {path!r} meets is not finite; look at the batches, and at the "
            "weights before it"
        )
    for leaf in statistics(state).values():
        if not (jnp.abs(leaf) < LARGEST).all():
            raise ValueError(
                f"prune_oneshot: the statistics of {path!r}, which meets up to {large:.3g}, are "
                f"not below {LARGEST}: squares of these are too large for float32; values scaled "
                "down would work"
            )
    if small < SMALLEST:
        raise idle(path, np.argwhere(np.asarray(size) < SMALLEST).tolist() if size.ndim else None)


def idle(path: str, kernels: list[Any] | None) -> ValueError:
    """The error of kernels that met nothing, by their place in the leaf; None is all of it."""
    which = "" if kernels is None else f" of kernels {kernels}"
    return ValueError(
        f"prune_oneshot: {path!r}{which} meets nothing but zeros, or numbers below "
        f"{SMALLEST}, whose squares float32 does not hold; batches that reach it (an expert, "
        "a branch), or values scaled up, would work"
    )


def check_units(units: Iterable[Unit], sites: Mapping[str, Site]) -> None:
    """Refuses kernels of a stack that no product meets."""
    found = set(units)
    for path, site in sites.items():
        mine = [unit for unit in found if unit.path == path]
        ranges = [
            [None] if any(unit.index[axis] is None for unit in mine) else range(size)
            for axis, size in enumerate(site.kernels)
        ]
        lost = [i for i in itertools.product(*ranges) if Unit(path, i) not in found]
        if lost:
            raise idle(path, [list(index) for index in lost])


def check_rows(
    lines: Sequence[Line],
    batches: Sequence[tuple[int, Any]],
    reducer: Reducer,
    sites: Mapping[str, Site],
) -> None:
    """Warns where XᵀX, of criteria that solve with it, has fewer rows than columns."""
    rows: dict[tuple[str, Any], int] = {}
    for which, _ in batches:
        for step in lines[which].steps:
            for use in step.uses:
                rows[use.path, use.index] = rows.get((use.path, use.index), 0) + use.rows
    few = []
    for (path, _), count in sorted(rows.items(), key=lambda pair: pair[1]):
        leaves = jax.tree_util.tree_flatten_with_path(
            jax.eval_shape(lambda path=path: reducer.init(sites[path]))
        )[0]
        solves = any(getattr(keys[-1], "key", None) == "products" for keys, _ in leaves if keys)
        if solves and count < sites[path].inputs:
            few.append((path, count))
    if few:
        path, count = few[0]
        warnings.warn(
            f"prune_oneshot: {path!r} meets {count} rows for {sites[path].inputs} inputs, so that "
            f"XᵀX is singular, as that of {len(few) - 1} others; the criterion's damping alone "
            "makes it definite, and more batches would tell more",
            stacklevel=4,
        )


def meets_mixed_rows(caller: str, site: Site) -> ValueError:
    """The error of a weight that meets another one, whose rows data then sum over."""
    return ValueError(
        f"{caller}: {site.path!r} of shape {site.shape} is multiplied by another weight, or by a "
        "constant, before the data are, as w in x @ (v @ w), so that what it meets says nothing of "
        "them; (x @ v) @ w, the two as one weight in the parameters, v as an argument of the "
        "function with the data, or a rule that leaves it out would work"
    )


def only_sites(found: Sequence[Site], specs: Mapping[str, LeafSpec]) -> dict[str, Site]:
    """The site of every leaf.

    Raises:
      ValueError: it has none, or several, or is not what products multiply by, or meets rows
        that data sum over, or its rule says other axes.
    """
    where: dict[str, Site] = {}
    for site in found:
        if site.path in where and site.path in specs:
            raise ValueError(
                f"prune_oneshot: products sum over {site.path!r} of shape {site.shape} along "
                f"{where[site.path].in_axis} and along {site.in_axis}; a rule that leaves it out "
                "would work"
            )
        where[site.path] = site
    for path, spec in specs.items():
        if path not in where:
            raise ValueError(
                f"prune_oneshot: no product meets {path!r} of shape {spec.view.shape}; js.prune "
                "or js.compute_masks, which look at weights alone, would work"
            )
        site, view = where[path], spec.view
        if site.altered:
            raise ValueError(
                f"prune_oneshot: products multiply by something made of {path!r} of shape "
                f"{view.shape}, such as a gain times it, and not by the weight itself; with that "
                "folded into the weight in the parameters it would work"
            )
        if site.mixed:
            raise meets_mixed_rows("prune_oneshot", site)
        if (site.in_axis, site.batch_axis) != (view.inputs, view.batch):
            raise ValueError(
                f"prune_oneshot: the rule sees {path!r} of shape {view.shape} as {view}, its "
                f"products sum over {site.in_axis} with kernels along {site.batch_axis}; a rule "
                "without axes would work"
            )
    return where
