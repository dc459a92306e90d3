"""NetAdapt: the authors' worked steps, what is refused, and what a kill leaves."""

import itertools
import json
import math
import pathlib
import warnings

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsparse as js
from jaxsparse.allocation import netadapt, reduction_bound, tuner
from jaxsparse.allocation.netadapt.rules import Candidate, choose, in_question, proposal

CASES = {
    case["id"]: case
    for case in json.loads(
        (pathlib.Path(__file__).parent.parent / "cases" / "netadapt.json").read_text()
    )["cases"]
}
RUNS = [id for id in CASES if CASES[id]["kind"] == "netadapt"]


class Network(linen.Module):
    """The network of the cases."""

    @linen.compact
    def __call__(self, x):
        for features in (16, 32, 64):
            x = linen.relu(linen.Conv(features, (3, 3))(x))
        return linen.Conv(10, (3, 3))(x).mean((1, 2))


X = jnp.ones((1, 16, 16, 3))
SHAPES = jax.eval_shape(lambda: Network().init(jax.random.key(0), X))
PARAMS = jax.tree.map(
    lambda leaf: jnp.asarray(np.random.default_rng(0).normal(size=leaf.shape), leaf.dtype), SHAPES
)
STRUCTURE = js.graph.structure(Network().apply, PARAMS, X)
NAMES = [group.name for group in STRUCTURE.groups]


class Given:
    """A cost by a function of the widths."""

    def __init__(self, of, units, unit="ms"):
        self.of, self.units, self.unit = of, units, unit

    def total(self, widths=()):
        return self.of(*(self.units | dict(widths)).values())


def table(of):
    """A cost in milliseconds by what each convolution reads and writes."""

    def whole(*widths):
        return sum(of(before, after) for before, after in itertools.pairwise([3, *widths, 10]))

    return Given(whole, dict(zip(NAMES, (16, 32, 64), strict=True)))


MACS = js.allocation.Flops(Network().apply, PARAMS, X)
LATENCY = table(lambda a, b: 0.25 * math.ceil(a / 16) * math.ceil(b / 16) + 0.125)


def filters(params):
    """How many filters of each prunable convolution are not zero."""
    kernels = [params["params"][f"Conv_{i}"]["kernel"] for i in range(3)]
    return [int((jnp.abs(kernel).sum((0, 1, 2)) > 0).sum()) for kernel in kernels]


def formula(params):
    """The accuracy of the cases."""
    shares = [1 - width / size for width, size in zip(filters(params), (16, 32, 64), strict=True)]
    return 90 - sum(c * share**1.5 for c, share in zip((1.5, 4.0, 14.0), shares, strict=True))


def search(cost=MACS, budget=0.45, evaluate=formula, params=PARAMS, **options):
    options = {"short": 0, "long": 0, "initial": 0.08} | options
    total = cost.total()
    return netadapt(Network().apply, params, X, evaluate, cost, budget * total, **options)


@pytest.mark.parametrize("id", RUNS)
def test_steps_are_the_authors(id):
    given, expected = CASES[id]["inputs"], CASES[id]["expected"]
    cost = LATENCY if "table" in given else MACS
    # The latency case was run by the default rule of the code.
    choice = "accuracy" if "highest" in given.get("selection", "") else "ratio"
    found = search(
        cost,
        given["budget_ratio"],
        initial=given["initial_reduction_ratio"],
        decay=given["decay"],
        choice=choice,
    )
    assert found.cost_before == expected["initial_resource"]
    by_iteration = {}
    for each in found.candidates:
        by_iteration.setdefault(each.iteration, []).append(each)
    assert len(by_iteration) == len(expected["iterations"])
    for step in expected["iterations"]:
        tried = by_iteration[step["iteration"]]
        begun = [each for each in found.chosen if each.iteration < step["iteration"]]
        before = begun[-1].cost if begun else found.cost_before
        assert [each.target for each in tried] == pytest.approx([step["target"]] * 3)
        for each, wanted in zip(tried, step["proposals"], strict=True):
            assert each.group == NAMES[wanted["block"]]
            assert (each.width, each.cost) == (wanted["width"], wanted["resource"])
            assert each.meets == wanted["meets_target"]
            if each.accuracy is not None:
                assert each.accuracy == pytest.approx(wanted["accuracy"])
            # What cannot be chosen is not tuned; all else is.
            meets = any(other.meets for other in tried) and choice == "accuracy"
            in_play = each.meets if meets else each.cost < before
            assert (each.accuracy is not None) == in_play
        (chosen,) = (each for each in tried if each.chosen)
        assert chosen.group == NAMES[step["chosen_block"]]
        assert chosen.cost == step["resource"]
    assert list(found.allocation.widths.values()) == expected["iterations"][-1]["widths"]
    assert filters(found.params) == expected["iterations"][-1]["widths"]
    assert found.cost == cost.total(found.allocation.widths) <= found.budget


