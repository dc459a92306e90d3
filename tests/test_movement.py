"""Movement sparsity against autodiff, and against the published facts."""

import json
import math
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse as js
from jaxsparse.patterns.rules import resolve
from jaxsparse.pruning.movement import _above
from jaxsparse.trees import leaves_by_path

CASES = {
    case["id"]: case
    for case in json.loads((pathlib.Path(__file__).parent / "cases/movement.json").read_text())[
        "cases"
    ]
}


def numbers(values):
    return [float(value) for value in values]


def test_threshold_and_factor_of_nncf():
    case = CASES["sched_power2_window_1_3"]
    given, expected = case["inputs"], case["expected"]
    per_epoch = given["steps_per_epoch"]
    schedule = js.importance_threshold(
        begin=given["warmup_start_epoch"] * per_epoch,
        end=given["warmup_end_epoch"] * per_epoch,
        initial=given["init_importance_threshold"],
        final=given["final_importance_threshold"],
        power=given["power"],
    )
    steps = range(given["n_steps"])
    tau = [float(schedule.threshold(t, schedule.initial)) for t in steps]
    np.testing.assert_allclose(tau, numbers(expected["threshold"]), atol=1e-7)
    factor = given["importance_regularization_factor"]
    strengths = [factor * float(schedule.ramp(t)) for t in steps]
    np.testing.assert_allclose(
        strengths[: schedule.end], expected["factor"][: schedule.end], atol=1e-8
    )
    # From `end` on their scheduler still shows the factor, but masks are frozen and
    # nothing adds it to the loss.
    assert not any(strengths[schedule.end :])


def test_stages():
    case = CASES["stage_boundaries"]
    per_epoch = case["inputs"]["steps_per_epoch"]
    begin, end = (case["inputs"][f"warmup_{side}_epoch"] * per_epoch for side in ("start", "end"))
    schedule = js.importance_threshold(begin=begin, end=end, initial=-1.0)

    def stage(t):
        if math.isinf(schedule.threshold(t, -1.0)):
            return "pre"
        return "in" if t < end else "post"

    assert [stage(t) for t in range(case["inputs"]["n_steps"])] == case["expected"]["stage"]
    # Masks in force during step t are chosen by update t - 1, and none are for `end`.
    chosen = [bool(schedule.updates_at(jnp.asarray(t - 1))) for t in range(10)]
    assert chosen == [begin <= t < end for t in range(10)]


def test_threshold_and_lambda_of_nn_pruning():
    case = CASES["nn_pruning_threshold_and_lambda"]
    given, expected = case["inputs"], case["expected"]
    begin = given["initial_warmup"] * given["warmup_steps"]
    end = given["total_steps"] - given["final_warmup"] * given["warmup_steps"]
    schedule = js.importance_threshold(
        begin=begin,
        end=end,
        initial=given["initial_threshold"],
        final=given["final_threshold"],
        sigmoid=True,
        hold=True,
    )
    for t, tau, strength in zip(
        given["steps"], expected["threshold"], expected["regu_lambda"], strict=True
    ):
        if t >= begin:  # before, theirs is tau_0 = 0 and ours -inf: both keep every sigmoid
            assert np.isclose(schedule.threshold(t, 0.0), tau, atol=1e-7)
        assert np.isclose(given["final_lambda"] * schedule.ramp(t), strength, atol=1e-5)


@pytest.mark.parametrize("fact", CASES["mask_by_threshold_with_quantile_cap"]["expected"])
def test_mask_is_capped_by_a_quantile(fact, monkeypatch):
    monkeypatch.setattr(sys.modules[_above.__module__], "FLOOR", fact["max_percentile"])
    scores = jnp.asarray(fact["scores"], jnp.float32)
    spec = resolve([js.Rule("b", js.Unstructured(), 0.0)], {"b": scores})["b"]
    mask = _above({"b": scores}, jnp.float32(fact["threshold"]), {"b": spec})["b"].astype(int)
    expected = np.asarray(fact["mask"])
    if not expected.any():  # where theirs keeps nothing, ours keeps the best group
        expected = np.eye(len(expected), dtype=int)[0]
    np.testing.assert_array_equal(mask, expected)


@pytest.mark.slow
def test_the_cap_keeps_a_group_where_the_original_keeps_none():
    floor = CASES["mask_by_threshold_with_quantile_cap"]["derived_floor_failure"]
    for groups, theirs in zip(floor["groups"], floor["groups_kept"], strict=True):
        weight = jnp.zeros((32 * groups, 32))
        assert floor["group_size"] == 32 * 32
        spec = resolve([js.Rule("w", js.Block(32, 32), 0.0)], {"w": weight})["w"]
        scores = jax.random.permutation(jax.random.key(groups), jnp.arange(float(groups)))[:, None]
        mask = _above({"w": scores}, jnp.float32(1e9), {"w": spec})["w"]
        assert mask.sum() == max(theirs, 1)
        assert mask[jnp.argmax(scores)]


