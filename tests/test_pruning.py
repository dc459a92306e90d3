"""`prune` and `pruned` on their own: what they refuse, and the fine print."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from members import PATTERNS, CountedJit, rules_for, small_params, step_of

import jaxsparse as js

W = {"w": jnp.arange(1.0, 17.0).reshape(4, 4)}
HALF = [js.Rule("w", js.Unstructured(), 0.5)]
THRESHOLD = js.importance_threshold(begin=1, end=5)


def one_shot():
    return js.prune(HALF, schedule=js.one_shot())


@pytest.mark.parametrize(
    "build,error,message",
    [
        (lambda: js.prune(), TypeError, "needs rules, or the masks"),
        (lambda: js.prune(["w"]), TypeError, "is no Rule"),
        (lambda: js.prune(HALF, schedule="cubic"), TypeError, "is no schedule"),
        (lambda: js.prune(HALF, schedule=0.5, score="magnitude"), TypeError, "is no score"),
        (lambda: js.prune(HALF, schedule=0.5, score=js.magnitude), TypeError, "is no score"),
        (lambda: js.prune(HALF, schedule=0.5, regrowth="rigl"), TypeError, "is no regrowth"),
        (
            lambda: js.prune(HALF, schedule=0.5, regrowth=js.straight_through),
            TypeError,
            r"is no regrowth; None, .*straight_through\(\) would work",
        ),
        (lambda: js.prune(HALF, schedule=0.5, distribution="erk"), TypeError, "no distribution"),
        (lambda: js.compute_masks(W, HALF, score=js.magnitude), TypeError, "is no score"),
        (lambda: js.targets(HALF, W, 0.5, js.erk), TypeError, r"no distribution; .* erk\(\)"),
        (lambda: js.prune(HALF, schedule=1.5), ValueError, r"1\.5 is not in \[0, 1\)"),
        (lambda: js.prune(HALF, sparsity=jnp.float32(0.5)), TypeError, "must be static"),
        (lambda: js.pruned(optax.sgd(1.0), one_shot(), reset="second"), ValueError, "none of"),
        (lambda: js.prune(HALF), ValueError, r"neither schedule nor masks.*masks=compute_masks"),
        (lambda: js.prune([js.Rule("w", js.NM(2, 4))]), ValueError, "neither schedule nor masks"),
        (lambda: js.prune(sparsity=0.9, rules=HALF), ValueError, "nothing would ever be pruned"),
        (lambda: js.prune(HALF, distribution=js.erk()), ValueError, "neither schedule nor masks"),
        (
            lambda: js.prune(masks=W, regrowth=js.regrow_random()),
            ValueError,
            "when the schedule says so",
        ),
        (lambda: js.prune(HALF, schedule=0.5, sparsity=0.9), ValueError, "sparsity=0.9 is given"),
        (lambda: js.prune(masks=W, sparsity=0.9), ValueError, "sparsity=0.9 is given"),
        (
            lambda: js.prune(HALF, schedule=THRESHOLD, sparsity=0.9),
            ValueError,
            "no sparsity is asked for, but sparsity=0.9 is given",
        ),
        (
            lambda: js.prune(HALF, schedule=THRESHOLD, regrowth=js.regrow_random()),
            ValueError,
            r"moves groups .* and schedule=ImportanceThreshold.* counts none",
        ),
        (lambda: js.prune(masks=W, schedule=js.one_shot()), ValueError, "without rules nothing"),
    ],
)
def test_bad_arguments(build, error, message):
    with pytest.raises(error, match=message):
        build()


def test_a_float_schedule_and_a_rules_sparsity_contradict():
    with pytest.raises(ValueError, match="the schedule is the sparsity itself"):
        js.prune(HALF, schedule=0.25).init(W)


def test_a_leaf_without_sparsity_is_named():
    tx = js.prune([js.Rule("w", js.Unstructured())], schedule=js.one_shot())
    with pytest.raises(ValueError, match=r"no sparsity for leaf 'w'.*would work"):
        tx.init(W)


def test_missing_params_and_masks():
    pruner = js.prune(HALF, schedule=js.one_shot())
    with pytest.raises(ValueError, match="prune needs the parameters"):
        pruner.update(W, pruner.init(W))
    tx = js.pruned(optax.sgd(1.0), pruner)
    with pytest.raises(ValueError, match="pruned needs the parameters"):
        tx.update(W, tx.init(W))
    with pytest.raises(ValueError, match="apply_masks needs the parameters"):
        js.apply_masks().update(W, optax.EmptyState())
    with pytest.raises(ValueError, match="apply_masks needs the masks"):
        js.apply_masks().update(W, optax.EmptyState(), W)


def test_masks_of_a_state():
    with pytest.raises(ValueError, match="no PruneState"):
        js.masks(optax.sgd(1.0).init(W))
    twice = optax.chain(one_shot(), one_shot()).init(W)
    with pytest.raises(ValueError, match="leaf 'w' is pruned twice"):
        js.masks(twice)
    state = one_shot().init(W)
    tree = js.masks(state, {"w": W["w"], "b": jnp.zeros(4)})
    assert tree["b"] is None and tree["w"].all()


def test_mask_params_names_what_does_not_fit():
    with pytest.raises(KeyError, match="did you mean 'w'"):
        js.mask_params(W, {"ww": jnp.ones((4, 4), bool)})
    with pytest.raises(ValueError, match=r"mask of 'w' has shape \(4,\), the leaf \(4, 4\)"):
        js.mask_params(W, {"w": jnp.ones(4, bool)})


def test_arguments_in_each_others_place_are_named():
    params, masks = {"w": jnp.ones(2)}, {"w": jnp.array([True, False])}
    with pytest.raises(ValueError, match=r"the mask of 'w' is of float32.*come first"):
        js.mask_params(masks, params)
    pruner = js.prune([js.Rule("w", js.Unstructured(), 0.5)], schedule=js.one_shot())
    with pytest.raises(ValueError, match="the optimizer comes first"):
        js.pruned(pruner, optax.adam(1e-3)).init(params)


def test_masked_nan_and_inf_are_zero():
    bad = {"w": jnp.full((4, 4), jnp.nan).at[0].set(jnp.inf)}
    seen = js.mask_params(bad, {"w": jnp.zeros((4, 4), bool)})
    assert not np.asarray(seen["w"]).any()


@pytest.mark.parametrize("bad", [jnp.nan, jnp.inf, -jnp.inf])
def test_weights_that_no_update_can_clear_are_refused(bad):
    """w + u is no zero for any u, so `pruned` could not keep its promise."""
    params = {"w": W["w"].at[0, 1].set(bad)}
    for tx in (one_shot(), js.pruned(optax.sgd(0.1), one_shot())):
        with pytest.raises(ValueError, match=r"1 of the weights of 'w', of shape.*nan_to_num"):
            tx.init(params)
    mask = {"w": jnp.ones((4, 4), bool).at[0, 1].set(False)}
    for cure in (js.mask_params(params, mask), {"w": jnp.nan_to_num(params["w"])}):
        tx = js.pruned(optax.sgd(0.1), js.prune(masks=mask))
        after, state = step_of(tx)(cure, tx.init(cure))
        assert after["w"][0, 1] == 0 and np.isfinite(after["w"]).all(), state


def test_initialised_under_jit_with_weights_and_masks_from_outside():
    mask = {"w": W["w"] > 8}
    for pruner in (one_shot(), js.prune(HALF, masks=mask)):
        inside = jax.jit(lambda pruner=pruner: pruner.init(W))()
        for a, b in zip(jax.tree.leaves(inside), jax.tree.leaves(pruner.init(W)), strict=True):
            np.testing.assert_array_equal(a, b)


def test_what_becomes_infinite_in_training_is_zero_where_it_is_masked():
    """The sum of an infinity and an update is no zero; `mask_params` is, and says so."""
    tx = js.pruned(optax.sgd(1.0), js.prune(masks={"w": jnp.ones((4, 4), bool).at[0].set(False)}))
    state, params = tx.init(W), {"w": W["w"].at[0, 0].set(jnp.inf)}
    params, state = jax.jit(step_of(tx))(params, state)
    masks = js.masks(state)
    assert (js.mask_params(params, masks)["w"][0] == 0).all()
    leaf = js.report(params, masks).leaves[0]
    assert leaf.non_finite == 1 and "mask_params" in leaf.note


def test_without_regrowth_nothing_comes_back_whatever_the_budget():
    """Given masks may be sparser than the schedule is yet, and a sparsity may be turned down."""
    mask = {"w": W["w"] > 12}
    pruner = js.prune(HALF, masks=mask, schedule=js.cubic(end=4))
    state, step = pruner.init(W), jax.jit(pruner.update)
    for _ in range(5):
        _, state = step(W, state, W)
        np.testing.assert_array_equal(js.masks(state)["w"], mask["w"])
    nm = js.prune([js.Rule("w", js.NM(2, 4))], masks=mask, schedule=js.cubic(end=4))
    _, state = nm.update(W, nm.init(W), W)
    np.testing.assert_array_equal(js.masks(state)["w"], mask["w"])


def test_static_masks_need_no_rules():
    mask = jax.random.bernoulli(jax.random.key(0), 0.5, (4, 4))
    tx = js.pruned(optax.adam(1.0), js.prune(masks={"w": mask}))
    params, state = W, tx.init(W)
    for _ in range(3):
        params, state = step_of(tx)(params, state)
    assert (js.masks(state)["w"] == mask).all()
    assert not np.asarray(params["w"])[~np.asarray(mask)].any()
    assert np.asarray(params["w"])[np.asarray(mask)].all()


def test_given_masks_must_fit_the_pattern():
    mask = jnp.ones((4, 4), bool).at[0, 0].set(False)
    blocks = js.prune([js.Rule("w", js.Block(2, 2), 0.5)], masks={"w": mask})
    for init in (blocks.init, jax.jit(blocks.init)):
        with pytest.raises(ValueError, match=r"mask of 'w' splits groups of Block\("):
            init(W)
    with pytest.raises(ValueError, match="no mask given for leaf 'w'"):
        js.prune(HALF, masks={"v": mask}).init(W)
    with pytest.raises(ValueError, match=r"mask for 'v', but no rule for it; known: 'w'"):
        js.prune(HALF, masks={"w": mask, "v": mask}).init(W)
    with pytest.raises(ValueError, match=r"mask of 'w' has shape"):
        js.prune(HALF, masks={"w": mask[:2]}).init(W)


def test_gradients_pass_under_the_masks_in_force():
    """The first update still has all weights in force: its gradients pass whole."""
    pruner = js.prune(HALF, schedule=js.one_shot())
    passed, state = pruner.update(W, pruner.init(W), W)
    np.testing.assert_array_equal(passed["w"], W["w"])
    passed, _ = pruner.update(W, state, W)
    np.testing.assert_array_equal(passed["w"] != 0, js.masks(state)["w"])


def test_a_score_of_the_wrong_shape_is_an_error():
    def score(shape):
        return js.Score(lambda w, s: (), lambda g, s, w, c: ({"w": jnp.ones(shape)}, s))

    for shape in [(4, 4), (2, 2)]:
        rules = [js.Rule("w", js.Block(2, 2), 0.5)]
        pruner = js.prune(rules, score=score(shape), schedule=js.one_shot())
        _, state = pruner.update(W, pruner.init(W), W)
        assert js.masks(state)["w"].sum() == 8
    pruner = js.prune(HALF, score=score((3,)), schedule=js.one_shot())
    with pytest.raises(ValueError, match=r"score of leaf 'w' has shape \(3,\)"):
        pruner.update(W, pruner.init(W), W)


@pytest.mark.parametrize("reset", ["first", "all", "none"])
def test_regrown_weights_start_at_zero_with_fresh_first_moments(reset):
    """RigL: what grows begins at 0; second moments stay, or Adam would overshoot."""
    pruner = js.prune(
        rules_for("unstructured"),
        schedule=js.constant(end=20, every=5),
        regrowth=js.regrow_gradient(0.5),
    )
    tx = js.pruned(optax.adam(1e-2), pruner, reset=reset, replace_update=True)
    params = small_params()
    state = tx.init(params)
    ones = jax.tree.map(jnp.ones_like, state.optimizer[0].mu)
    state = state._replace(
        optimizer=(state.optimizer[0]._replace(mu=ones, nu=ones), *state.optimizer[1:])
    )
    before = js.masks(state)["dense/kernel"]
    params, state = jax.jit(step_of(tx))(params, state)
    after = js.masks(state)["dense/kernel"]
    grown, stayed = np.asarray(after & ~before), np.asarray(after & before)
    assert grown.any()
    assert not np.asarray(params["dense"]["kernel"])[grown].any()
    mu, nu = (np.asarray(m["dense"]["kernel"]) for m in state.optimizer[0][1:])
    assert (mu[grown] == (reset == "none")).all() and (nu[grown] == (reset != "all")).all()
    assert mu[stayed].all() and nu[stayed].all()


def test_replace_update_freezes_the_optimizer_on_regrowth_steps():
    pruner = js.prune(
        rules_for("unstructured"),
        schedule=js.constant(end=9, every=3),
        regrowth=js.regrow_random(0.5),
    )
    tx = js.pruned(optax.adam(1e-2), pruner, replace_update=True)
    params = small_params()
    state = tx.init(params)
    counts, step = [], jax.jit(step_of(tx))
    for _ in range(7):
        params, state = step(params, state)
        counts.append(int(state.optimizer[0].count))
    assert counts == [0, 1, 2, 2, 3, 4, 4]


def test_sparse_training_begins_random_and_repeats_by_seed():
    def first(seed):
        pruner = js.prune(
            rules_for("block"), schedule=js.constant(end=9), regrowth=js.regrow_random(), seed=seed
        )
        return js.masks(pruner.init(small_params()))["dense/kernel"]

    assert first(0).mean() == 0.5
    assert (first(0) == first(0)).all() and (first(0) != first(1)).any()


def test_compute_masks_outside_training():
    masks = js.compute_masks(W, [js.Rule("w", js.Channel(-1))], sparsity=0.5)
    np.testing.assert_array_equal(masks["w"], np.arange(4) >= 2 + np.zeros((4, 1)))
    by_gradient = js.compute_masks(W, HALF, score=js.gradient(), grads={"w": -W["w"][::-1]})
    np.testing.assert_array_equal(by_gradient["w"], (W["w"] > 8)[::-1])


@pytest.mark.parametrize("pattern", ["unstructured", "block", "nm", "channel"])
@pytest.mark.parametrize("explicit", [False, True], ids=["auto", "explicit"])
def test_sharded_training(pattern, explicit):
    """On eight devices masks follow the weight's sharding, and the numbers are the same."""
    kind = jax.sharding.AxisType.Explicit if explicit else jax.sharding.AxisType.Auto
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    tx = js.pruned(
        optax.sgd(1e-2),
        js.prune([js.Rule("w", PATTERNS[pattern], 0.5)], schedule=js.cubic(end=4, every=2)),
    )
    weight = {"w": jax.random.normal(jax.random.key(0), (32, 32))}
    expected, reference = weight, tx.init(weight)
    for _ in range(6):
        updates, reference = tx.update(
            jax.tree.map(jnp.sin, js.mask_params(expected, js.masks(reference))),
            reference,
            expected,
        )
        expected = optax.apply_updates(expected, updates)
    with jax.set_mesh(mesh):
        spec = jax.sharding.PartitionSpec("x", "y")
        params = jax.device_put(weight, jax.sharding.NamedSharding(mesh, spec))
        state = jax.jit(tx.init)(params)

        @CountedJit
        def step(params, state):
            grads = jax.tree.map(jnp.sin, js.mask_params(params, js.masks(state)))
            updates, state = tx.update(grads, state, params)
            return optax.apply_updates(params, updates), state

        if pattern != "channel":  # one number a column lives on the columns' axis alone
            assert state.pruner.masks["w"].groups.sharding.spec == spec
        text = step.lower(params, state).compile().as_text()
        for collective in ("all-gather(", "all-to-all(", "collective-permute("):
            assert collective not in text, collective
        for _ in range(6):
            params, state = step(params, state)
        assert step.traces == 1
        assert params["w"].sharding.spec == spec
    np.testing.assert_array_equal(js.masks(state)["w"], js.masks(reference)["w"])
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-5)


