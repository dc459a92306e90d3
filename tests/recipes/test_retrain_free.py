"""Retrain-free pruning: against the original code's results, and whole, on many models."""

import functools
import itertools
import json
import math
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

import jaxsparse as js
from experiments.models.encoders import Classifier, TextEncoder
from experiments.models.sizes import TextSizes
from jaxsparse import jaxprs
from jaxsparse.recipes import retrain_free
from jaxsparse.recipes.retrain_free import (
    fit_latency,
    knapsack,
    prune,
    rearrange,
    rescale,
    search_costs,
    search_table,
    unit_gradients,
)

FILE = pathlib.Path(__file__).parents[1] / "cases/retrain_free.json"
CASES = {case["id"]: case for case in json.loads(FILE.read_text())["cases"]}
RNG = np.random.default_rng(0)


def of_kind(kind):
    return [name for name, case in CASES.items() if case["kind"] == kind]


def bits(rows):
    return [[bit == "1" for bit in row] for row in rows]


def generated(case, *calls):
    space = {"numpy": np}
    exec(case["inputs"]["generator"], space)
    return [eval(case["inputs"][call], space) for call in calls], space


def mean_square(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


# The parts, on arrays.


@pytest.mark.parametrize("name", of_kind("retrain_free"))
def test_search_and_rearrangement_are_the_originals(name):
    case = CASES[name]
    (heads, neurons), _ = generated(case, "head_grads", "neuron_grads")
    inputs, expected = case["inputs"], case["expected"]
    parts = ("head", heads, inputs["head_mac"]), ("neuron", neurons, inputs["neuron_mac"])
    gradients, costs = {}, {}
    for kind, found, cost in parts:
        for layer in range(inputs["layers"]):
            gradients[kind, layer] = np.float64(found[:, layer])
            costs[kind, layer] = cost
    fisher = {key: (found**2).sum(0) for key, found in gradients.items()}
    kept = search_costs(fisher, costs, inputs["mac_constraint"] * inputs["dense_mac"])
    held = sum(fisher[key][units].sum() for key, units in kept.items())
    np.testing.assert_allclose(held, expected["importance_kept"], rtol=1e-6)
    for key, units in kept.items():
        kind, layer = key
        assert units.tolist() == bits(expected[f"{kind}_mask_search"])[layer]
        greedy = rearrange(gradients[key], units, exhaustive=0)
        assert greedy.tolist() == bits(expected[f"{kind}_mask_rearranged"])[layer]
        best = rearrange(gradients[key], units)
        assert best.sum() == greedy.sum() == units.sum()
        loss, least = (((gradients[key] @ ~mask) ** 2).sum() for mask in (greedy, best))
        whole = f"objective_{kind}s_rearranged"
        np.testing.assert_allclose(loss, expected[whole][layer], rtol=1e-5, atol=1e-9)
        assert least <= loss * (1 + 1e-9)
        if kind == "head":
            np.testing.assert_allclose(least, expected["objective_heads_optimum"][layer], rtol=1e-5)


@pytest.mark.parametrize("cost", [-1.0, math.inf, math.nan])
def test_costs_that_are_none_are_refused(cost):
    importance = {"a": np.ones(2), "b": np.ones(2)}
    with pytest.raises(ValueError, match=f"search_costs: a unit of 'b' costs {cost}; "):
        search_costs(importance, {"a": 1.0, "b": cost}, 4)
    with pytest.raises(ValueError, match=f"search_table: 'b' with 2 units costs {cost}; "):
        search_table(importance, {("a", 2): 1.0, ("b", 2): cost}, 4)


@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_importance_that_is_not_finite_is_refused(value):
    importance = {"a": np.ones(2), "b": np.array([1.0, value])}
    said = rf"the importance of units \[1\] of 'b' is \[{value}\]"
    with pytest.raises(ValueError, match=f"search_costs: {said}"):
        search_costs(importance, {"a": 1.0, "b": 1.0}, 4)
    with pytest.raises(ValueError, match=f"search_table: {said}"):
        search_table(importance, {("a", 2): 1.0, ("b", 2): 1.0}, 4)


@pytest.mark.parametrize("gone", [1, 3, 5, 7])
def test_few_subsets_are_all_tried(gone):
    gradients = RNG.normal(size=(5, 8))
    kept = np.arange(8) >= gone
    best = rearrange(gradients, kept)
    tried = (np.array(list(np.binary_repr(n, 8)), int) == 1 for n in range(256))
    least = min(((gradients @ mask) ** 2).sum() for mask in tried if mask.sum() == gone)
    np.testing.assert_allclose(((gradients @ ~best) ** 2).sum(), least, rtol=1e-9)


@pytest.mark.parametrize("name", of_kind("latency_fit"))
def test_the_fit_of_latency_is_the_originals(name):
    case = CASES[name]
    fit, expected = fit_latency(case["inputs"]["lut_ms_for_1_to_n_units"]), case["expected"]
    assert fit.threshold == expected["threshold"]
    np.testing.assert_allclose(fit[1:], [expected["c"], expected["slope"]], atol=1e-9)
    line = expected["c"] + expected["slope"] * 3
    np.testing.assert_allclose(fit(fit.threshold + 3), line, atol=1e-9)


@pytest.mark.parametrize("times", [[], [1.0, math.nan], [[1.0, 2.0]]])
def test_times_that_are_none(times):
    with pytest.raises(ValueError, match="fit_latency: times"):
        fit_latency(times)


@pytest.mark.parametrize("name", of_kind("rescale"))
def test_scales_are_the_originals(name):
    inputs, expected = CASES[name]["inputs"], CASES[name]["expected"]
    found = rescale(np.array(inputs["ATA"]), np.array(inputs["ATB"]))
    np.testing.assert_allclose(found, expected["scales_exact"], atol=1e-9)
    np.testing.assert_allclose(found, expected["scales_lsmr"], atol=1e-4)


def test_a_dead_unit_is_not_scaled():
    assert rescale(np.zeros((1, 1)), np.zeros(1)).tolist() == [1.0]
    assert rescale(np.zeros((2, 2)), np.zeros(2)).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("kinds", [1, 2, 3])
def test_a_search_loses_to_no_choice_within_the_budget(kinds):
    sizes = {f"g{i}": (4, 3, 3)[i] for i in range(kinds)}
    costs = {name: cost for name, cost in zip(sizes, (7, 3, 2), strict=False)}
    importance = {name: RNG.random(n) for name, n in sizes.items()}
    budget = 0.6 * sum(costs[name] * n for name, n in sizes.items())
    kept = search_costs(importance, costs, budget)
    assert sum(costs[name] * units.sum() for name, units in kept.items()) <= budget

    def worth(counts):
        return sum(
            np.sort(importance[name])[::-1][:n].sum() for name, n in zip(sizes, counts, strict=True)
        )

    grid = np.stack(np.meshgrid(*[np.arange(1, n + 1) for n in sizes.values()]), -1)
    allowed = [c for c in grid.reshape(-1, kinds) if c @ [*costs.values()] <= budget]
    found = worth([units.sum() for units in kept.values()])
    np.testing.assert_allclose(found, max(map(worth, allowed)), rtol=1e-12)


def test_units_that_cost_nothing_stay():
    kept = search_costs({"a": np.ones(3), "b": np.ones(2)}, {"a": 0, "b": 5}, 5)
    assert [units.sum() for units in kept.values()] == [3, 1]


def test_a_knapsack_never_goes_over_the_budget():
    costs = [RNG.random(5) for _ in range(4)]
    values = [RNG.random(5) for _ in range(4)]
    grid = np.stack(np.meshgrid(*[range(5)] * 4), -1).reshape(-1, 4)
    paid = sum(c[grid[:, i]] for i, c in enumerate(costs))
    worth = sum(v[grid[:, i]] for i, v in enumerate(values))
    for budget in np.linspace(paid.min(), paid.max(), 7):
        chosen = knapsack(costs, values, budget)
        assert sum(c[i] for c, i in zip(costs, chosen, strict=True)) <= budget + 1e-12
        found = sum(v[i] for v, i in zip(values, chosen, strict=True))
        # Rounded up, a budget is less by at most one of its 10,000 parts an item.
        strict = budget - 4 * (budget - paid.min()) / 10_000
        assert found >= worth[paid <= strict].max(initial=0) - 1e-12
    with pytest.raises(ValueError, match="the cheapest options cost"):
        knapsack(costs, values, paid.min() - 0.01)


def test_a_table_need_not_rise():
    """Eight units are faster than seven, so seven are never kept."""
    table = {("a", 7): 3.0, ("a", 8): 2.0, ("a", 4): 1.9, ("a", 9): 5.0}
    importance = {"a": np.arange(9.0)}
    assert search_table(importance, table, 3.0)["a"].sum() == 8
    assert search_table(importance, table, 1.95)["a"].sum() == 4


# The encoder of the shared case, in plain JAX.


def encoder(params, x, heads):
    for p in params["layers"]:
        batch, tokens, width = x.shape

        def split(a, batch=batch, tokens=tokens, width=width):
            return a.reshape(batch, tokens, heads, width // heads).transpose(0, 2, 1, 3)

        q, k, v = (split(x @ p[name]) for name in "qkv")
        weights = jax.nn.softmax(q @ k.transpose(0, 1, 3, 2) / np.sqrt(width // heads))
        x = x + (weights @ v).transpose(0, 2, 1, 3).reshape(batch, tokens, width) @ p["o"]
        x = x + jax.nn.relu(x @ p["w1"]) @ p["w2"]
    return x.mean(1) @ params["out"]


@functools.cache
def encoder_case():
    case = CASES["retrain_free_encoder"]
    ((params, x, y),), space = generated(case, "call")
    params = jax.tree.map(np.float32, params)
    batches = [(np.float32(a), np.float32(b)) for a, b in zip(x, y, strict=True)]
    return case["expected"], params, batches, functools.partial(encoder, heads=4), space["loss"]


def test_fisher_and_masks_of_an_encoder_are_the_originals():
    expected, params, batches, fn, loss = encoder_case()
    groups = js.graph.structure(fn, params, batches[0][0]).groups
    assert [group.kind for group in groups] == ["heads", "neurons"] * 2
    gradients = unit_gradients(fn, params, batches, mean_square, groups)
    fisher = {name: (found**2).sum(0) for name, found in gradients.items()}
    costs = {
        g.name: {"heads": 4 * 6 * 16 * 4 + 2 * 36 * 4, "neurons": 2 * 6 * 16}[g.kind]
        for g in groups
    }
    budget = 0.5 * sum(costs[group.name] * group.units for group in groups)
    kept = search_costs(fisher, costs, budget)
    masks = {"heads": [], "neurons": []}
    for i, group in enumerate(groups):
        kind, layer = group.kind.removesuffix("s"), i // 2
        np.testing.assert_allclose(
            fisher[group.name], expected[f"{kind}_fisher"][layer], rtol=1e-3, atol=1e-7
        )
        assert kept[group.name].tolist() == bits(expected[f"{kind}_mask_search"])[layer]
        found = rearrange(gradients[group.name], kept[group.name], exhaustive=0)
        assert found.tolist() == bits(expected[f"{kind}_mask_rearranged"])[layer]
        masks[group.kind].append(np.float64(found))
    wide = jax.tree.map(np.float64, params)
    losses = [loss(wide, np.float64(x), np.float64(y), *map(np.array, masks.values()))
              for x, y in batches]  # fmt: skip
    np.testing.assert_allclose(np.mean(losses), expected["loss_rearranged"], rtol=1e-4)


def test_the_teacher_is_pruned_to_the_square_root():
    case = CASES["retrain_free_teacher_schedule"]
    _, params, batches, fn, _ = encoder_case()
    groups = js.graph.structure(fn, params, batches[0][0]).groups
    flops = js.allocation.Flops(fn, params, batches[0][0])
    budget = retrain_free.budgets.FlopsBudget(flops, groups, case["inputs"]["target"])
    importance = {group.name: np.arange(group.units) + 1.0 for group in groups}
    teacher = budget.looser().search(importance)
    share = flops.total({name: int(units.sum()) for name, units in teacher.items()}) / flops.total()
    wanted = case["expected"]["teacher_constraint"]
    assert wanted - 0.02 < share <= wanted


# Whole, on models of many kinds.


def multiplications(jaxpr):
    """Of the products of a program: all axes of the left, the free ones of the right."""
    total = 0
    for equation in jaxpr.eqns:
        inner = jaxprs.programs(equation)
        if equation.primitive.name == "dot_general":
            (_, summed), (_, batch) = equation.params["dimension_numbers"]
            left, right = (v.aval.shape for v in equation.invars)
            free = [n for i, n in enumerate(right) if i not in (*summed, *batch)]
            total += math.prod((*left, *free))
        elif equation.primitive.name == "conv_general_dilated":
            out = equation.outvars[0].aval.shape
            total += math.prod(out) * math.prod(equation.invars[1].aval.shape[:-1])
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        total += times * sum(multiplications(program) for program, _ in inner)
    return total


def bert():
    sizes = TextSizes(16, 4, (4, 4), (24, 24), 1e-6, "gelu", 50, 16, 2, None)
    model = Classifier(TextEncoder(sizes, rngs=nnx.Rngs(0)), 3, rngs=nnx.Rngs(1))
    graph, params = nnx.split(model)
    ids = jnp.asarray(RNG.integers(0, 50, (4, 2, 6)))
    batches = [((x, jnp.ones_like(x)), jnp.ones((2, 3))) for x in ids]
    return lambda params, ids, mask: nnx.merge(graph, params)(ids, mask), params, batches


def llama(dtype=jnp.float32, layers=2, width=16, heads=4, key_heads=2, hidden=20):
    """Grouped queries and a gated feed-forward part."""
    shapes = {
        "q": (width, 4 * heads),
        "k": (width, 4 * key_heads),
        "v": (width, 4 * key_heads),
        "o": (4 * heads, width),
        "gate": (width, hidden),
        "up": (width, hidden),
        "down": (hidden, width),
    }
    rng = np.random.default_rng(1)
    params = [
        {n: jnp.asarray(rng.normal(size=s) / np.sqrt(s[0]), dtype) for n, s in shapes.items()}
        for _ in range(layers)
    ]

    def fn(params, x):
        for p in params:
            y = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)
            q, k, v = ((y @ p[n]).reshape(*y.shape[:2], -1, 4) for n in "qkv")
            q = q.reshape(*q.shape[:2], k.shape[2], -1, 4)
            weights = jax.nn.softmax(jnp.einsum("btngd,bsnd->bngts", q, k))
            mixed = jnp.einsum("bngts,bsnd->btngd", weights, v)
            x = x + mixed.reshape(*y.shape[:2], -1) @ p["o"]
            y = x * jax.lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-5)
            x = x + (jax.nn.silu(y @ p["gate"]) * (y @ p["up"])) @ p["down"]
        return x

    x = jnp.asarray(rng.normal(size=(4, 2, 5, width)), dtype)
    return fn, params, [(each, jnp.roll(each, 1, axis=1)) for each in x]


def stacked():
    """A linen transformer whose layers one scan runs."""

    class Block(linen.Module):
        @linen.compact
        def __call__(self, x, _):
            y = linen.LayerNorm()(x)
            x = x + linen.MultiHeadDotProductAttention(num_heads=2, name="attention")(y, y)
            y = linen.relu(linen.Dense(12, name="up")(linen.LayerNorm()(x)))
            return x + linen.Dense(8, name="down")(y), None

    scanned = linen.scan(Block, variable_axes={"params": 0}, split_rngs={"params": True}, length=3)
    model, x = scanned(), jnp.asarray(RNG.normal(size=(4, 2, 5, 8)), jnp.float32)
    params = model.init(jax.random.key(0), x[0], None)
    return lambda p, x: model.apply(p, x, None)[0], params, [(each, each * 0) for each in x]


def cnn():
    """A residual network."""

    class Net(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.Conv(6, (3, 3))(x)
            for _ in range(2):
                x = x + linen.Conv(6, (3, 3))(linen.relu(linen.Conv(10, (3, 3))(x)))
            return linen.Dense(3)(x.mean((1, 2)))

    x = jnp.asarray(RNG.normal(size=(4, 2, 5, 5, 3)), jnp.float32)
    params = Net().init(jax.random.key(0), x[0])
    return Net().apply, params, [(each, jnp.ones((2, 3))) for each in x]


def chain():
    """Hidden layers that follow each other: what a unit costs depends on others."""
    sizes = (6, 20, 16, 12, 3)
    params = {
        f"layer{i}": jnp.asarray(RNG.normal(size=pair) / 4, jnp.float32)
        for i, pair in enumerate(itertools.pairwise(sizes))
    }

    def fn(params, x):
        for weight in [*params.values()][:-1]:
            x = jnp.tanh(x @ weight)
        return x @ params["layer3"]

    return (
        fn,
        params,
        [(jnp.asarray(x), jnp.ones((5, 3))) for x in np.float32(RNG.normal(size=(3, 5, 6)))],
    )


MODELS = {"bert": bert, "llama": llama, "stacked": stacked, "cnn": cnn, "chain": chain}


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[] if n == "chain" else pytest.mark.slow) for n in MODELS]
)
def test_a_model_meets_the_budget_and_really_shrinks(name):
    fn, params, batches = MODELS[name]()
    found = prune(fn, params, batches, mean_square, flops=0.6)
    inputs = batches[0][0] if isinstance(batches[0][0], tuple) else (batches[0][0],)
    small, run, _ = js.graph.shrink(fn, found.params, found.masks, *inputs)
    report = found.report
    assert report.flops_before == 2 * multiplications(jax.make_jaxpr(fn)(params, *inputs).jaxpr)
    assert report.flops == 2 * multiplications(jax.make_jaxpr(run)(small, *inputs).jaxpr)
    assert 0.45 * report.flops_before < report.flops <= 0.6 * report.flops_before
    assert all(1 <= len(each.kept) <= each.group.units for each in report.groups)
    assert any(len(each.kept) < each.group.units for each in report.groups)
    assert not any(each.untuned for each in report.groups)
    np.testing.assert_allclose(run(small, *inputs), fn(found.params, *inputs), atol=2e-5)
    masked = js.mask_params(found.params, found.masks)
    assert all(map(np.array_equal, jax.tree.leaves(masked), jax.tree.leaves(found.params)))
    assert all(each.group.name in str(report) for each in report.groups)


