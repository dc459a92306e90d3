"""AMC on traced models: budgets, masks, least squares, resuming."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js
from jaxsparse import locks
from jaxsparse.allocation import DDPG, Flops, amc, layers, narrow
from jaxsparse.allocation.amc.environment import rollout
from jaxsparse.allocation.amc.plans import unit_plan, walk_through
from jaxsparse.allocation.amc.reconstruction import Readers
from jaxsparse.allocation.amc.terms import terms_of
from jaxsparse.allocation.costs.flops import WHOLE

FEW = DDPG(hidden=8, batch=8, warmup=3, replay=4)


def weights(seed, **shapes):
    keys = jax.random.split(jax.random.key(seed), len(shapes))
    return {
        name: jax.random.normal(key, shape) / np.sqrt(np.prod(shape[:-1]))
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def convolved(x, kernel, groups=1):
    return jax.lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def chain():
    """Convolutions, one of them depthwise, that follow each other, and a classifier."""
    params = weights(
        0, first=(3, 3, 1, 12), depth=(3, 3, 1, 12), point=(1, 1, 12, 20), third=(3, 3, 20, 10),
        head=(10, 3),
    )  # fmt: skip

    def fn(params, x):
        x = jax.nn.relu(convolved(x, params["first"]))
        x = jax.nn.relu(convolved(x, params["depth"], params["depth"].shape[-1]))
        x = jax.nn.relu(convolved(x, params["point"]))
        x = jax.nn.relu(convolved(x, params["third"]))
        return x.mean((1, 2)) @ params["head"]

    return fn, params, jax.random.normal(jax.random.key(1), (2, 5, 5, 1))


def residual():
    """Blocks on a stream: a bottleneck of two groups that follow each other."""
    params = weights(0, stem=(4, 8), head=(8, 3)) | {
        f"block{i}": weights(i, down=(8, 6), mid=(6, 9), up=(9, 8)) for i in (1, 2)
    }

    def fn(params, x):
        x = x @ params["stem"]
        for i in (1, 2):
            block = params[f"block{i}"]
            y = jax.nn.relu(jax.nn.relu(x @ block["down"]) @ block["mid"])
            x = x + y @ block["up"]
        return x @ params["head"]

    return fn, params, jax.random.normal(jax.random.key(1), (7, 4))


def shared():
    """Gated neurons, which two kernels write, read by a kernel that a second group reads too."""
    params = weights(0, gate=(4, 12), value=(4, 12), down=(12, 8), head=(8, 3))
    params |= weights(1, query=(4, 15), key=(4, 15))

    def fn(params, x):
        y = jax.nn.silu(x @ params["gate"]) * (x @ params["value"])
        y = y @ params["down"]
        scores = (x @ params["query"]) @ (x @ params["key"]).T
        return jax.nn.softmax(scores) @ jax.nn.relu(y) @ params["head"]

    return fn, params, jax.random.normal(jax.random.key(1), (6, 4))


MODELS = {model.__name__: model for model in (chain, residual, shared)}


class Plateaus:
    """Milliseconds that rise in steps of four units, as those of a device do."""

    unit = "ms"

    def __init__(self, flops):
        self._flops, self.units = flops, flops.units

    def total(self, widths=WHOLE, densities=WHOLE):
        found = {name: min(-(-n // 4) * 4, self.units[name]) for name, n in widths.items()}
        return 0.3 + 1e-3 * self._flops.total(found, densities)


@pytest.mark.parametrize("kind", [lambda flops: flops, Plateaus], ids=["exact", "plateaus"])
@pytest.mark.parametrize("name", MODELS)
def test_no_random_episode_of_a_traced_model_is_over_its_budget(name, kind):
    fn, params, x = MODELS[name]()
    cost, structure = kind(Flops(fn, params, x)), js.graph.structure(fn, params, x)
    plan = unit_plan(
        structure, params, groups=None, lower=0.2, divisor=2, levels=99, score="l1",
        readers=lambda _: None,
    )  # fmt: skip
    assert {name: counts[-1] for name, counts in zip(plan.names, plan.counts, strict=True)} == {
        group.name: group.units for group in structure.groups
    }
    least = plan.total(cost, dict.fromkeys(range(len(plan.names)), 0))
    budget = 0.7 * least + 0.3 * cost.total()
    env = walk_through(plan, cost, budget, layers(fn, params, x))
    act = lambda seen, key: jax.random.uniform(key)  # noqa: E731
    keys = jax.random.split(jax.random.key(1), 1000)
    options = np.asarray(jax.jit(jax.vmap(lambda key: rollout(env, act, key).options))(keys))
    costs = np.array([plan.total(cost, dict(enumerate(map(int, each)))) for each in options])
    assert costs.max() <= budget
    always = rollout(env, lambda seen, key: 1.0, jax.random.key(0)).options
    tight = plan.total(cost, dict(enumerate(map(int, always))))
    assert 0.85 * budget < tight <= budget


def test_three_groups_in_one_product_are_refused():
    values = [[1, 2, 3]] * 3

    def total(options):
        return int(np.prod([values[step][options.get(step, -1)] for step in range(3)]))

    with pytest.raises(ValueError, match="no sum over pairs"):
        terms_of(total, values, [], "abc")


@pytest.mark.parametrize("whole", [True, False])
def test_tables_of_many_options_are_those_of_few_questions(whole):
    """Whole numbers follow a rule, steps of a table of latency do not."""
    values, asked = [list(range(2, 41, 2)), list(range(3, 34, 3))], []

    def total(options):
        asked.append(options)
        a, b = (values[step][options.get(step, -1)] for step in (0, 1))
        return 7 * a * b + 5 * a if whole else 0.1 * (-(-a // 8) * b) + 1

    terms = terms_of(total, values, [(0, 1)], "ab")
    assert (len(asked) < 120) == whole
    for a, b in [(0, 0), (3, 7), (19, 10), (8, 0)]:
        found = sum(t.costs[tuple((a, b)[s] for s in t.steps)].item() for t in terms)
        assert found == pytest.approx(total({0: a, 1: b}), rel=1e-12)


def likeness(fn, params, x):
    """How near a pruned model is to the whole one: 1 where it is the same."""
    wanted = fn(params, x)
    scale = jnp.mean(wanted**2)
    return lambda pruned: 1 / (1 + jnp.mean((fn(pruned, x) - wanted) ** 2) / scale)


@pytest.fixture(scope="module")
def found():
    """A search by units, compiled as a whole."""
    fn, params, x = chain()
    cost = Flops(fn, params, x)
    traces = []
    near = likeness(fn, params, x)

    def evaluate(pruned):
        traces.append(pruned)
        return near(pruned)

    search = amc(
        fn, params, (x,), evaluate, cost, 0.5 * cost.total(), divisor=2, episodes=12, settings=FEW,
        batches=jax.random.normal(jax.random.key(2), (5, 2, *x.shape[1:])),
    )  # fmt: skip
    return fn, params, x, cost, search, traces


def test_a_search_is_one_program(found):
    *_, traces = found
    # The whole model, the question whether it can be traced, and the loop.
    assert len(traces) == 3


def test_what_is_found_is_the_best_that_was_tried(found):
    fn, params, x, cost, search, _ = found
    history, widths = search.history, search.allocation.widths
    at = int(np.argmax(history.rewards))
    assert search.accuracy == pytest.approx(history.accuracies[at])
    np.testing.assert_allclose(history.rewards, history.accuracies - 1, atol=1e-6)
    assert len(set(map(tuple, history.kept.tolist()))) > 6
    units = [group.units for group in js.graph.structure(fn, params, x).groups]
    np.testing.assert_allclose(history.kept[at] * units, [*widths.values()], rtol=1e-6)
    assert max(history.costs) <= 0.5 * cost.total()
    assert search.cost == cost.total(widths=widths) == history.costs[at]
    assert float(likeness(fn, params, x)(search.params)) == pytest.approx(search.accuracy, rel=1e-4)


def test_widths_make_the_same_masks_and_a_smaller_model(found):
    fn, params, x, _, search, _ = found
    structure = js.graph.structure(fn, params, x)
    masks = narrow(structure, params, search.allocation.widths, score="l1")
    assert masks.keys() == search.masks.keys()
    for path, mask in masks.items():
        np.testing.assert_array_equal(mask, search.masks[path])
    small, run, _ = js.graph.shrink(fn, search.params, search.masks, x)
    np.testing.assert_allclose(run(small, x), fn(search.params, x), atol=1e-5)
    assert Flops(run, small, x).total() == search.cost


def test_a_result_prints_a_line_for_each_decision(found):
    *_, search, _ = found
    head, _, *lines = str(search).splitlines()
    assert f"{search.cost} of {search.dense_cost} MACs" in head and "of 12 episodes" in head
    units = search.allocation.widths
    shares = {line.rsplit(maxsplit=1)[0]: float(line.split()[-1][:-1]) for line in lines}
    assert shares.keys() == units.keys()
    groups = {group.name: group.units for group in js.graph.structure(*found[:3]).groups}
    for name, share in shares.items():
        assert share == pytest.approx(100 * units[name] / groups[name], abs=0.06)


def test_a_result_is_json(found):
    *_, search, _ = found
    held = json.loads(json.dumps(search.to_dict()))
    assert held["allocation"]["widths"] == search.allocation.widths
    assert len(held["history"]["kept"]) == 12


def test_readers_are_solved_as_least_squares():
    fn, params, x = shared()
    x = jax.random.normal(jax.random.key(5), (40, 4)) @ jax.random.normal(jax.random.key(6), (4, 4))
    groups = js.graph.structure(fn, params, x).groups
    readers = Readers(fn, params, groups, [(x[:20],), (x[20:],)])
    assert not readers.unfitted
    (group,) = (g for g in groups if any(m.path == "down" and m.role == "reads" for m in g.members))
    stays = np.arange(group.units) % 3 > 0
    kept = {g.name: jnp.ones(g.units, bool) for g in groups} | {group.name: jnp.array(stays)}
    leaves = jax.tree.map(jnp.asarray, params)
    new = jax.jit(lambda problems: readers.solved(leaves, problems, kept))(readers.problems)
    met = np.asarray(jax.nn.silu(x @ params["gate"]) * (x @ params["value"]), np.float64)
    gram = met.T @ met
    gram += 0.01 * np.diag(gram).mean() * np.eye(len(gram))
    wanted = np.linalg.solve(gram[stays][:, stays], (gram @ params["down"])[stays])
    np.testing.assert_allclose(new["down"][stays], wanted, rtol=2e-3, atol=1e-4)
    assert not new["down"][~stays].any()
    # A weight all of whose units stay is what it was.
    np.testing.assert_allclose(new["head"], params["head"], rtol=1e-3, atol=1e-4)


def small():
    params = weights(0, up=(4, 16), down=(16, 8), head=(8, 3))

    def fn(params, x):
        return jax.nn.relu(jax.nn.relu(x @ params["up"]) @ params["down"]) @ params["head"]

    return fn, params, jax.random.normal(jax.random.key(1), (30, 4))


def run(episodes, evaluate=None, **options):
    fn, params, x = small()
    cost = Flops(fn, params, x)
    near = jax.jit(likeness(fn, params, x))
    evaluate = (lambda pruned: float(near(pruned))) if evaluate is None else evaluate(near)
    options = {"divisor": 2, "settings": FEW, "every": 2} | options
    return amc(fn, params, (x,), evaluate, cost, 0.5 * cost.total(), episodes=episodes, **options)


@pytest.mark.parametrize(("sizes", "few"), [((1,), 1), ((9, 6), 15), ((10, 6), None)])
def test_readers_that_see_fewer_rows_than_inputs_are_warned_of(sizes, few):
    fn, params, x = small()
    groups = js.graph.structure(fn, params, x).groups
    batches = [(jax.random.normal(jax.random.key(size), (size, x.shape[-1])),) for size in sizes]
    if few is None:
        Readers(fn, params, groups, batches)
        return
    with pytest.warns(UserWarning, match=f"'down': '{few} for 16 inputs'.*reconstruct=False"):
        Readers(fn, params, groups, batches)


def test_least_squares_keep_more_than_masks_alone():
    fitted, masked = (run(3, reconstruct=each).history for each in (True, False))
    # The same policies: those of the warm-up know nothing of rewards.
    np.testing.assert_array_equal(fitted.kept, masked.kept)
    assert (fitted.accuracies > masked.accuracies + 0.02).all()


class Killed(Exception):
    pass


def test_an_evaluation_that_cannot_be_traced_is_a_loop_with_the_same_end(tmp_path):
    whole = run(9)

    def dying(near):
        left = iter(range(8))  # the whole model, whether it can be traced, six episodes

        def evaluate(pruned):
            if next(left, None) is None:
                raise Killed
            return float(near(pruned))

        return evaluate

    with pytest.raises(Killed):
        run(9, dying, folder=tmp_path)
    assert (tmp_path / "amc.npz").exists()
    calls = []

    def counted(near):
        def evaluate(pruned):
            calls.append(0)
            return float(near(pruned))

        return evaluate

    resumed = run(9, counted, folder=tmp_path)
    assert len(calls) == 2 + 3
    for mine, other in zip(resumed.history, whole.history, strict=True):
        np.testing.assert_array_equal(mine, other)
    assert resumed.allocation == whole.allocation
    # Compiled as a whole it is the same search but for rounding.
    traced = run(9, lambda near: near)
    np.testing.assert_allclose(traced.history.kept[:3], whole.history.kept[:3])
    np.testing.assert_allclose(traced.history.rewards[:3], whole.history.rewards[:3], atol=1e-5)


@pytest.mark.slow
def test_a_folder_goes_on_to_more_episodes_and_knows_other_searches(tmp_path):
    traced = {"evaluate": lambda near: near}
    run(4, **traced, folder=tmp_path)
    longer, whole = run(8, **traced, folder=tmp_path), run(8, **traced)
    for mine, other in zip(longer.history, whole.history, strict=True):
        np.testing.assert_array_equal(mine, other)
    with pytest.raises(ValueError, match="another search, with another settings"):
        run(8, **traced, folder=tmp_path, seed=1)
    with pytest.raises(ValueError, match="another search, with another evaluation"):
        run(8, lambda near: lambda pruned: 0.5 * near(pruned), folder=tmp_path)
    # Dense it is as accurate.
    with pytest.raises(ValueError, match="another search, with another evaluation"):
        run(8, lambda near: lambda pruned: near(pruned) ** 2, folder=tmp_path)
    with pytest.raises(ValueError, match="holds 8 episodes; episodes=8 or more would work"):
        run(6, **traced, folder=tmp_path)
    with pytest.raises(ValueError, match="another search, with another pruning"):
        run(8, **traced, folder=tmp_path, score="l2")
    with locks.held(tmp_path, "later"), pytest.raises(ValueError, match="would work"):
        run(8, **traced, folder=tmp_path)
    file = tmp_path / "amc.npz"
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"amc\.npz cannot be read"):
        run(8, **traced, folder=tmp_path)
    for damage in ({"run": "[1]"}, {"run": "[" * 100_000}, {"run": "{}", "episodes": [1, 2]}):
        np.savez(file, **({"episodes": 8} | damage))
        with pytest.raises(ValueError, match=r"amc\.npz cannot be read"):
            run(8, **traced, folder=tmp_path)


def test_single_weights_are_those_that_rules_prune(tmp_path):
    fn, params, x = small()
    cost = Flops(fn, params, x)
    rules = [js.Rule("up", js.Unstructured()), js.Rule("down", js.Block(2, 2))]
    search = amc(
        fn, params, (x,), likeness(fn, params, x), cost, 0.6 * cost.total(), rules=rules,
        episodes=6, settings=FEW, levels=9,
    )  # fmt: skip
    assert search.names == ("up", "down")
    sparsities = search.allocation.sparsities
    assert sum(sparsities.values()) > 0
    masks = js.compute_masks(params, rules, distribution=search.allocation)
    for path, mask in masks.items():
        np.testing.assert_array_equal(mask, search.masks[path])
    kept = {path: float(jnp.mean(mask)) for path, mask in masks.items()}
    assert search.cost == cost.total(densities=kept) <= 0.6 * cost.total()


@pytest.mark.slow
def test_both_rewards_and_ones_own():
    fn, params, x = small()
    cost = Flops(fn, params, x)
    options = {"divisor": 2, "episodes": 4, "settings": FEW}
    near = likeness(fn, params, x)
    both = amc(fn, params, (x,), near, cost, None, reward="error_and_cost", **options)
    wanted = (both.history.accuracies - 1) * np.log(both.history.costs)
    np.testing.assert_allclose(both.history.rewards, wanted, rtol=1e-4)
    own = amc(fn, params, (x,), near, cost, None, reward=lambda a, c: a - c / 1e4, **options)
    wanted = own.history.accuracies - own.history.costs / 1e4
    np.testing.assert_allclose(own.history.rewards, wanted, rtol=1e-4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": 1}, "a budget of 1 is out of reach"),
        ({"divisor": 64}, "is out of reach.* a smaller divisor= would work"),
        ({"groups": ["head"]}, "'head' is no group of units that can go"),
        ({"lower": 0}, "lower=0; a fraction"),
        ({"divisor": 0}, "divisor=0; a whole number from 1 on"),
        ({"episodes": 0}, "episodes=0; a whole number from 1 on"),
        ({"budget": None}, "without a budget the error alone"),
        ({"budget": float("nan")}, "budget=nan"),
        ({"reward": "accuracy"}, "reward='accuracy' is neither"),
        ({"evaluate": lambda params: 70.0}, "the accuracy of the whole model is 70.0"),
        ({"evaluate": lambda params: jnp.ones(2)}, r"of shape \(2,\)"),
        ({"rules": [js.Rule("up", js.NM(2, 4))]}, "the rule of 'up' says its sparsity, 0.5"),
        ({"rules": [js.Rule("up", js.Unstructured())], "groups": ["a"]}, "one of them would work"),
    ],
)  # fmt: skip
def test_what_cannot_be_searched_is_refused_before_the_search(options, message):
    fn, params, x = small()
    cost = Flops(fn, params, x)

    def evaluate(pruned):
        assert pruned is params, "an episode was run"
        return 1.0

    given = {"inputs": (x,), "evaluate": evaluate, "budget": cost.total() // 2}
    given |= {"divisor": 2} | options
    with pytest.raises(ValueError, match=message):
        amc(fn, params, cost=cost, **given)


def test_the_cost_of_another_model_is_refused():
    fn, params, x = small()
    with pytest.raises(ValueError, match="'up, down' has 16 units, in the cost it has none"):
        amc(fn, params, x, lambda params: 1.0, Flops(*residual()), 1)


@pytest.mark.parametrize("search", [amc, js.allocation.netadapt])
def test_a_cost_and_an_evaluation_in_each_others_place_are_refused(search):
    fn, params, x = small()
    swapped: tuple[Any, ...] = (Flops(fn, params, x), lambda params: 1.0)
    message = f"{search.__name__}: cost is function, which counts nothing; .*Flops"
    with pytest.raises(TypeError, match=message):
        search(fn, params, x, *swapped, 1)


def test_an_accuracy_that_is_no_share_is_named_with_its_episode():
    with pytest.raises(ValueError, match="the accuracy after episode 0 is nan"):
        run(3, lambda near: lambda pruned: jnp.where(near(pruned) == 1, 1.0, jnp.nan))