@pytest.mark.parametrize("id", [id for id in CASES if id not in RUNS])
def test_bound_of_the_reduction(id):
    given, expected = CASES[id]["inputs"], CASES[id]["expected"]
    initial, decay = given["initial_reduction_ratio"], given["decay"]
    assert reduction_bound(initial, decay) == pytest.approx(expected["total_reduction_bound"])
    found = [reduction_bound(initial, decay, count) for count in (10, 50, 100)]
    wanted = expected["reduction_after_10_50_100_steps_if_each_just_meets_its_target"]
    assert found == pytest.approx(wanted)
    assert reduction_bound(0.1, 1, 3) == pytest.approx(0.3)


def test_the_result_shrinks_to_its_widths():
    found = search(budget=0.6)
    small, run, _ = js.graph.shrink(Network().apply, found.params, found.masks, X)
    widths = list(found.allocation.widths.values())
    kernels = [small["params"][f"Conv_{i}"]["kernel"].shape[2:] for i in range(4)]
    assert kernels == list(zip([3, *widths], [*widths, 10], strict=True))
    np.testing.assert_allclose(run(small, X), Network().apply(found.params, X), rtol=1e-4)
    assert js.allocation.Flops(run, small, X).total() == found.cost
    assert json.loads(json.dumps(found.to_dict()))["widths"] == dict(found.allocation.widths)
    assert str(found).count("\n") == 1 + len(found.chosen)
    assert found.masks["params/Conv_0/kernel"].shape == (3, 3, 3, 16)


def test_the_filters_of_the_largest_norm_stay_and_none_comes_back():
    seen = []

    def evaluate(params):
        kernel = np.asarray(params["params"]["Conv_2"]["kernel"])
        seen.append(frozenset(np.flatnonzero(np.abs(kernel).sum((0, 1, 2)))))
        return 1.0

    # Filters 40 to 47 are there and zero: gone ones are no better.
    kernel = PARAMS["params"]["Conv_2"]["kernel"].at[..., 40:48].set(0)
    params = {"params": PARAMS["params"] | {"Conv_2": {"kernel": kernel, "bias": jnp.ones(64)}}}
    found = search(budget=0.55, evaluate=evaluate, params=params, groups=[NAMES[2]])
    norms = np.linalg.norm(np.asarray(kernel).reshape(-1, 64), axis=0)
    width = found.allocation.widths[NAMES[2]]
    assert seen[-1] == set(np.argsort(-norms, kind="stable")[:width])
    kept = np.flatnonzero(found.masks["params/Conv_2/bias"])
    assert len(kept) == width and set(kept) == seen[-1]
    assert found.allocation.widths[NAMES[0]] == 16


def test_units_that_are_gone_stay_gone_where_all_scores_are_equal():
    found = search(budget=0.6, score=lambda group, leaves: jnp.zeros(group.units))
    for group, width in zip(STRUCTURE.groups, found.allocation.widths.values(), strict=True):
        kept = np.asarray(found.masks[group.members[0].path])
        axis = tuple(i for i in range(kept.ndim) if i != group.members[0].axis)
        assert kept.any(axis).tolist() == [True] * width + [False] * (group.units - width)