def test_units_of_grouped_queries_are_key_heads():
    fn, params, batches = llama()
    found = prune(fn, params, batches, mean_square, flops=0.5)
    heads = found.report.groups[0]
    assert heads.group.kind == "heads" and heads.group.units == 2
    (gone,) = set(range(2)) - set(heads.kept.tolist())
    mask = np.asarray(found.masks["0/q"]).any(0).reshape(2, 2, 4)
    assert not mask[gone].any() and mask[1 - gone].all()
    gated = np.asarray(found.masks["0/gate"]).any(0)
    np.testing.assert_array_equal(gated, np.asarray(found.masks["0/up"]).any(0))


def test_gradients_are_those_of_masks():
    """Against the derivative by a factor written into the model, heads and gated neurons."""
    fn, params, batches = llama(layers=1)
    groups = js.graph.structure(fn, params, batches[0][0]).groups
    found = unit_gradients(fn, params, batches, mean_square, groups)

    def masked(factors, x):
        (p,) = params
        rows = jnp.repeat(factors["heads"], 8)[:, None], factors["neurons"][:, None]
        return fn([p | {"o": p["o"] * rows[0], "down": p["down"] * rows[1]}], x)

    ones = {"heads": jnp.ones(2), "neurons": jnp.ones(20)}
    for i, (x, y) in enumerate(batches):
        slopes = jax.grad(lambda f, x=x, y=y: mean_square(masked(f, x), y))(ones)
        for group in groups:
            np.testing.assert_allclose(
                found[group.name][i], slopes[group.kind], rtol=1e-4, atol=1e-7
            )