NAMES = ["ema", "teacher", "m", "momentum", "mu", "teacher/m/momentum"]


@pytest.mark.parametrize(
    "name,reset,split",
    [(name, "first", "whole") for name in NAMES]
    + [("ema", "all", "whole"), ("ema", "first", "partition"), ("mu", "all", "partition")],
)
def test_a_copy_beside_the_pruned_branch_keeps_its_moments(name, reset, split):
    """Moments belong to a leaf by its whole path, not by the end of it."""
    a, b, c = jax.random.normal(jax.random.key(0), (3, 8, 8))
    params = {"encoder": {"kernel": a}, name: {"encoder": {"kernel": b}}, "head": c}
    rules = [js.Rule("encoder/kernel", js.Unstructured(), 0.5)]
    pruner = js.prune(rules, schedule=js.constant(end=20), regrowth=js.regrow_random(0.5))
    inner = plain = optax.adam(1e-2)
    if split == "partition":  # whose holes stand for the leaves of the other half
        labels = {"encoder": "x", name: "y", "head": "x"}
        inner = optax.partition({"x": plain, "y": optax.adam(1e-2)}, labels)
    steps, states, trained = [], [], []
    for tx in (js.pruned(inner, pruner, reset=reset), plain):

        @jax.jit
        def step(params, state, tx=tx):
            updates, state = tx.update(jax.tree.map(jnp.cos, params), state, params)
            return optax.apply_updates(params, updates), state

        steps.append(step)
        states.append(tx.init(params))
        trained.append(params)
    grown = 0
    for _ in range(3):
        before = js.masks(states[0])["encoder/kernel"]
        for at in (0, 1):
            trained[at], states[at] = steps[at](trained[at], states[at])
        regrown = np.asarray(js.masks(states[0])["encoder/kernel"] & ~before)
        moments = js.leaves_by_path(states[0].optimizer)
        own = min((path for path in moments if path.endswith("mu/encoder/kernel")), key=len)
        assert not np.asarray(moments[own])[regrown].any()
        grown += regrown.sum()
    assert grown
    for path in (f"{name}/encoder/kernel", "head"):
        ours, theirs = (js.leaves_by_path(params)[path] for params in trained)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5)


