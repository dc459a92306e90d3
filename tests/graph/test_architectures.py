"""Heads and neurons of the transformers that people deploy: found, resolved, shrunk, the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from architectures import ARCHITECTURES

import jaxsparse as js
from jaxsparse.trees import leaves_by_path

MADE = {}


def made(name):
    """The architecture, its structure, masks that empty a third of its units, and which."""
    if name not in MADE:
        model = ARCHITECTURES[name]()
        structure = js.graph.structure(model.fn, model.params, *model.inputs)
        rng, leaves, masks, left = np.random.default_rng(0), leaves_by_path(model.params), {}, {}
        for number, group in enumerate(structure.groups):
            stays = (np.arange(group.units) + number // 2) % 3 != 1  # others in every layer
            left[group.name, group.kind] = np.flatnonzero(stays)
            for member in group.members:
                leaf = leaves[member.path]
                mask = masks.get(member.path, rng.random(leaf.shape) < 0.7)
                masks[member.path] = mask & np.asarray(member.spread(jnp.asarray(stays), mask))
        MADE[name] = model, structure, masks, left
    return MADE[name]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_groups_are_found(name):
    model, structure, _, _ = made(name)
    assert {(group.name, group.kind): group.units for group in structure.groups} == model.units
    assert len(structure.groups) == len(model.units)


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("refill", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_what_is_resolved_shrinks_to_the_same_function(name, refill):
    model, structure, masks, left = made(name)
    resolved = structure.resolve(masks, refill=refill)
    report = structure.report(resolved)
    for row in report.groups:
        np.testing.assert_array_equal(row.kept, left[row.group.name, row.group.kind])
    small, run, shrunk = js.graph.shrink(model.fn, model.params, resolved, *model.inputs)
    for row in report.groups:
        for member in row.group.weights:
            units = member.positions(row.group.units)
            positions = [p for p in shrunk.kept[member.path][member.axis] if p in units]
            wanted = np.sort(units[row.kept].ravel())
            if refill:
                np.testing.assert_array_equal(positions, wanted)
            else:  # constants, and what nothing feeds, may go beyond
                assert np.isin(positions, wanted).all()
    masked = jax.jit(model.fn)(js.mask_params(model.params, resolved), *model.inputs)
    np.testing.assert_allclose(jax.jit(run)(small, *model.inputs), masked, atol=2e-5)
    assert shrunk.after < shrunk.before