@pytest.mark.slow
def test_half_precision():
    fn, params, batches = llama(jnp.bfloat16)
    wide = jax.tree.map(jnp.float32, params)
    whole = [tuple(map(jnp.float32, batch)) for batch in batches]
    groups = js.graph.structure(fn, params, batches[0][0]).groups
    found = unit_gradients(fn, params, batches, mean_square, groups)
    exact = unit_gradients(fn, wide, whole, mean_square, groups)
    for name in found:
        np.testing.assert_allclose(found[name], exact[name], atol=0.1 * np.abs(exact[name]).max())
    pruned = prune(fn, params, batches, mean_square, flops=0.6)
    assert {leaf.dtype for leaf in jax.tree.leaves(pruned.params)} == {jnp.dtype(jnp.bfloat16)}
    assert pruned.report.flops <= 0.6 * pruned.report.flops_before


# Tuning.


def feed_forward(params, x):
    return x @ params["in"] + jax.nn.relu(x @ params["up"]) @ params["down"]


def test_tuning_solves_the_least_squares_of_the_layer():
    """Against `lstsq` of contributions that are written out."""
    rng = np.random.default_rng(3)
    shapes = {"in": (6, 4), "up": (6, 12), "down": (12, 4)}
    params = {n: jnp.asarray(rng.normal(size=s), jnp.float32) for n, s in shapes.items()}
    batches = [
        (jnp.asarray(x), jnp.zeros((50, 4))) for x in np.float32(rng.normal(size=(2, 50, 6)))
    ]
    found = prune(feed_forward, params, batches, mean_square, flops=0.6)
    (group,) = found.report.groups
    x = np.concatenate([x for x, _ in batches])
    hidden = np.maximum(x @ params["up"], 0)
    parts = hidden[:, :, None] * np.asarray(params["down"])  # (rows, units, outputs)
    teacher = prune(
        feed_forward, params, batches, mean_square, flops=0.6**0.5, rearrange=False, tune=False
    ).report.groups[0]
    wanted = parts[:, teacher.kept].sum(1).ravel()
    matrix = parts[:, group.kept].transpose(0, 2, 1).reshape(-1, len(group.kept))
    exact = np.linalg.lstsq(matrix, wanted, rcond=None)[0]
    # The damping on MᵀM is nothing beside entries of M in the hundreds.
    np.testing.assert_allclose(group.scales, exact, atol=2e-3)
    scaled = np.asarray(found.params["down"])[group.kept] / np.asarray(params["down"])[group.kept]
    np.testing.assert_allclose(
        scaled, np.broadcast_to(group.scales[:, None], scaled.shape), rtol=1e-5
    )
    plain = prune(feed_forward, params, batches, mean_square, flops=0.6, tune=False)
    assert plain.report.groups[0].kept.tolist() == group.kept.tolist()
    assert (plain.report.groups[0].scales == 1).all()

    def error(params):
        return np.linalg.norm(
            np.asarray(feed_forward(params, x) - x @ params["in"]).ravel() - wanted
        )

    assert error(found.params) < 0.99 * error(plain.params)


