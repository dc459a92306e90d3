"""Magnitudes of whole neurons: the rival of learned scores."""

from collections.abc import Callable

import jax.numpy as jnp

import jaxsparse as js
from jaxsparse.graph import Structure


def unit_magnitude(structure: Callable[[], Structure]) -> js.Score:
    """Mean |w| of a group; what is one neuron has one score, the mean of all its leaves.

    A column of the first product of a feed-forward part and the row of the second that
    reads it go together then, wherever as many of one as of the other are kept.

    Args:
      structure: of the model; asked for when masks are chosen first.
    """

    def update(grads, state, weights, context):
        del grads
        specs = context.specs
        scores = {path: specs[path].pool(jnp.abs(w), "mean") for path, w in weights.items()}
        for group in structure().groups:
            places = {
                member.path: member.positions(group.units)
                for member in group.members
                if member.path in specs and specs[member.path].pattern == js.Channel(member.axis)
            }
            if not places:
                continue
            means = [scores[path][at].mean(axis=1) for path, at in places.items()]
            shared = jnp.mean(jnp.stack(means), axis=0)
            for path, at in places.items():
                scores[path] = scores[path].at[at].set(shared[:, None])
        return scores, state

    return js.Score(lambda weights, specs: (), update)