def test_a_budget_for_the_whole_network_narrows_nothing():
    found = search(budget=1, tune=lambda *_: pytest.fail("nothing is to be tuned"), short=1, long=1)
    assert found.candidates == () and found.cost == found.cost_before
    assert found.allocation.widths == dict(zip(NAMES, (16, 32, 64), strict=True))


def test_the_proposal_is_the_largest_multiple_below_the_target():
    assert proposal(40, 8, 8, float, 24) == (16, 16)  # 24 is not below 24
    assert proposal(40, 8, 24, float, 20) == (24, 24)
    assert proposal(5, 8, 5, float, 3) == (5, 5)
    steps = {40: 4.0, 32: 4.0, 24: 3.0, 16: 3.0, 8: 3.0}
    assert proposal(40, 8, 8, steps.__getitem__, 3.5) == (24, 3.0)


def test_choices_where_nothing_meets_the_target():
    far = Candidate(1, "a", 8, 95, 90, accuracy=0.9)
    dear = Candidate(1, "b", 8, 105, 90, accuracy=0.99)
    assert in_question([far, dear], "accuracy", 100) == [far]
    assert choose([far, dear], "accuracy", 100, 0.95) is far
    assert choose([dear], "ratio", 100, 0.95) is None
    close, same = (Candidate(1, name, 8, 80 - i, 90, accuracy=0.9) for i, name in enumerate("cd"))
    assert choose([close, same], "accuracy", 100, 0.95) is same  # the cheaper of equal ones


def test_tuning_is_masked_and_counts_on():
    seen, short, long = [], 2, 3
    weights = jax.tree.map(lambda leaf: leaf + 1, PARAMS)

    def tune(params, masks, steps):
        seen.append(steps)
        js_masked = js.mask_params(params, masks)
        jax.tree.map(np.testing.assert_array_equal, params, js_masked)
        return weights  # dense again: masks are put in force all the same

    found = search(budget=0.7, tune=tune, short=short, long=long)
    assert filters(found.params) == list(found.allocation.widths.values())
    iterations = len(found.chosen)
    expected = [
        range(short * (each.iteration - 1), short * each.iteration)
        for each in found.candidates
        if each.accuracy is not None
    ]
    assert seen == [*expected, range(short * iterations, short * iterations + long)]