def test_a_constant_is_fitted_for_heads():
    """Heads that make the same constant and little else: the column of ones takes it."""
    expected, params, batches, fn, _ = encoder_case()
    del expected
    found = prune(fn, params, batches, mean_square, flops=0.9, groups="layers/0/.*o.")
    (group,) = found.report.groups
    kept, teacher = group.kept, np.arange(4)
    teacher = prune(fn, params, batches, mean_square, flops=0.9**0.5, groups="layers/0/.*o.",
                    rearrange=False, tune=False).report.groups[0].kept  # fmt: skip
    p = params["layers"][0]
    x = np.concatenate([x for x, _ in batches])
    q, k, v = ((x @ p[n]).reshape(*x.shape[:2], 4, 4) for n in "qkv")
    weights = np.asarray(jax.nn.softmax(np.einsum("bthd,bshd->bhts", q, k) / 2))
    mixed = np.einsum("bhts,bshd->bthd", weights, v)
    parts = np.einsum("bthd,hdn->bthn", mixed, p["o"].reshape(4, 4, 16))
    matrix = parts[:, :, kept].transpose(0, 1, 3, 2).reshape(-1, len(kept))
    matrix = np.concatenate([matrix, np.ones((len(matrix), 1))], 1)
    exact = np.linalg.lstsq(matrix, parts[:, :, teacher].sum(2).ravel(), rcond=None)[0]
    np.testing.assert_allclose(group.scales, exact[:-1], atol=2e-3)