def test_score_gradient_is_a_group_sum():
    """dS_g = sum over the group of dL/dW' * W; the case is (out, in), our kernels (in, out)."""
    case = CASES["score_gradient_group_sum"]
    weight = jnp.asarray(case["inputs"]["weight"]).T
    slope = jnp.asarray(case["inputs"]["dL_dMaskedWeight"]).T
    patterns = {
        "fine": js.Unstructured(),
        "block_2x2": js.Block(2, 2),
        "per_dim_axis0": js.Channel(-1),
        "per_dim_axis1": js.Channel(0),
    }
    for name, pattern in patterns.items():
        pruner = js.prune(
            [js.Rule("w", pattern)],
            score=js.movement(optax.sgd(1.0)),
            schedule=js.importance_threshold(begin=5, end=9, initial=-1.0),
        )
        _, state = pruner.update({"w": slope}, pruner.init({"w": weight}), {"w": weight})
        expected = -np.asarray(case["expected"][name]).T
        np.testing.assert_allclose(
            np.asarray(state.score.scores["w"]).reshape(expected.shape), expected, atol=1e-6
        )


def test_score_shapes():
    case = CASES["score_shapes"]
    kernel, bias = jnp.zeros(case["inputs"]["weight_shape"][::-1]), jnp.zeros(4)
    pairs = {
        "fine": (js.Unstructured(), js.Unstructured()),
        "block": (js.Block(3, 2), js.Block(1, 2)),
        0: (js.Channel(-1), js.Unstructured()),
    }
    for fact in case["expected"]:
        mode = fact["config"].get("axis", fact["config"]["mode"])
        if mode not in pairs:
            continue
        rules = [js.Rule("l/kernel", pairs[mode][0]), js.Rule("l/bias", pairs[mode][1])]
        specs = resolve(rules, {"l": {"kernel": kernel, "bias": bias}})
        shape = specs["l/kernel"].group_shape
        assert math.prod(shape) == math.prod(fact["weight_scores"])
        assert math.prod(specs["l/bias"].group_shape) == math.prod(fact["bias_scores"])


def straight_through_reference(params, specs, factors, schedule, steps, loss):
    """Autodiff through M * W with a straight-through mask, two optimizers, plain numpy masks."""
    scores = {p: jnp.zeros(s.group_shape) for p, s in specs.items()}
    weights, learner = optax.adamw(1e-2), optax.adam(1e-1)
    w_state, s_state = weights.init(params), learner.init(scores)
    layers = len({p.rpartition("/")[0] for p in specs})
    history = []

    def objective(params, scores, masks, ramp):
        leaves = leaves_by_path(params)
        total = 0.0
        for path, spec in specs.items():
            soft = spec.expand(
                masks[path].astype(scores[path].dtype) - jax.lax.stop_gradient(scores[path])
            )
            leaves[path] = (soft + spec.expand(scores[path])) * leaves[path]
            size = spec.pattern.group_size(spec.view)
            total += factors[path] * ramp * 0.5 * jnp.mean(jax.nn.sigmoid(scores[path])) * size
        return loss(leaves) + total / layers

    for t in range(steps):
        if t < schedule.end:
            tau = float(schedule.threshold(t, schedule.initial))
            masks = {p: np.asarray(scores[p] > tau) for p in specs}
        assert all(m.any() for m in masks.values()), "the reference would need the floor"
        history.append(masks)
        grads, slopes = jax.grad(objective, (0, 1))(params, scores, masks, schedule.ramp(t))
        updates, w_state = weights.update(grads, w_state, params)
        params = optax.apply_updates(params, updates)
        updates, s_state = learner.update(slopes, s_state, scores)
        scores = optax.apply_updates(scores, updates)
    return params, scores, history