def problem():
    """A classifier, its data, and its accuracy by how many it gets wrong."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(64, 6)), jnp.float32)
    y = (x[:, 0] * x[:, 1] > 0).astype(int)
    sizes = {"a": (6, 16), "b": (16, 16), "c": (16, 2)}
    params = {name: jnp.asarray(rng.normal(size=s) / 2, jnp.float32) for name, s in sizes.items()}

    def fn(params, x):
        return jax.nn.relu(jax.nn.relu(x @ params["a"]) @ params["b"]) @ params["c"]

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(fn(params, x), y).mean()

    return fn, params, x, y, loss


# Multiplications for one of its inputs.
PRODUCTS = Given(lambda a, b: 6 * a + a * b + 2 * b, {"a, b": 16, "b, c": 16}, "MACs")


def test_tuning_with_an_optimizer_keeps_what_is_learned():
    fn, params, x, y, loss = problem()
    tune = tuner(loss, [(x[i::4], y[i::4]) for i in range(4)], optax.adam(1e-2))
    accuracy = jax.jit(lambda params: jnp.mean(fn(params, x).argmax(1) == y))
    params = tune(params, {}, range(150))

    def run(short, long, tune):
        options = {"short": short, "long": long, "tune": tune, "divisor": 4}
        return netadapt(fn, params, x, accuracy, PRODUCTS, 180, initial=0.2, **options)

    tuned, bare = run(20, 100, tune), run(0, 0, None)
    assert tuned.cost <= 180 and bare.cost <= 180
    assert tuned.accuracy > bare.accuracy + 0.05
    assert accuracy(tuned.params) == pytest.approx(tuned.accuracy)


def test_one_compilation_tunes_all_widths():
    fn, params, x, y, loss = problem()
    traces = []

    def counted(params, x, y):
        traces.append(1)
        return loss(params, x, y)

    tune = tuner(counted, [(x, y)], optax.adam(1e-2))
    accuracy = jax.jit(lambda params: -loss(params, x, y))
    options = {"short": 2, "long": 2, "tune": tune, "divisor": 2, "initial": 0.1}
    found = netadapt(fn, params, x, accuracy, PRODUCTS, 250, **options)
    assert len(found.candidates) > 4 and len(traces) == 1


def test_tuner_leaves_other_leaves_as_they_are():
    params = {"w": jnp.ones(3, jnp.bfloat16), "mean": jnp.ones(2), "count": jnp.arange(2)}
    masks = {"w": jnp.array([True, False, True])}

    def loss(params, x):
        return (params["w"] * x).sum().astype("float32") + params["mean"].sum()

    tune = tuner(loss, [(jnp.ones((), jnp.bfloat16),)], optax.sgd(0.25), paths="w")
    found = tune(params, masks, range(2))
    assert found["w"].dtype == jnp.bfloat16
    assert found["w"].tolist() == [0.5, 0.0, 0.5]
    np.testing.assert_array_equal(found["mean"], params["mean"])
    np.testing.assert_array_equal(found["count"], params["count"])
    with pytest.raises(ValueError, match="names no leaf of floats"):
        tuner(loss, [1.0], optax.sgd(0.1), paths="count")(params, masks, range(1))
    with pytest.raises(ValueError, match="no batches"):
        tuner(loss, [], optax.sgd(0.1))
    with pytest.raises(TypeError, match="no function"):
        tuner([], loss, optax.sgd(0.1))


@pytest.mark.parametrize("choice", ["accuracy", "ratio"])
def test_a_killed_run_goes_on_to_the_same_result(tmp_path, choice):
    fn, params, x, y, loss = problem()
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), params)
    tune = tuner(loss, [(x[i::4], y[i::4]) for i in range(4)], optax.adam(1e-2))
    accuracy = jax.jit(lambda params: -loss(params, x, y).astype("float32"))
    calls = []

    def run(folder=None, kill=None):
        def evaluate(params):
            calls.append(1)
            if len(calls) == kill:
                raise KeyboardInterrupt
            return accuracy(params)

        calls.clear()
        options = {"short": 3, "long": 3, "tune": tune, "divisor": 4, "initial": 0.1}
        options |= {"choice": choice, "folder": folder}
        return netadapt(fn, params, x, evaluate, PRODUCTS, 200, **options)

    whole = run()
    count = len(calls)
    assert count > 6
    for kill in range(2, count + 1):
        folder = tmp_path / str(kill)
        with pytest.raises(KeyboardInterrupt):
            run(folder, kill)
        assert run(folder).to_dict() == whole.to_dict()
        assert len(calls) == count - (kill - 2)
    found = run(folder)
    assert len(calls) == 1  # of the whole network, which says that it is the same run
    jax.tree.map(np.testing.assert_array_equal, found.params, whole.params)
    jax.tree.map(np.testing.assert_array_equal, found.masks, whole.masks)
    assert len(list(folder.glob("candidate-*.npz"))) <= 2


@pytest.mark.parametrize("after", range(1, 6))
def test_a_run_killed_while_it_writes_goes_on(tmp_path, monkeypatch, after):
    from jaxsparse.allocation.netadapt import progress

    wanted = search(budget=0.6).to_dict()
    replacing, left = progress.replacing, [after]

    def killed(path):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return replacing(path)

    with monkeypatch.context() as patch:
        patch.setattr(progress, "replacing", killed)
        with pytest.raises(KeyboardInterrupt):
            search(budget=0.6, folder=tmp_path)
    found = search(budget=0.6, folder=tmp_path)
    assert found.to_dict() == wanted and filters(found.params) == list(wanted["widths"].values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0.7}, "another settings"),
        ({"choice": "ratio"}, "another settings"),
        ({"cost": LATENCY}, "another settings and another cost"),
        ({"params": jax.tree.map(lambda leaf: leaf * 2, PARAMS)}, "another weights"),
        ({"evaluate": lambda params: formula(params) - 1}, "another accuracy"),
    ],
)
def test_a_folder_of_another_run_is_refused(tmp_path, change, message):
    search(budget=0.8, folder=tmp_path)
    with pytest.raises(ValueError, match=message):
        search(**{"budget": 0.8, "folder": tmp_path} | change)


def test_a_folder_in_use_is_refused(tmp_path):
    def again(candidate):
        with pytest.raises(ValueError, match="another folder, would work"):
            search(folder=tmp_path)

    assert search(budget=0.8, folder=tmp_path, on_candidate=again).candidates


def test_a_folder_that_cannot_be_read_is_refused(tmp_path):
    search(budget=0.6, folder=tmp_path)
    notes = tmp_path / "netadapt.json"
    for file in tmp_path.glob("candidate-*.npz"):
        file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"candidate-.* cannot be read"):
        search(budget=0.6, folder=tmp_path)
    held = json.loads(notes.read_text())
    held["candidates"][0]["width"] = 24
    notes.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"another run: in iteration 1 it took .* to width 24"):
        search(budget=0.6, folder=tmp_path)
    for text in ("{", "[]", "{}"):
        notes.write_text(text)
        with pytest.raises(ValueError, match=r"netadapt.json cannot be read"):
            search(budget=0.6, folder=tmp_path)
    notes.unlink()
    with pytest.raises(ValueError, match=r"arrays, but no netadapt.json"):
        search(budget=0.6, folder=tmp_path)


def never(params):
    pytest.fail("refused before anything is evaluated")


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"budget": 0.01}, ValueError, "at the lowest widths.*costs 534528 of 7.48"),
        ({"budget": 0.6, "lowest": {NAMES[1]: 32}, "groups": NAMES[:2]}, ValueError, "lowest="),
        ({"budget": 0}, ValueError, "budget=0.*would work"),
        ({"budget": math.nan}, ValueError, "budget=nan"),
        ({"groups": ["params/Conv_3"]}, ValueError, "'params/Conv_3' is no group of units that"),
        ({"groups": NAMES[0]}, TypeError, "is no list"),
        ({"groups": []}, ValueError, "empty"),
        ({"lowest": {NAMES[0]: 17}}, ValueError, "lowest: .* keeps 17 of 16"),
        ({"lowest": {"b": 1}}, ValueError, "lowest: 'b' is no group"),
        ({"divisor": 0}, ValueError, "divisor=0"),
        ({"divisor": {"b": 8}}, ValueError, "divisor: 'b' is no group"),
        ({"divisor": 8.0}, TypeError, "divisor=8.0"),
        ({"initial": 0}, ValueError, "initial=0"),
        ({"decay": 1.1}, ValueError, "decay=1.1"),
        ({"choice": "best"}, ValueError, "choice='best'"),
        ({"short": -1}, ValueError, "short=-1"),
        ({"short": 5}, TypeError, "tune=None is no function, and short=5, long=0"),
        ({"cost": table(lambda a, b: math.inf)}, ValueError, "the cost is inf ms with widths"),
        ({"cost": PRODUCTS}, ValueError, "has 16 units, in the cost it has none"),
    ],
)
def test_what_is_refused_before_the_search(options, error, message):
    with pytest.raises(error, match=message):
        search(**{"evaluate": never} | options)


def test_a_model_without_units_is_refused():
    params = {"w": jnp.ones((3, 4))}
    with pytest.raises(ValueError, match="no heads, neurons or channels"):
        netadapt(
            lambda p, x: x @ p["w"], params, jnp.ones((2, 3)), never, MACS, 1.0, short=0, long=0
        )


def test_a_budget_beyond_the_bound_warns_and_is_met_all_the_same():
    with pytest.warns(UserWarning, match=r"take off 62.5% in all .*initial=0.025, decay=0.96"):
        found = search(budget=0.3, initial=0.025)
    assert found.cost <= 0.3 * found.cost_before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        search(budget=0.38, initial=0.025)


@pytest.mark.parametrize("value", [math.nan, "0.5", None, 10**400])
def test_an_accuracy_in_a_folder_that_is_no_number_is_refused(tmp_path, value):
    """NaN is above no other accuracy and below none, so that another candidate would go on."""
    search(budget=0.6, folder=tmp_path)
    notes = tmp_path / "netadapt.json"
    held = json.loads(notes.read_text())
    held["candidates"][0]["accuracy"] = value
    notes.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"netadapt.json cannot be read: .*(accuracy|digits)"):
        search(budget=0.6, folder=tmp_path)
    held["candidates"][0] = None
    notes.write_text(json.dumps(held))
    with pytest.raises(ValueError, match=r"netadapt.json cannot be read"):
        search(budget=0.6, folder=tmp_path)


@pytest.mark.parametrize(("value", "shown"), [(None, "None"), (jnp.ones(3), r"of shape \(3,\)")])
def test_an_evaluation_that_gives_no_number_is_named(value, shown):
    with pytest.raises(TypeError, match=f"gives .*{shown} for the whole network; one number"):
        search(evaluate=lambda params: value)


def test_an_accuracy_that_is_no_number_names_its_candidate():
    with pytest.raises(
        ValueError, match=r"evaluate gives nan for 'params/.*' at width .* iteration 1"
    ):
        search(evaluate=lambda params: math.nan if filters(params) != [16, 32, 64] else 1.0)


def test_a_cost_that_no_single_group_lowers_says_so():
    cost = Given(lambda *widths: 1.0 if set(widths) == {8} else 4.0, MACS.units)
    with pytest.raises(RuntimeError, match="no group alone makes the network cheaper than 4, "):
        search(cost, budget=0.5)


def test_divisors_and_lowest_widths_are_kept_to():
    found = search(budget=0.5, divisor={NAMES[1]: 5}, lowest={NAMES[2]: 41})
    widths = [each.width for each in found.candidates if each.group == NAMES[1] and each.chosen]
    assert widths and all(width % 5 == 0 for width in widths)
    assert found.allocation.widths[NAMES[2]] in (48, 56, 64)


def test_heads_go_one_by_one():
    class Attention(linen.Module):
        @linen.compact
        def __call__(self, x):
            return x + linen.MultiHeadDotProductAttention(num_heads=4, name="attention")(x, x)

    x = jnp.ones((1, 3, 8))
    params = Attention().init(jax.random.key(0), x)
    cost = Given(lambda heads: heads, {"params/attention": 4}, "heads")
    found = netadapt(
        Attention().apply, params, x, lambda params: 1.0, cost, 2, short=0, long=0, initial=0.3
    )
    assert [each.width for each in found.chosen] == [2]


def test_states_of_nnx_models_go_on_from_a_folder(tmp_path):
    net = nnx.Sequential(
        *(nnx.Linear(4, 16, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(16, 3, rngs=nnx.Rngs(1)))
    )
    graph, params = nnx.split(net, nnx.Param)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(8, 4)), jnp.float32)

    def fn(params, x):
        return nnx.merge(graph, params)(x)

    def loss(params, x):
        return jnp.mean((fn(params, x) - fn(net_params, x)) ** 2)

    net_params, flops = params, js.allocation.Flops(fn, params, x)
    options = {"tune": tuner(loss, [x], optax.adam(1e-2)), "short": 2, "long": 2}
    options |= {"initial": 0.2, "folder": tmp_path}
    accuracy = jax.jit(lambda params: -loss(params, x))
    runs = [
        netadapt(fn, params, x, accuracy, flops, 0.5 * flops.total(), **options) for _ in range(2)
    ]
    assert runs[0].to_dict() == runs[1].to_dict()
    jax.tree.map(np.testing.assert_array_equal, runs[0].params, runs[1].params)
    small = js.graph.shrink(fn, runs[1].params, runs[1].masks, x)[0]
    assert js.leaves_by_path(small)["layers/0/kernel"].shape == (4, 8)