def test_layers_see_those_before_as_they_are_pruned_and_scaled(monkeypatch):
    fn, params, batches = llama()
    seen = []
    real = retrain_free.contributions.Contributions.normal_equations

    def noted(self, student, *args, **kwargs):
        seen.append(student)
        return real(self, student, *args, **kwargs)

    monkeypatch.setattr(retrain_free.contributions.Contributions, "normal_equations", noted)
    found = prune(fn, params, batches, mean_square, flops=0.6)
    first, *_, last = seen
    assert not np.array_equal(first[0]["o"], found.params[0]["o"])
    np.testing.assert_array_equal(last[0]["o"], found.params[0]["o"])
    np.testing.assert_array_equal(last[0]["down"], found.params[0]["down"])


def test_the_teacher_is_counted_once_for_all_groups():
    fn, params, batches = llama()
    traced = []

    def noted(params, x):
        traced.append(isinstance(params[0]["o"], jax.core.Tracer))
        return fn(params, x)

    groups = js.graph.structure(fn, params, batches[0][0]).groups
    kept = {group.name: np.arange(group.units) < group.units - 1 for group in groups}
    whole = {group.name: np.ones(group.units, bool) for group in groups}
    scales, left = retrain_free.tuned_scales(noted, params, batches, groups, kept, whole)
    assert not left and all((scales[name][kept[name]] != 1).any() for name in kept)
    # What is read by what, the teacher's rows, and of each group both models.
    assert len(traced) == 2 + 2 * len(groups)