def explicit(shape, *axes):
    kind = jax.sharding.AxisType.Explicit
    mesh = jax.make_mesh((4, 2), ("x", "y"), axis_types=(kind, kind))
    spec = jax.sharding.PartitionSpec(*axes)
    weight = jax.random.normal(jax.random.key(0), shape)
    return mesh, jax.device_put(weight, jax.sharding.NamedSharding(mesh, spec))


CUT = [
    ((32, 16), (None, "x"), js.Block(4, 8)),
    ((32, 16), ("x", None), js.Block(16, 4)),
    ((8, 8), ("x", "y"), js.NM(2, 4)),
    ((8, 8), ("y", "x"), js.NM(2, 4, method="best")),
    ((30, 32), (None, ("x", "y")), js.Block(4, 16, pad=True)),
    ((2, 2, 8, 16), (None, None, "x", None), js.Block(4, 4)),  # a minor one of merged axes
]


@pytest.mark.parametrize("shape,axes,pattern", CUT)
def test_explicit_axes_that_cut_groups_say_path_and_cure(shape, axes, pattern):
    mesh, weight = explicit(shape, *axes)
    params, rules = {"conv": {"kernel": weight}}, [js.Rule(".*kernel", pattern)]
    pruner = js.prune(rules, sparsity=0.5, schedule=js.one_shot())
    message = r"on 'conv/kernel' of shape .*explicit sharding P.*PartitionSpec\(\).*AxisType\.Auto"
    with jax.set_mesh(mesh):
        for call in (pruner.init, lambda p: js.compute_masks(p, rules, sparsity=0.5)):
            with pytest.raises(ValueError, match=message):
                call(params)


