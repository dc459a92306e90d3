"""What every score x pattern x chooser promises; see members.py."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from members import (
    ALL,
    END,
    PATTERNS,
    SPARSITY,
    CountedJit,
    rules_for,
    small_params,
    step_of,
    transform_for,
)

import jaxsparse as js
from jaxsparse.patterns.rules import resolve
from jaxsparse.trees import leaves_by_path

FAST = {
    ("magnitude", "block", "none"),
    ("magnitude", "unstructured", "gradient"),
    ("saliency", "block_padded", "random"),
    ("movement", "block", "straight_through"),
    ("saliency_momentum", "nm", "none"),
    ("user", "channel", "none"),
    ("user", "block", "user"),
    ("gradient", "nm_best", "straight_through"),
    ("random", "nm_greedy", "none"),
    ("saliency", "user", "gradient"),
}
EVERY = [
    pytest.param(*member, id="-".join(member), marks=[] if member in FAST else pytest.mark.slow)
    for member in ALL
]


def kept_per_slice(mask, spec):
    """Units kept in every batch slice, counted from the full mask with numpy."""
    mask = np.asarray(mask)
    batch = len(spec.view.batch)
    if spec.pattern.max_sparsity < 1:
        return None
    groups = np.asarray(spec.pool(jnp.asarray(mask), "max")) > 0
    # Groups live and die together.
    assert (np.asarray(spec.expand(jnp.asarray(groups))) == mask).all()
    return groups.reshape(*groups.shape[:batch], -1).sum(-1)


def check_masks(masks, specs, pattern, sparsity):
    for path, spec in specs.items():
        kept = kept_per_slice(masks[path], spec)
        if sparsity is None:
            assert 0 < np.asarray(masks[path]).sum() < masks[path].size
            continue
        if kept is not None:
            assert (kept == spec.units - round(sparsity * spec.units)).all(), path
            continue
        tiles = np.asarray(masks[path]).reshape(-1, 4, masks[path].shape[-1])
        if pattern == "nm_greedy":
            assert (tiles.sum(axis=1) <= 2).all()
        else:
            assert (tiles.sum(axis=1) == 2).all()
        if pattern != "nm":
            rows = np.asarray(masks[path])
            rows = rows.reshape(*rows.shape[:-1], -1, 4).sum(-1)
            assert (rows <= 2).all() if pattern == "nm_greedy" else (rows == 2).all()


@pytest.mark.parametrize("score,pattern,chooser", EVERY)
def test_training_keeps_the_promises(score, pattern, chooser):
    """Exact counts, whole groups, exact zeros, one compilation; f32 and bf16, NaN in both."""
    params = small_params()
    params["dense"]["kernel"] = params["dense"]["kernel"].at[3, 5].set(jnp.nan)
    params["stack"]["kernel"] = params["stack"]["kernel"].at[1, 2, 3].set(jnp.nan)
    dtypes = jax.tree.map(lambda leaf: leaf.dtype, params)
    tx = transform_for(score, pattern, chooser)
    specs = resolve(rules_for(pattern), params)
    state = jax.jit(tx.init)(params)
    step = CountedJit(step_of(tx))
    previous = js.masks(state)
    for t in range(END + 3):
        params, state = step(params, state)
        masks = js.masks(state)
        if t % 2 or t > END:
            assert all((masks[path] == previous[path]).all() for path in masks), f"moved at {t}"
        if chooser in ("none", "user"):
            assert not any((masks[path] & ~previous[path]).any() for path in masks), "regrew"
        if chooser != "straight_through":
            for path, leaf in leaves_by_path(params).items():
                if path in masks:
                    zeros = np.asarray(leaf.astype(jnp.float32))[~np.asarray(masks[path])]
                    zeros = zeros[~np.isnan(zeros)]  # an update cannot clear a NaN
                    assert (zeros == 0).all() and not np.signbit(zeros).any(), path
        if chooser in ("random", "gradient") and PATTERNS[pattern].max_sparsity == 1:
            check_masks(masks, specs, pattern, SPARSITY)
        previous = masks
    check_masks(previous, specs, pattern, None if chooser == "user" else SPARSITY)
    seen = js.mask_params(params, previous)
    for path, mask in previous.items():
        hidden = np.asarray(leaves_by_path(seen)[path].astype(jnp.float32))[~np.asarray(mask)]
        assert (hidden == 0).all()
    assert step.traces == 1, "a later call compiled again"
    assert jax.tree.map(lambda leaf: leaf.dtype, params) == dtypes


@pytest.mark.slow
@pytest.mark.parametrize("score,pattern,chooser", ALL)
def test_init_needs_shapes_only(score, pattern, chooser):
    params = small_params()
    tx = transform_for(score, pattern, chooser)
    shapes = jax.eval_shape(lambda: params)
    bare = jax.eval_shape(tx.init, shapes)
    full = tx.init(params)
    assert jax.tree.structure(bare) == jax.tree.structure(full)
    assert all(
        a.shape == b.shape and a.dtype == b.dtype
        for a, b in zip(jax.tree.leaves(bare), jax.tree.leaves(full), strict=True)
    )