def test_what_is_left_at_one_is_named():
    fn, params, batches = llama(layers=1)
    names = [group.name for group in js.graph.structure(fn, params, batches[0][0]).groups]
    found = prune(fn, params, batches, mean_square, flops=0.6, untuned=names[:1])
    heads, neurons = found.report.groups
    assert heads.untuned == "left out by untuned=" and (heads.scales == 1).all()
    assert neurons.untuned is None and (neurons.scales != 1).any()
    assert "left out by untuned=" in str(found.report)


def test_scales_out_of_bounds_leave_the_group_at_one():
    """The kept unit is a hundredth of the other, and alike: it would have to be scaled by 101."""
    up = jnp.array([[1.0, 1.0]])
    params = {"up": up, "down": jnp.array([[1.0], [0.01]])}
    batches = [(jnp.array([[x]]), jnp.array([[0.01 * x]])) for x in (1.0, 2.0)]

    def fn(params, x):
        return x @ params["up"] @ params["down"]

    groups = js.graph.structure(fn, params, batches[0][0]).groups
    name = groups[0].name
    kept, teacher = {name: np.array([False, True])}, {name: np.array([True, True])}
    scales, left = retrain_free.tuned_scales(fn, params, batches, groups, kept, teacher)
    assert scales[name].tolist() == [0, 1] and "101 were beyond 10" in left[name]