@pytest.mark.slow
def test_equals_autodiff_with_straight_through_scores():
    """To 1e-12 in float64 over 40 steps, masks falling and regrowing."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(3), 4)
        params = {
            "a": {
                "kernel": jax.random.normal(keys[0], (8, 12), jnp.float64),
                "bias": jax.random.normal(keys[1], (12,), jnp.float64),
            },
            "b": {"kernel": jax.random.normal(keys[2], (12, 4), jnp.float64)},
        }
        x = jax.random.normal(keys[3], (16, 8), jnp.float64)

        def loss(leaves):
            hidden = jnp.tanh(x @ leaves["a/kernel"] + leaves["a/bias"])
            return jnp.mean((hidden @ leaves["b/kernel"] - jnp.sin(x[:, :4])) ** 2)

        rules = [
            js.Rule("a/kernel", js.Block(2, 3)),
            js.Rule("a/bias", js.Block(1, 3)),
            js.Rule("b/kernel", js.Unstructured()),
        ]
        specs = resolve(rules, params)
        schedule = js.importance_threshold(begin=5, end=38, initial=-0.3, final=0.0)
        factors = {"a/kernel": 0.05, "a/bias": 0.05, "b/kernel": 0.2}
        want, want_scores, history = straight_through_reference(
            params, specs, factors, schedule, 40, loss
        )
        score = js.movement(optax.adam(1e-1), {"a/.*": 0.05, "b/.*": 0.2})
        pruner = js.prune(rules, score=score, schedule=schedule)
        tx = optax.chain(pruner, optax.adamw(1e-2))
        state, got = tx.init(params), params

        @jax.jit
        def step(params, state):
            seen = js.mask_params(params, js.masks(state))
            grads = jax.grad(lambda p: loss(leaves_by_path(p)))(seen)
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        fell = regrew = False
        for t in range(40):
            masks = {path: np.asarray(mask.groups) for path, mask in state[0].masks.items()}
            for path in masks:
                np.testing.assert_array_equal(masks[path], history[t][path], err_msg=f"{path} {t}")
                if t:
                    fell |= bool((history[t - 1][path] & ~masks[path]).any())
                    regrew |= bool((~history[t - 1][path] & masks[path]).any())
            got, state = step(got, state)
        assert fell and regrew, "the run must exercise both directions"
        for path, leaf in leaves_by_path(got).items():
            np.testing.assert_allclose(leaf, leaves_by_path(want)[path], rtol=0, atol=1e-12)
        for path, score in state[0].score.scores.items():
            np.testing.assert_allclose(score, want_scores[path], rtol=0, atol=1e-12)


def test_products_with_masked_weights_would_never_regrow():
    """The silent failure that raw weights avoid: scores of masked groups must keep moving."""
    params = {"w": jnp.ones((4, 4))}
    pruner = js.prune(
        [js.Rule("w", js.Unstructured())],
        score=js.movement(optax.sgd(1.0)),
        schedule=js.importance_threshold(begin=1, end=4, initial=-1.0),
    )
    state = pruner.init(params)
    _, state = pruner.update({"w": jnp.ones((4, 4)).at[0].set(-1.0)}, state, params)
    _, state = pruner.update({"w": jnp.zeros((4, 4))}, state, params)
    before = state.masks["w"].groups
    assert not before[1:].any() and before[0].all()
    _, state = pruner.update({"w": jnp.full((4, 4), -5.0)}, state, params)
    assert state.masks["w"].groups.all()


def test_adaptive_initial_threshold_leaves_a_thousandth_below():
    params = {"a": jnp.zeros((100, 30)), "b": jnp.zeros((10, 100))}
    slope = {
        p: jax.random.normal(jax.random.key(i), w.shape) for i, (p, w) in enumerate(params.items())
    }
    ones = jax.tree.map(jnp.ones_like, params)
    pruner = js.prune(
        [js.Rule("[ab]", js.Unstructured())],
        score=js.movement(optax.sgd(1.0)),
        schedule=js.importance_threshold(begin=2, end=10),
    )
    state = pruner.init(ones)
    _, state = pruner.update(slope, state, ones)
    assert np.isnan(state.threshold)
    _, state = pruner.update(jax.tree.map(jnp.zeros_like, slope), state, ones)
    everything = np.sort(np.concatenate([-np.ravel(s) for s in slope.values()]))
    assert state.threshold == everything[math.floor(0.001 * 4000)]


@pytest.mark.parametrize(
    "options",
    [
        {"score": js.movement(), "schedule": js.importance_threshold(begin=1, end=3)},
        {"sparsity": 0.5, "schedule": js.one_shot(), "regrowth": js.straight_through()},
    ],
    ids=["threshold", "straight_through"],
)
def test_pruned_refuses_what_needs_raw_weights(options):
    pruner = js.prune([js.Rule("w", js.Unstructured())], **options)
    with pytest.raises(ValueError, match="raw weights"):
        js.pruned(optax.sgd(1.0), pruner)
    # Inside a wrapper it is found out by the first update.
    params = {"w": jnp.ones((4, 4))}
    tx = js.pruned(optax.sgd(1.0), optax.chain(pruner))
    with pytest.raises(ValueError, match="raw weights"):
        tx.update(params, tx.init(params), params)


@pytest.mark.parametrize(
    "kwargs,message",
    [
        (dict(begin=3, end=3), "begin < end"),
        (dict(begin=-1, end=3), "begin < end"),
        (dict(begin=0, end=3), "at step 0 there are none"),
        (dict(begin=0, end=3, initial=0.0), "must lie below"),
        (dict(begin=1, end=2**31), "end=2147483648 lies beyond .* at most 2147483647"),
    ],
)
def test_bad_thresholds_are_errors(kwargs, message):
    with pytest.raises(ValueError, match=message):
        js.importance_threshold(**kwargs)


@pytest.mark.parametrize(
    "factor", [-0.1, {"w": -0.1}, math.nan, math.inf, "0.1", None, [0.1], True], ids=str
)
def test_a_factor_that_is_no_number_from_zero_on_is_an_error(factor):
    shown = re.escape(repr(factor["w"] if isinstance(factor, dict) else factor))
    with pytest.raises(ValueError, match=rf"{shown} of '(\.\*|w)'; a number from 0 on"):
        js.movement(regularization=factor)


def test_a_factor_of_no_expression_is_an_error():
    with pytest.raises(ValueError, match=r"of '\(' is of no regular expression"):
        js.movement(regularization={"(": 1.0})


def scores_after_one_step(params, rules, regularization):
    """With a gradient of zero the regularizer alone moves the scores."""
    pruner = js.prune(
        rules,
        score=js.movement(optax.sgd(1.0), regularization),
        schedule=js.importance_threshold(begin=0, end=10, initial=-1.0),
    )
    state = pruner.init(params)
    state = state._replace(count=state.count + 9)
    _, state = pruner.update(jax.tree.map(jnp.zeros_like, params), state, params)
    return state.score.scores


def test_factors_differ_by_leaf():
    params = {"a": {"kernel": jnp.ones((8, 4)), "bias": jnp.ones(4)}, "b": {"kernel": jnp.ones(6)}}
    rules = [js.Rule("a/kernel", js.Block(4, 2)), js.Rule("a/bias|b/.*", js.Unstructured())]
    even = scores_after_one_step(params, rules, 1.0)
    uneven = scores_after_one_step(params, rules, {"a/.*": 0.5, "b/kernel": 3.0})
    for path, factor in {"a/kernel": 0.5, "a/bias": 0.5, "b/kernel": 3.0}.items():
        assert (even[path] < 0).all()
        np.testing.assert_allclose(uneven[path], factor * even[path], rtol=1e-6)


@pytest.mark.parametrize(
    "factors,message",
    [
        ({"a": 1.0}, r"'b' has 0 regularization factors, of \[\] among \['a'\]"),
        ({"a": 1.0, ".": 1.0}, r"'a' has 2 regularization factors, of \['a', '\.'\]"),
        ({".": 1.0, "kernel": 1.0}, r"'kernel' matches no leaf that rules name; known: 'a', 'b'"),
    ],
)
def test_factors_that_do_not_fit_the_leaves_are_errors(factors, message):
    params = {"a": jnp.ones((2, 2)), "b": jnp.ones((2, 2))}
    pruner = js.prune(
        [js.Rule("a|b", js.Unstructured())],
        score=js.movement(regularization=factors),
        schedule=js.importance_threshold(begin=1, end=3),
    )
    with pytest.raises(ValueError, match=message):
        pruner.init(params)


def test_masks_in_force_just_before_the_end_stay():
    """`hold` chooses at the end, and after it."""
    params, slope = {"w": jnp.ones(8)}, {"w": jnp.ones(8).at[4:].set(-1.0)}
    history = {}
    for hold in (False, True):
        pruner = js.prune(
            [js.Rule("w", js.Unstructured())],
            score=js.movement(optax.sgd(1.0)),
            schedule=js.importance_threshold(begin=1, end=3, initial=-10.0, final=0.5, hold=hold),
        )
        state, kept = pruner.init(params), []
        for step in range(5):
            kept.append(int(state.masks["w"].groups.sum()))
            grads = slope if step < 2 else {"w": jnp.full(8, -9.0)}
            _, state = pruner.update(grads, state, params)
        history[hold] = kept
    # During steps 1 to 3 tau is -10, -0.8 and 0.5, and the lower scores are -1, -2 and 7.
    assert history == {False: [8, 8, 4, 4, 4], True: [8, 8, 4, 8, 8]}
