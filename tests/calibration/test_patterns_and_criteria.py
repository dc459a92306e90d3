"""Every criterion with every pattern: counts, structure, and losses between bounds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse.calibration import (
    Target,
    alps,
    magnitude,
    quadratic,
    reconstructed,
    sparsegpt,
    swapped,
    wanda,
)
from jaxsparse.patterns.views import View

K, N = 24, 8
WEIGHT = jax.random.normal(jax.random.key(0), (K, N))
MIX = jnp.eye(K) + 0.5 * jax.random.normal(jax.random.key(1), (K, K))
X = jax.random.normal(jax.random.key(2), (96, K)) @ MIX
GRAM = X.T @ X
MET = {"products": GRAM, "squares": jnp.diagonal(GRAM)}
PROBLEM = quadratic(WEIGHT, GRAM)

HEADS = View((6, 4, N), (), (0, 1), (2,))  # (heads, head_dim, embed), the output projection
TARGETS = {
    "layer": Target(js.Unstructured(), 0.4),
    "output": Target(js.Unstructured(), 0.5, "output"),
    "2:4": Target(js.NM(2, 4)),
    "1:3": Target(js.NM(1, 3)),
    "half way to 2:4": Target(js.NM(2, 4), 0.25),
    "transposable": Target(js.NM(2, 4, "best")),
    "blocks": Target(js.Block(4, 2), 0.3),
    "cut blocks": Target(js.Block(5, 3, pad=True), 0.4),
    "largest of blocks": Target(js.Block(2, 4, "max"), 0.5),
    "inputs": Target(js.Channel(0), 0.3),
    "outputs": Target(js.Channel(1), 0.5),
    "heads": Target(js.Channel(0), 0.5, view=HEADS),
    "across heads": Target(js.Channel(1), 0.5, view=HEADS),
}
RARE = ("output", "1:3", "half way to 2:4", "cut blocks", "largest of blocks", "outputs",
        "transposable", "across heads")  # fmt: skip
EVERY = [pytest.param(t, marks=pytest.mark.slow) if t in RARE else t for t in TARGETS]
CRITERIA = {
    "magnitude": magnitude(),
    "wanda": wanda(),
    "sparsegpt": sparsegpt(block=8),
    "alps": alps(),
    "reconstructed": reconstructed(wanda()),
    "swapped": swapped(wanda()),
}


@functools.cache
def run(criterion, target):
    state = MET | {"first": MET, "second": MET}
    prune = jax.jit(CRITERIA[criterion].prune, static_argnums=2)
    mask, weight = prune(WEIGHT, state, TARGETS[target])
    return np.asarray(mask), np.where(mask, WEIGHT if weight is None else weight, 0)


def least_squares(mask):
    """The loss of the best weights under a mask, in float64, output by output."""
    gram, total = np.float64(PROBLEM.gram), 0.0
    for column, kept in zip(np.float64(WEIGHT).T, mask.T, strict=True):
        best = np.zeros(K)
        best[kept] = np.linalg.solve(gram[np.ix_(kept, kept)], gram[kept] @ column)
        total += (column - best) @ gram @ (column - best)
    return total


def check_structure(target, mask):
    target = TARGETS[target]
    pattern, view = target.pattern, target.view or View((K, N), (), (0,), (1,))
    spec = js.patterns.rules.LeafSpec("w", pattern, view, target.sparsity)
    leaf = view.leaf(jnp.asarray(mask))
    groups = spec.pool(leaf, "max") > 0
    np.testing.assert_array_equal(spec.expand(groups), leaf)
    if target.per == "output":
        assert (mask.sum(0) == K - round(target.sparsity * K)).all()
    elif not isinstance(pattern, js.NM):
        assert groups.sum() == groups.size - round(target.sparsity * groups.size)
    elif target.sparsity is None:
        m, tiles = pattern.m, mask.reshape(K // pattern.m, pattern.m, N)
        assert (tiles.sum(1) == pattern.n).all()
        if pattern.method == "best":
            assert (tiles.reshape(K // m, m, N // m, m).sum(3) == pattern.n).all()
    else:
        counts = mask.reshape(K // pattern.m, pattern.m, N).sum(1)
        assert set(np.unique(counts)) == {pattern.n, pattern.m} and mask.mean() == 0.75


@pytest.mark.parametrize("target", EVERY)
@pytest.mark.parametrize("criterion", [c for c in CRITERIA if c != "swapped"])
def test_counts_structure_and_losses(criterion, target):
    mask, weight = run(criterion, target)
    check_structure(target, mask)
    loss = float(PROBLEM.loss(weight))
    bare = float(PROBLEM.loss(jnp.where(mask, WEIGHT, 0)))
    assert least_squares(mask) * (1 - 1e-4) <= loss <= bare * (1 + 1e-5)
    if criterion in ("alps", "reconstructed"):
        assert loss <= least_squares(mask) * 1.01


@pytest.mark.parametrize("target", EVERY)
def test_alps_loses_least(target):
    alps, sparsegpt, wanda = (
        float(PROBLEM.loss(run(name, target)[1])) for name in ("alps", "sparsegpt", "wanda")
    )
    assert alps <= sparsegpt * 1.001 and alps <= wanda


@pytest.mark.parametrize("target", ["layer", "output", "2:4", "1:3"])
def test_swaps_lower_the_loss_and_keep_the_structure(target):
    mask, weight = run("swapped", target)
    check_structure(target, mask)
    assert PROBLEM.loss(weight) < PROBLEM.loss(run("wanda", target)[1])


@pytest.mark.parametrize("target", ["transposable", "blocks", "inputs", "heads"])
def test_groups_are_not_swapped_one_by_one(target):
    with pytest.raises(ValueError, match="cannot be swapped one by one"):
        run("swapped", target)


def test_alps_projects_by_the_norm_whatever_a_block_is_reduced_to():
    losses = [
        float(PROBLEM.loss(jnp.where(m, w, 0)))
        for reduce in ("mean", "max")
        for m, w in [alps().prune(WEIGHT, MET, Target(js.Block(2, 4, reduce), 0.5))]
    ]
    assert losses[0] == losses[1]


def test_groups_need_a_sparsity():
    with pytest.raises(ValueError, match=r"Block\(2, 2\) needs a sparsity"):
        Target(js.Block(2, 2))