def test_altered_readers_are_left_at_one():
    def fn(params, x):
        weight = params["down"] * params["gain"][:, None]
        return x + jnp.tanh(x @ params["up"]) @ weight

    params = {"up": jnp.eye(4, 8) + 0.1, "down": jnp.eye(8, 4) + 0.2, "gain": jnp.arange(8.0) + 1}
    batches = [(jnp.asarray(x), jnp.zeros((3, 4))) for x in np.float32(RNG.normal(size=(2, 3, 4)))]
    found = prune(fn, params, batches, mean_square, flops=0.5)
    (group,) = found.report.groups
    assert "'down'" in group.untuned and (group.scales == 1).all()


# Budgets of latency.


def test_a_table_of_latency():
    fn, params, batches = llama(layers=1)
    heads, neurons = js.graph.structure(fn, params, batches[0][0]).groups
    table = {(heads.name, 1): 0.3, (heads.name, 2): 0.5}
    table |= {(neurons.name, n): 0.1 * n for n in (4, 8, 12, 20)}
    found = prune(fn, params, batches, mean_square, seconds=1.75, latency=table)
    counts = [len(each.kept) for each in found.report.groups]
    assert counts[1] in (4, 8, 12) and found.report.seconds <= 1.75
    assert found.report.seconds_before == 2.5
    np.testing.assert_allclose(
        found.report.seconds, table[heads.name, counts[0]] + table[neurons.name, counts[1]]
    )
    assert "1.7 of 2.5 s" in str(found.report)


# What is refused.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flops": 0.01}, r"flops=0\.01 is out of reach: .*from flops=0\.\d+ on"),
        ({"flops": 0}, "flops=0; a share"),
        ({"flops": 1.5}, r"flops=1\.5; a share"),
        ({"flops": math.nan}, "flops=nan; a share"),
        ({}, "flops=, or seconds= with latency="),
        ({"flops": 0.5, "seconds": 1.0}, "flops=, or seconds= with latency="),
        ({"seconds": 1.0}, "flops=, or seconds= with latency="),
        ({"flops": 0.5, "groups": "x"}, "groups='x' matches none of"),
        ({"flops": 0.5, "groups": "("}, r"groups='\(': "),
        ({"flops": 0.5, "untuned": ["x"]}, "untuned: 'x' is no group"),
        ({"seconds": 1.0, "latency": {("x", 1): 1.0}}, "is of no group"),
        ({"seconds": 1.0, "latency": {"up, down": 1.0}}, "latency: 'up, down' is no pair"),
        ({"seconds": 1.0, "latency": {("up, down", 9): 1.0}}, "keeps 1 to 8 units"),
        ({"seconds": 1.0, "latency": {("up, down", 0): 1.0}}, "keeps 1 to 8 units"),
        ({"seconds": 1.0, "latency": {("up, down", 8): math.nan}}, "takes nan"),
        ({"seconds": 1.0, "latency": {("up, down", 4): 1.0}}, "no entry .'up, down', 8."),
        ({"seconds": 1.0, "latency": {("up, down", 8): 2.0}}, "out of reach.* seconds=2.0 on"),
    ],
)
def test_budgets_that_are_none_are_refused_before_anything_runs(options, message):
    params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))}

    def loss(outputs, targets):
        raise AssertionError("it ran")

    def fn(params, x):
        return x + jnp.tanh(x @ params["up"]) @ params["down"]

    with pytest.raises(ValueError, match=message):
        prune(fn, params, [(jnp.ones((2, 4)), jnp.ones((2, 4)))], loss, **options)


def test_the_lowest_reachable_share_is_reachable():
    fn, params, batches = chain()
    with pytest.raises(ValueError) as error:
        prune(fn, params, batches, mean_square, flops=0.001)
    share = float(re.search(r"from flops=([\d.]+) on", str(error.value))[1])
    found = prune(fn, params, batches, mean_square, flops=share, tune=False)
    assert [len(each.kept) for each in found.report.groups] == [1, 1, 1]