def test_the_cure_of_a_cut_works():
    mesh, weight = explicit((32, 16), None, "x")
    rules = [js.Rule("w", js.Block(4, 8))]
    with jax.set_mesh(mesh):
        whole = {"w": jax.sharding.reshard(weight, jax.sharding.PartitionSpec())}
        masks = js.compute_masks(whole, rules, sparsity=0.5)
    plain = {"w": jnp.asarray(np.asarray(weight))}
    np.testing.assert_array_equal(masks["w"], js.compute_masks(plain, rules, sparsity=0.5)["w"])


WHOLE = [
    ((30, 32), (None, ("x", "y")), js.Block(4, 4, pad=True)),
    ((16, 8), ("x", "y"), js.NM(2, 4, method="greedy")),
    ((2, 2, 8, 16), (None, None, None, "x"), js.Block(4, 4)),
    ((4, 8, 16), ("x", None, "y"), js.Block(4, 4)),
    ((16, 16), ("x", "y"), js.Channel(0, reduce="max")),
]


@pytest.mark.slow
@pytest.mark.parametrize("shape,axes,pattern", WHOLE)
def test_explicit_axes_that_leave_groups_whole_change_nothing(shape, axes, pattern):
    mesh, weight = explicit(shape, *axes)
    rules = [js.Rule("w", pattern, in_axis=-2)]
    tx = js.pruned(optax.adam(1e-2), js.prune(rules, sparsity=0.5, schedule=js.one_shot()))

    def train(params):
        state = tx.init(params)
        for _ in range(2):
            params, state = jax.jit(step_of_sine(tx))(params, state)
        return params, js.masks(state)

    with jax.set_mesh(mesh):
        params, masks = train({"w": weight})
        assert params["w"].sharding == weight.sharding
    expected, expected_masks = train({"w": jnp.asarray(np.asarray(weight))})
    np.testing.assert_array_equal(masks["w"], expected_masks["w"])
    np.testing.assert_allclose(params["w"], expected["w"], rtol=1e-5)


def step_of_sine(tx):
    def step(params, state):
        grads = jax.tree.map(jnp.sin, js.mask_params(params, js.masks(state)))
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    return step
