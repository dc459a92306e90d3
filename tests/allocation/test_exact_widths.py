"""Widths of groups that meet in layers, against all choices there are."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse.allocation import Flops, exact_widths, widths
from jaxsparse.allocation.narrowing import narrow

WIDTHS = (2, 4, 8)


class Network:
    """Groups of 8 units, a layer for each edge, whose cost is the product of its widths."""

    unit = "MACs"

    def __init__(self, groups, edges, together=0, scale=1):
        self.units = {f"g{i}": 8 for i in range(groups)}
        self.edges, self.together, self.scale = edges, together, scale

    def total(self, widths=None, densities=None):
        w = [(widths or {}).get(name, n) for name, n in self.units.items()]
        paid = 5 + sum((2 + i) * n for i, n in enumerate(w))
        paid += sum((1 + i % 3) * w[a] * w[b] for i, (a, b) in enumerate(self.edges))
        return self.scale * (paid + self.together * math.prod(w))


def random_losses(network, seed):
    draws = np.random.default_rng(seed)
    return {
        name: dict(zip(WIDTHS, np.sort(draws.random(3))[::-1] * [1, 1, 0], strict=True))
        for name in network.units
    }


def best(network, losses, budget):
    found = math.inf
    for choice in itertools.product(WIDTHS, repeat=len(network.units)):
        kept = dict(zip(network.units, choice, strict=True))
        if network.total(kept) <= budget:
            found = min(found, sum(losses[name][w] for name, w in kept.items()))
    return found


GRAPHS = {
    "alone": (4, []),
    "chain": (5, [(0, 1), (1, 2), (2, 3), (3, 4)]),
    "two chains, out of order": (5, [(3, 0), (0, 4), (2, 1)]),
    "ring": (5, [(0, 1), (1, 2), (2, 3), (3, 4), (4, 0)]),
    "star": (5, [(0, 1), (0, 2), (0, 3), (0, 4)]),
    "all": (5, list(itertools.combinations(range(5), 2))),
}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("scale", [1, 0.1])
def test_no_widths_are_better(name, scale):
    network = Network(*GRAPHS[name], scale=scale)
    for seed in range(3):
        losses = random_losses(network, seed)
        for share in (0.15, 0.3, 0.5, 0.8, 1.0):
            budget = share * network.total() if scale < 1 else int(share * network.total())
            wanted = best(network, losses, budget)
            if wanted == math.inf:
                with pytest.raises(ValueError, match="out of reach"):
                    exact_widths(losses, network, budget)
                continue
            found = exact_widths(losses, network, budget)
            assert found.about["loss"] == pytest.approx(wanted, rel=1e-12)
            assert found.about["cost"] == network.total(found.widths) <= budget
            assert found.about["proved"] and not found.sparsities
            assert (found.about["graph"] == "chains") == ("chain" in name or name == "alone")


def test_what_is_no_chain_is_a_descent_where_its_choices_are_too_many(monkeypatch):
    monkeypatch.setattr(widths, "MOST", 8)
    network = Network(*GRAPHS["all"])
    for seed in range(3):
        losses, budget = random_losses(network, seed), network.total() // 2
        found = exact_widths(losses, network, budget)
        assert found.about["graph"].startswith("no chains: a descent of g0, ")
        assert not found.about["proved"] and found.about["cost"] <= budget
        wanted = best(network, losses, budget)
        even = min(
            sum(each[w] for each in losses.values())
            for w in WIDTHS
            if network.total(dict.fromkeys(network.units, w)) <= budget
        )
        assert wanted <= found.about["loss"] <= wanted + 0.5 * (even - wanted)


def test_three_groups_in_one_product_hold_the_budget_and_prove_nothing():
    network = Network(*GRAPHS["chain"], together=1)
    losses = random_losses(network, 0)
    for share in (0.02, 0.1, 0.3, 0.6):
        found = exact_widths(losses, network, int(share * network.total()))
        assert network.total(found.widths) == found.about["cost"] <= found.about["budget"]
        assert not found.about["proved"]


def test_widths_of_a_network_are_cut_as_they_were_chosen():
    keys = iter(jax.random.split(jax.random.key(0), 5))
    sizes = (4, 16, 16, 16, 3)
    params = {
        f"layer{i}": jax.random.normal(next(keys), ends)
        for i, ends in enumerate(itertools.pairwise(sizes))
    }

    def mlp(params, x):
        for kernel in params.values():
            x = jnp.tanh(x @ kernel)
        return x

    x = jnp.ones((1, 4))
    flops = Flops(mlp, params, x)
    losses = {
        name: {w: weight * (16 - w) ** 2 for w in range(2, 17, 2)}
        for name, weight in zip(flops.units, (1.0, 3.0, 2.0), strict=True)
    }
    found = exact_widths(losses, flops, flops.total() // 2)
    assert found.about["proved"] and found.about["graph"] == "chains"
    masks = narrow(js.graph.structure(mlp, params, x), params, found.widths)
    small, run, _ = js.graph.shrink(mlp, params, masks, x)
    assert Flops(run, small, x).total() == found.about["cost"] <= flops.total() // 2


NETWORK = Network(*GRAPHS["chain"])


@pytest.mark.parametrize(
    ("losses", "budget", "kind", "words"),
    [
        ({}, 100, ValueError, "losses is empty"),
        ({"h0": {8: 0.0}}, 100, ValueError, "losses of 'h0', which is no group .*'g0'"),
        ({"g0": {9: 0.0}}, 100, ValueError, r"losses\['g0'\]: width 9 is not in 1 to its units, 8"),
        ({"g0": {0: 0.0}}, 100, ValueError, "width 0 is not in 1"),
        ({"g0": {0.5: 0.0}}, 100, TypeError, "the width 0.5 is no whole number"),
        ({"g0": {8: math.nan}}, 100, ValueError, r"losses\['g0'\]\[8\] is nan"),
        ({"g0": {8: math.inf}}, 100, ValueError, "a width and its loss would work"),
        ({"g0": {8: 0.0}}, math.nan, ValueError, "budget is nan"),
        ({"g0": {8: 0.0}}, "all", TypeError, "budget is 'all'"),
        ({"g0": {8: 0.0, 2: 1.0}}, 100, ValueError, "budget=100 is out of reach: .* 553 is left"),
    ],
)
def test_what_is_no_problem_of_widths_is_refused(losses, budget, kind, words):
    with pytest.raises(kind, match=words):
        exact_widths(losses, NETWORK, budget)