def test_batches_and_losses_that_are_none():
    fn, params, batches = llama(layers=1)
    with pytest.raises(TypeError, match="batches is one array"):
        prune(fn, params, jnp.ones((2, 3)), mean_square, flops=0.5)
    with pytest.raises(TypeError, match="batch 0 is no pair"):
        prune(fn, params, [batches[0][0]], mean_square, flops=0.5)
    with pytest.raises(ValueError, match="no batches"):
        prune(fn, params, [], mean_square, flops=0.5)
    with pytest.raises(ValueError, match=r"the loss of a batch is .*one floating number"):
        prune(fn, params, batches, lambda y, t: y - t, flops=0.5)
    bad = [*batches, (batches[0][0] * jnp.nan, batches[0][1])]
    with pytest.raises(ValueError, match="not finite in batch 4"):
        prune(fn, params, bad, mean_square, flops=0.5)
    with pytest.raises(ValueError, match="no heads and no neurons"):
        prune(lambda p, x: x @ p, jnp.ones((3, 2)), [(jnp.ones((2, 3)), 0)], mean_square, flops=0.5)


def test_integer_weights_have_no_gradient():
    params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4), jnp.int8)}

    def fn(params, x):
        return x + jnp.tanh(x @ params["up"]) @ params["down"].astype(jnp.float32)

    batches = [(jnp.ones((2, 4)), jnp.ones((2, 4)))]
    with pytest.raises(ValueError, match=r"'down' of shape .* is int8, which has no gradient"):
        prune(fn, params, batches, mean_square, flops=0.5)


# Edges of budgets and losses.


def residual(params, x):
    return x + jnp.tanh(x @ params["up"]) @ params["down"]


WIDE = {
    name: jnp.asarray(RNG.normal(size=s), jnp.float32)
    for name, s in (("up", (4, 16)), ("down", (16, 4)))
}
FEW = [(jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32), jnp.zeros((8, 4))) for _ in range(2)]


def test_what_is_paid_for_whole_stays_whole():
    for _ in range(20):
        costs = [np.sort(RNG.random(4)) for _ in range(4)]
        values = [np.sort(RNG.random(4)) for _ in range(4)]
        for budget in (sum(paid[-1] for paid in costs), math.inf):
            assert knapsack(costs, values, budget) == [3] * 4
    importance = {"a": np.array([3.0, 1.0]), "b": np.array([2.0, 1.0, 1.0])}
    kept = search_costs(importance, {"a": 2, "b": 1}, math.inf)
    assert all(units.all() for units in kept.values())
    for search in (
        lambda: knapsack(costs, values, math.nan),
        lambda: search_costs(importance, {"a": 2, "b": 1}, math.nan),
    ):
        with pytest.raises(ValueError, match="over nan"):
            search()


def test_the_seconds_that_an_error_quotes_work():
    table = {("up, down", count): 0.01234543 * count for count in np.arange(1, 17)}
    run = functools.partial(prune, residual, WIDE, FEW, mean_square, latency=table)
    with pytest.raises(ValueError, match="out of reach") as error:
        run(seconds=0.0123)
    least = float(re.search(r"from seconds=(\S+) on", str(error.value))[1])
    assert [len(group.kept) for group in run(seconds=least).report.groups] == [1]
    with pytest.raises(ValueError, match=r"seconds='1' is out of reach"):
        run(seconds="1")


@pytest.mark.parametrize(
    "loss", [lambda y, _: 3.0, lambda y, _: jnp.inf + 0 * y.sum(), lambda y, _: 0 * y.sum()]
)
def test_a_loss_that_tells_no_unit_from_another_is_refused(loss):
    with pytest.raises(ValueError, match=r"all gradients of \['up, down'\] are 0 in all 2 batches"):
        prune(residual, WIDE, FEW, loss, flops=1.0)


def test_losses_shares_and_inputs_that_are_none_are_refused():
    with pytest.raises(ValueError, match="the loss of a batch is None"):
        prune(residual, WIDE, FEW, lambda y, _: None, flops=0.5)
    with pytest.raises(ValueError, match=r"flops='0\.5'"):
        prune(residual, WIDE, FEW, mean_square, flops="0.5")
    with pytest.raises(ValueError, match=r"multiplies nothing.*\(0, 4\)"):
        prune(residual, WIDE, [(jnp.ones((0, 4)), jnp.ones((0, 4)))], mean_square, flops=0.5)
