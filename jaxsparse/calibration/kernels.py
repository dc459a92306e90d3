"""A criterion applied to a leaf, or to some kernels of it, and what it is to keep."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxsparse.calibration.checks import check_met
from jaxsparse.calibration.criteria import Criterion
from jaxsparse.calibration.reducers import Reducer, both, largest
from jaxsparse.calibration.targets import Target
from jaxsparse.patterns.rules import LeafSpec
from jaxsparse.patterns.views import View


def target_of(spec: LeafSpec, sparsity: float, per: Any) -> Target:
    """What is to be kept of one kernel of a leaf."""
    shape = tuple(1 if i in spec.view.batch else n for i, n in enumerate(spec.view.shape))
    return Target(spec.pattern, sparsity, per, dataclasses.replace(spec.view, shape=shape))


def with_size(reducer: Reducer) -> Reducer:
    """A reducer that keeps how large the numbers get, too."""
    return both(reducer, largest())


def prune_kernels(criterion: Criterion, weight, state, target: Target, spec: LeafSpec, known=None):
    """A leaf or some kernels of it, kernel by kernel; `known` beforehand is of its shape."""
    view, path = spec.view, spec.path
    check_met(path, state["second"], state["first"])
    lead = state["second"].ndim  # as many axes number kernels
    met = jax.tree.map(lambda a: a.reshape(-1, *a.shape[lead:]), state["first"])
    beforehand = [] if known is None else [jnp.asarray(known)]
    try:
        mask, found = _run(
            jnp.asarray(weight),
            met,
            *beforehand,
            prune=criterion.prune,
            target=target,
            view=view,
        )
    except ValueError as error:
        raise ValueError(
            f"prune_oneshot: {path!r} of shape {view.shape}, seen as {view}: {error}"
        ) from error
    if not jnp.isfinite(found).all():
        raise ValueError(
            f"prune_oneshot: new weights of {path!r} of shape {view.shape} are not finite: what "
            "it meets is too large for float32, or too much alike for its damping; values scaled "
            "down, a larger damping or wanda() would work"
        )
    return mask, found


# Equal layers share a compilation: a criterion, a target and a view are what it depends on.
@functools.partial(jax.jit, static_argnames=("prune", "target", "view"))
def _run(weight, state, *known, prune, target: Target, view: View):
    def kernels(leaf):
        return view.matrix(leaf).reshape(-1, *view.matrix_shape)

    def one(slices):
        kernel, state, *known = slices
        mask, found = prune(kernel.astype(jnp.float32), state, target, *known)
        if found is not None and not jnp.issubdtype(weight.dtype, jnp.floating):
            raise ValueError(
                f"{weight.dtype} weights cannot take the new ones of this criterion; wanda() "
                "leaves them as they are"
            )
        found = kernel if found is None else found.astype(weight.dtype)
        return mask, jnp.where(mask, found, jnp.zeros((), weight.dtype))

    slices = kernels(weight), state, *map(kernels, known)
    shape = (*view.batch_shape, *view.matrix_shape)
    return [view.leaf(a.reshape(shape)) for a in lax.map(one, slices)]
