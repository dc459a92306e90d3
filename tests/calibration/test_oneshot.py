"""One-shot methods: against the original codes' results, and as a user calls them."""

import base64
import itertools
import json
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

import jaxsparse as js
from jaxsparse.calibration import (
    Criterion,
    Target,
    alps,
    magnitude,
    observe,
    owl,
    prune_oneshot,
    quadratic,
    reconstruct,
    reconstructed,
    sites,
    sparsegpt,
    square_norms,
    swapped,
    wanda,
)

FILE = pathlib.Path(__file__).parents[1] / "cases/oneshot.json"
CASES = {case["id"]: case for case in json.loads(FILE.read_text())["cases"]}


def of_kind(*kinds):
    return [name for name, case in CASES.items() if case["kind"] in kinds]


def bits(rows):
    return np.array([[bit == "1" for bit in row] for row in rows]).T


def weights_of(text, shape):
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(shape[::-1]).T


class Layer:
    """A case turned to kernels (K, N)."""

    def __init__(self, name):
        case = CASES[name]
        space = {"numpy": np}
        exec(case["inputs"]["generator"], space)
        weight, x = eval(case["inputs"]["call"], space)
        self.x = x.reshape(-1, x.shape[-1])
        self.weight, self.expected = jnp.asarray(weight.T), case.get("expected", {})
        products = jnp.asarray(self.x.T @ self.x)
        met = {"products": products, "squares": jnp.diagonal(products)}
        self.state = met | {"first": met, "second": met}
        self.problem = quadratic(self.weight, products)
        self.block = int(case["inputs"].get("blocksize", 128))
        pattern, share = case["inputs"].get("pattern", ""), case["inputs"].get("sparsity")
        if found := re.match(r"(\d) (pruned|kept) of (\d)", pattern):
            n, m = int(found[1]), int(found[3])
            self.target = Target(js.NM(n if found[2] == "kept" else m - n, m))
        elif share is not None:
            per = "output" if pattern == "per row" else "layer"
            self.target = Target(js.Unstructured(), float(share), per)

    def run(self, criterion):
        mask, weight = jax.jit(criterion.prune, static_argnums=2)(
            self.weight, self.state, self.target
        )
        return mask, jnp.where(mask, self.weight if weight is None else weight, 0)

    def loss(self, weight):
        """|XW - XV|² in float64."""
        change = np.float64(self.x) @ (np.float64(self.weight) - np.float64(weight))
        return np.sum(change**2)


@pytest.mark.parametrize("name", of_kind("wanda"))
def test_wandas_masks_are_the_originals(name):
    layer = Layer(name)
    mask, weight = layer.run(wanda())
    np.testing.assert_array_equal(mask, bits(layer.expected["keep_mask"]))
    assert layer.loss(weight) <= layer.expected["loss"] * 1.001


# Upstream prunes one more than it is asked to; the cases beside this one ask for that.
UPSTREAM_COUNT = "sparsegpt_50_block128_upstream_count"


@pytest.mark.parametrize("name", [n for n in of_kind("sparsegpt") if n != UPSTREAM_COUNT])
def test_sparsegpts_masks_and_weights_are_the_originals(name):
    layer = Layer(name)
    mask, weight = layer.run(sparsegpt(block=layer.block))
    np.testing.assert_array_equal(mask, bits(layer.expected["keep_mask"]))
    expected = weights_of(layer.expected["weights_f32_b64"], layer.weight.shape)
    np.testing.assert_allclose(weight, expected, atol=1e-4 * np.abs(expected).max())
    assert layer.loss(weight) <= layer.expected["loss"] * 1.001


def test_sparsegpt_prunes_as_many_as_it_is_asked_to():
    layer = Layer(UPSTREAM_COUNT)
    mask, _ = layer.run(sparsegpt())
    assert mask.sum() == layer.expected["kept"] + 1 == mask.size // 2


@pytest.mark.parametrize("name", of_kind("alps"))
def test_alps_loses_no_more_than_the_original_and_least_of_all(name):
    layer = Layer(name)
    losses = {}
    criteria = {"alps": alps(), "sparsegpt": sparsegpt(), "wanda": wanda()}
    for method, criterion in criteria.items():
        mask, weight = layer.run(criterion)
        assert mask.sum() == layer.expected["kept"]
        losses[method] = layer.problem.loss(weight)
    assert losses["alps"] <= layer.expected["loss_damped"] * 1.001
    assert losses["alps"] <= losses["sparsegpt"] <= losses["wanda"]


@pytest.mark.parametrize("name", of_kind("wanda"))
def test_reconstruction_reaches_least_squares(name):
    layer = Layer(name)
    best = layer.expected["loss_damped_same_mask_least_squares"]
    mask = layer.run(wanda())[0]
    solve = jax.jit(reconstruct, static_argnames="steps")
    losses = [
        layer.problem.loss(solve(layer.problem, mask, steps=steps)) for steps in (0, 5, 10, 15)
    ]
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(losses))
    assert losses[1] <= best * 1.022 and losses[2] <= best * 1.0013
    assert losses[3] <= best * 1.0001


def test_reconstruction_of_a_given_mask():
    layer = Layer("reconstruct_given_mask")
    case = CASES["reconstruct_given_mask"]
    mask = bits(case["inputs"]["keep_mask"])
    weight = reconstruct(layer.problem, jnp.asarray(mask), steps=15)
    expected = weights_of(
        layer.expected["weights_least_squares_damped_f32_b64"], layer.weight.shape
    )
    assert layer.problem.loss(weight) <= layer.expected["loss_damped_least_squares"] * 1.0001
    np.testing.assert_allclose(weight, expected, atol=0.02 * np.abs(expected).max())


@pytest.mark.parametrize("name", of_kind("wanda"))
def test_no_swap_is_left(name):
    layer = Layer(name)
    target = layer.target
    mask, _ = layer.run(swapped(wanda()))
    before = layer.run(wanda())[0]
    group = target.pattern.m if isinstance(target.pattern, js.NM) else len(mask)

    def counts(m):
        return np.asarray(m).reshape(-1, group, m.shape[1]).sum(1)

    np.testing.assert_array_equal(counts(mask), counts(before))
    gram, w = np.float64(layer.problem.gram), np.float64(layer.problem.weight)

    def cost(kept, column):
        error = np.where(kept, 0, w[:, column])
        return error @ gram @ error

    for column in range(mask.shape[1]):
        kept = np.asarray(mask[:, column])
        least = cost(kept, column)
        assert least <= cost(np.asarray(before[:, column]), column) * 1.0001
        for out in np.flatnonzero(kept):
            for back in np.flatnonzero(~kept):
                if out // group == back // group:
                    other = kept.copy()
                    other[[out, back]] = False, True
                    assert cost(other, column) >= least * 0.9999


def test_nothing_is_below_the_optimum():
    layer = Layer("optimum_tiny_damped")
    originals = layer.expected["losses_of_original_codes"]
    half, rows = Target(js.Unstructured(), 0.5), Target(js.Unstructured(), 0.5, "output")
    runs = {
        "alps": (alps(), half, "optimum_layer_50"),
        "sparsegpt": (sparsegpt(), half, "optimum_layer_50"),
        "magnitude_layer": (magnitude(), half, "optimum_layer_50"),
        "wanda_rows": (wanda(), rows, "optimum_rows_50"),
        "alps_2of4": (alps(), Target(js.NM(2, 4)), "optimum_2of4"),
        "sparsegpt_2of4": (sparsegpt(), Target(js.NM(2, 4)), "optimum_2of4"),
    }
    for name, (criterion, target, optimum) in runs.items():
        layer.target = target
        loss = layer.problem.loss(layer.run(criterion)[1])
        assert layer.expected[optimum] * 0.9999 <= loss, name
        # SparseGPT here prunes 12 of 24, the original 13.
        assert loss <= originals[name] * 1.001, name


@pytest.mark.parametrize("criterion", [sparsegpt(), alps(), wanda()], ids=["obs", "admm", "wanda"])
def test_blocks(criterion):
    layer = Layer("alps_50")
    layer.target = Target(js.Block(4, 8), 0.5)
    mask, weight = layer.run(criterion)
    blocks = np.asarray(mask).reshape(16, 4, 4, 8).sum((1, 3))
    assert set(np.unique(blocks)) == {0, 32} and mask.mean() == 0.5
    assert layer.problem.loss(weight) < layer.problem.loss(jnp.zeros_like(weight))


def stack_of_blocks(name):
    case = CASES[name]
    space = {"numpy": np}
    exec(case["inputs"]["generator"], space)
    blocks, x = eval(case["inputs"]["call"], space)
    params = {str(i): {"up": u.T, "down": d.T} for i, (u, d) in enumerate(blocks)}
    return params, x, case["expected"]["keep_masks"]


def residual(params, x):
    for block in params.values():
        x = x + jax.nn.relu(x @ block["up"]) @ block["down"]
    return x


RULES = [js.Rule(".*", js.Unstructured(), 0.5)]


def test_later_blocks_see_pruned_ones():
    [name] = of_kind("wanda_model")
    params, x, expected = stack_of_blocks(name)

    def run(params, *paths):
        rules = [js.Rule(path, js.Unstructured(), 0.5) for path in paths]
        return prune_oneshot(residual, params, [(row,) for row in x], rules, per="output")

    # The original's `down` sees the dense `up` of its own block, so each is pruned by itself.
    pruned = params
    for i, (up, down) in enumerate(expected):
        first, second = run(pruned, f"{i}/up"), run(pruned, f"{i}/down")
        np.testing.assert_array_equal(first.masks[f"{i}/up"], bits(up))
        np.testing.assert_array_equal(second.masks[f"{i}/down"], bits(down))
        block = {"up": first.params[str(i)]["up"], "down": second.params[str(i)]["down"]}
        pruned = pruned | {str(i): block}
        left = np.asarray(block["up"])[~bits(up)]
        assert not left.any() and not np.signbit(left).any()


class Scanned(linen.Module):
    @linen.compact
    def __call__(self, x):
        class Layer(linen.Module):
            @linen.compact
            def __call__(self, x, _):
                h = linen.relu(linen.Dense(16, name="up")(x))
                return x + linen.DenseGeneral(8, name="down")(h), None

        layers = linen.scan(Layer, variable_axes={"params": 0}, split_rngs={"params": True})
        return layers(name="layers")(x, jnp.zeros((3, 0)))[0]


def test_a_scanned_stack_is_pruned_slice_by_slice_and_packs():
    model, x = Scanned(), jax.random.normal(jax.random.key(0), (32, 8))
    params = model.init(jax.random.key(1), x)

    def run(params, x):
        return model.apply(params, x)

    rules = [js.Rule(".*kernel", js.NM(2, 4))]
    found = prune_oneshot(run, params, [(x,)], rules, criterion=alps())
    assert {path: mask.shape for path, mask in found.masks.items()} == {
        "params/layers/up/kernel": (3, 8, 16),
        "params/layers/down/kernel": (3, 16, 8),
    }
    # One slice, by hand: what alps makes of what the first layer meets.
    kernel = params["params"]["layers"]["up"]["kernel"][0]
    products = {"products": x.T @ x}
    mask, weight = alps().prune(kernel, products, Target(js.NM(2, 4)))
    np.testing.assert_array_equal(found.masks["params/layers/up/kernel"][0], mask)
    ours = found.params["params"]["layers"]["up"]["kernel"][0]
    np.testing.assert_allclose(ours, jnp.where(mask, weight, 0), rtol=1e-5, atol=1e-6)

    axes = js.read_axes(rules, run, params, x)
    packed = js.pack_params(found.params, found.masks, axes)
    np.testing.assert_allclose(
        js.sparsify(run, on_dense="error")(packed, x), run(found.params, x), rtol=1e-4, atol=1e-4
    )


def test_a_convolution_a_tied_kernel_and_a_criterion_of_ones_own():
    params = {
        "conv": jax.random.normal(jax.random.key(0), (3, 3, 4, 8)),
        "tied": jax.random.normal(jax.random.key(1), (8, 8)),
    }

    def model(params, x):
        x = jax.lax.conv_general_dilated(
            x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jnp.tanh(x.mean((1, 2)) @ params["tied"])
        return x @ params["tied"]

    def prune(weight, state, target):
        return target.mask(jnp.abs(weight) * state["squares"][:, None]), None

    own = Criterion(square_norms(), prune)
    x = jax.random.normal(jax.random.key(2), (4, 6, 6, 4))
    found = prune_oneshot(model, params, [(x,), (x + 1,)], RULES, criterion=own)
    states = None
    for batch in (x, x + 1):
        # The tied kernel is pruned by both of its products, which see the pruned convolution.
        tied = params | {"conv": found.params["conv"]}
        _, states = observe(model, tied, batch, reducer=square_norms(), states=states)
    for site, state in states.items():
        weight = params[site.path].reshape(site.inputs, 8)
        scores = jnp.abs(weight) * state["squares"][:, None]
        cut = jnp.sort(scores.ravel())[scores.size // 2]
        np.testing.assert_array_equal(found.masks[site.path].reshape(site.inputs, 8), scores >= cut)


def test_bf16_weights_stay_bf16():
    params = {"w": jax.random.normal(jax.random.key(0), (8, 8), jnp.bfloat16)}
    x = jax.random.normal(jax.random.key(1), (32, 8), jnp.bfloat16)
    found = prune_oneshot(lambda p, x: x @ p["w"], params, [x], RULES, criterion=sparsegpt())
    assert found.params["w"].dtype == jnp.bfloat16 and found.masks["w"].mean() == 0.5


PARAMS = {"w": np.eye(8, dtype=np.float32), "idle": np.ones((8, 8), np.float32)}
X = np.ones((8, 8), np.float32)


def one(params, x):
    return x @ params["w"]


ONE = [js.Rule("w", js.Unstructured(), 0.5)]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"rules": RULES}, "no product meets 'idle' of shape"),
        ({"batches": []}, "no batches"),
        ({"batches": [X, X * np.nan]}, "argument 0 of batch 1, of shape .8, 8., has 64 NaN"),
        ({"batches": [X * np.inf]}, "what 'w' meets is not finite"),
        ({"params": PARAMS | {"w": np.full((8, 8), np.inf, "f")}}, "64 entries of 'w'"),
        ({"rules": [js.Rule("w", js.Unstructured())]}, "no sparsity for leaf 'w'"),
        ({"fn": lambda p, x: x @ p["w"] + x @ p["w"].T}, "'w'"),
        ({"rules": [js.Rule("w", js.Block(2, 2), 0.5)], "per": "output"}, "per='output'"),
        ({"rules": [js.Rule("w", js.Block(2, 2), 0.5)], "criterion": swapped(wanda())}, "swapped"),
    ],
    ids=["idle", "none", "nan", "inf", "weight", "sparsity", "twice", "per", "swaps"],
)
def test_what_cannot_be_pruned_is_refused(change, message):
    call = {"fn": one, "params": PARAMS, "batches": [X], "rules": ONE} | change
    with pytest.raises(ValueError, match=message):
        prune_oneshot(
            call.pop("fn"), call.pop("params"), call.pop("batches"), call.pop("rules"), **call
        )


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


@pytest.mark.parametrize(
    "shape,axis,program",
    [
        ((16, 8), 0, lambda p, x: x @ p["w"].T),
        ((16, 8), 1, lambda p, x: x @ p["w"].T),
        (
            (3, 8, 8),
            1,
            lambda p, x: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0],
        ),
        ((8, 4, 6), 1, lambda p, x: jnp.einsum("bd,dhk->bhk", x, p["w"])),
    ],
    ids=["outputs", "inputs", "stack", "heads"],
)
def test_channels_are_those_of_the_leaf(shape, axis, program):
    params, rules = {"w": normal(0, *shape)}, [js.Rule("w", js.Channel(axis), 0.5)]
    mask = prune_oneshot(program, params, [normal(1, 20, 8)], rules).masks["w"]
    batch = (0,) if shape[0] == 3 else ()
    rest = tuple(i for i in range(len(shape)) if i != axis and i not in batch)
    whole, some = mask.all(rest), mask.any(rest)
    np.testing.assert_array_equal(whole, some)
    assert (whole.sum(-1) == shape[axis] // 2).all()


def test_magnitude_is_that_of_compute_masks():
    conv = {"w": normal(0, 3, 3, 8, 6)}

    def run(p, x):
        return jax.lax.conv_general_dilated(
            x, p["w"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    for pattern in (js.Channel(-2), js.Channel(-1), js.Block(4, 3), js.NM(2, 4)):
        rules = [js.Rule("w", pattern, 0.5)]
        found = prune_oneshot(run, conv, [normal(1, 2, 6, 6, 8)], rules, criterion=magnitude())
        expected = js.compute_masks(conv, js.read_axes(rules, run, conv, normal(1, 2, 6, 6, 8)))
        np.testing.assert_array_equal(found.masks["w"], expected["w"])


@pytest.mark.parametrize("inputs", [5, 6, 134])
@pytest.mark.parametrize(
    "criterion", [sparsegpt(), swapped(wanda()), alps()], ids=["obs", "swaps", "admm"]
)
def test_groups_that_are_filled_up(inputs, criterion):
    params, x = {"w": normal(0, inputs, 4)}, normal(1, 200, inputs)
    rules = [js.Rule("w", js.NM(2, 4, pad=True))]
    found = prune_oneshot(one, params, [x], rules, criterion=criterion)
    mask = np.pad(found.masks["w"], ((0, -inputs % 4), (0, 0)))
    assert (mask.reshape(-1, 4, 4).sum(1) <= 2).all()
    assert mask.sum() >= 4 * 2 * (inputs // 4)


def test_sparsegpt_is_exact_over_blocks_that_do_not_divide():
    params, x = {"w": normal(0, 30, 7)}, normal(1, 200, 30)
    for per, expected in (("layer", 210 - round(0.9 * 210)), ("output", 3 * 7)):
        found = prune_oneshot(
            one,
            params,
            [x],
            [js.Rule("w", js.Unstructured(), 0.9)],
            criterion=sparsegpt(block=4),
            per=per,
        )
        assert found.masks["w"].sum() == expected


def test_weights_that_stay_stay_to_the_bit():
    big = {"w": jnp.arange(64, dtype=jnp.int32).reshape(8, 8) + 2**25}
    found = prune_oneshot(lambda p, x: x @ p["w"].astype(x.dtype), big, [X], ONE)
    np.testing.assert_array_equal(found.params["w"], jnp.where(found.masks["w"], big["w"], 0))
    with jax.enable_x64():
        wide = {"w": np.random.default_rng(0).normal(size=(8, 8))}
        x = np.random.default_rng(1).normal(size=(32, 8))
        for criterion in (wanda(), swapped(wanda()), sparsegpt(), alps()):
            found = prune_oneshot(one, wide, [x], ONE, criterion=criterion)
            kept = np.where(found.masks["w"], wide["w"], 0)
            assert found.params["w"].dtype == np.float64
            if criterion.prune is wanda().prune:
                np.testing.assert_array_equal(found.params["w"], kept)


def test_what_is_no_array_is_a_constant():
    params = {"w": normal(0, 8, 8), "activation": jnp.tanh, "scale": 2.0}

    def run(p, x, name):
        assert name == "relu"
        return p["activation"](x @ p["w"]) * p["scale"]

    found = prune_oneshot(run, params, [(normal(1, 16, 8), "relu")], ONE)
    assert found.masks["w"].sum() == 32 and found.params["activation"] is jnp.tanh


E = jnp.ones((8, 8), complex)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"params": {"w": E}}, "'w' of shape .8, 8. is complex"),
        ({"params": {"w": PARAMS["w"].astype(int)}, "criterion": alps()}, "int32 weights cannot"),
        ({"params": {"w": np.ones((8, 0), "f")}}, "no entries"),
        ({"batches": [X * 1e-20]}, "meets nothing but zeros, or numbers below"),
        ({"batches": [X[:0]]}, "'w' meets nothing but zeros"),
        ({"batches": [X * 1e19], "criterion": alps()}, "statistics of 'w'.* too large"),
        ({"batches": [X * 1e19]}, "statistics of 'w'.* too large"),
        ({"batches": [X + 0j]}, "'w' of shape .8, 8. meets complex64"),
        ({"per": "row"}, "per='row'"),
        ({"fn": lambda p, x: x @ jnp.tanh(p["w"])}, "something made of 'w' of shape .8, 8."),
        (
            {"rules": [js.Rule("w", js.NM(2, 4, "best"))], "criterion": swapped(wanda())},
            "'w' of shape .8, 8., seen as .8, 8.: swapped: groups of NM",
        ),
    ],
    ids=[
        "complex",
        "int",
        "empty",
        "tiny",
        "nothing",
        "huge",
        "huge norms",
        "complex inputs",
        "per",
        "tanh",
        "best",
    ],
)
def test_numbers_that_say_nothing_are_refused(change, message):
    call = {"fn": one, "params": {"w": PARAMS["w"]}, "batches": [X], "rules": ONE} | change
    with pytest.raises(ValueError, match=message):
        prune_oneshot(
            call.pop("fn"), call.pop("params"), call.pop("batches"), call.pop("rules"), **call
        )


TOGETHER = {
    "plain": lambda p, x: x @ (p["v"] @ p["w"]),
    "added": lambda p, x: x @ (p["u"] + p["v"] @ p["w"]),
    "scaled": lambda p, x: x @ (0.5 * (p["v"] @ p["w"]).astype(jnp.float32).T).T,
    "chain": lambda p, x: x @ (p["v"] @ p["w"] @ p["u"]),
    "jit": lambda p, x: x @ jax.jit(lambda v, w: v @ w)(p["v"], p["w"]),
    "constant": lambda p, x: x @ (jnp.ones((8, 8)) @ p["w"]),
    "reshaped": lambda p, x: x @ (p["v"] @ p["w"]).reshape(8, 2, 4).reshape(8, 8),
}
APART = {
    "in order": lambda p, x: (x @ p["v"]) @ p["w"],
    "a table": lambda p, x: x @ p["u"] + jnp.tanh(p["v"] @ p["w"])[:1],
    "queries": lambda p, x: jax.nn.softmax((p["v"] @ p["w"]) @ x.T) @ x,
}


@pytest.mark.parametrize("name", [*TOGETHER, *APART])
def test_weights_multiplied_before_the_data_are_refused(name):
    fn = (TOGETHER | APART)[name]
    params = {key: normal(i, 8, 8) for i, key in enumerate("uvw")}
    x, rules = normal(3, 16, 8), [js.Rule("w", js.NM(2, 4))]
    [site] = sites(fn, params, x, paths="w")
    assert site.mixed == (name in TOGETHER)
    if site.mixed:
        with pytest.raises(ValueError, match=r"'w' of shape \(8, 8\) is multiplied by another"):
            prune_oneshot(fn, params, [x], rules)
        with pytest.raises(ValueError, match=r"owl: 'w' of shape .8, 8. is multiplied by another"):
            owl(fn, params, [x], [js.Rule("w", js.Unstructured())], blocks="(.*)")
    else:
        assert prune_oneshot(fn, params, [x], rules).masks["w"].mean() == 0.5


def test_weights_of_a_stack_multiplied_before_the_data():
    def fn(params, x):
        return jax.lax.scan(lambda x, p: (x @ (p["v"] @ p["w"]), None), x, params)[0]

    params, x = {"v": normal(0, 2, 8, 8), "w": normal(1, 2, 8, 8)}, normal(2, 4, 8)
    assert [site.mixed for site in sites(fn, params, x, paths="w")] == [True]
    with pytest.raises(ValueError, match=r"'w' of shape .2, 8, 8. is multiplied by another"):
        prune_oneshot(fn, params, [x], [js.Rule("w", js.NM(2, 4))])


SCALED = {
    "magnitude": magnitude(),
    "wanda": wanda(),
    "sparsegpt": sparsegpt(),
    "alps": alps(),
    "swapped": swapped(wanda()),
    "reconstructed": reconstructed(sparsegpt()),
}


@pytest.mark.parametrize("name", SCALED)
def test_numbers_whose_squares_are_no_float32_change_nothing(name):
    prune = jax.jit(SCALED[name].prune, static_argnums=2)
    weight, x = normal(0, 16, 8), normal(1, 32, 16).at[:, 3].set(0)

    def pruned(grown, more, pattern):
        products = x.T @ x * jnp.ldexp(jnp.float32(1), 2 * more)
        met = {"products": products, "squares": jnp.diagonal(products)}
        state = met | {"first": met | {"first": met}, "second": met}
        mask, new = prune(weight * jnp.ldexp(jnp.float32(1), grown), state, Target(pattern, 0.5))
        return mask, new if new is None else new * jnp.ldexp(jnp.float32(1), -grown)

    for pattern in (js.NM(2, 4), js.Unstructured()):
        mask, new = pruned(0, 0, pattern)
        for grown, more in ((100, 0), (-98, 0), (125, 50), (-98, -50)):
            one, other = pruned(grown, more, pattern)
            np.testing.assert_array_equal(one, mask)
            if new is not None:
                # Of a dead input the damping's mean takes 1, or the mean of small others.
                np.testing.assert_allclose(other, new, atol=5e-3 if more else 0)


@pytest.mark.parametrize(
    "weight, message",
    [
        (normal(0, 8, 8) * 1e-20 * 1e-15, r"all entries of 'w' of shape \(8, 8\) are below 1e-30"),
        (np.full((8, 8), 1e-40, "f"), r"all entries of 'w' of shape \(8, 8\) are below 1e-30"),
        (normal(0, 2, 8, 8).at[1].multiply(1e-33), r"shape \(2, 8, 8\) of kernels \[\[1\]\]"),
    ],
    ids=["small", "denormal", "of a stack"],
)
def test_weights_too_small_for_float32_are_refused(weight, message):
    def fn(params, x):
        w = params["w"]
        return x @ w if w.ndim == 2 else jax.lax.scan(lambda x, w: (x @ w, None), x, w)[0]

    with pytest.raises(ValueError, match=message):
        prune_oneshot(fn, {"w": weight}, [X], ONE)


def test_errors_of_large_and_small_weights_are_told():
    told, x = [], normal(0, 16, 8)
    for power in (0, 100, -95):
        weight = normal(1, 8, 8) * jnp.ldexp(jnp.float32(1), power)
        prune_oneshot(one, {"w": weight}, [x], ONE, on_pruned=lambda p: told.append(p.error))
    assert told[0] > 0 and told[0] == told[1] == told[2]


def test_an_idle_kernel_of_a_stack_is_named():
    params = {"w": normal(0, 3, 8, 8)}

    def run(p, x):
        return x @ p["w"][0] + x @ p["w"][2]

    with pytest.raises(ValueError, match=r"'w' of kernels \[\[1\]\] meets nothing"):
        prune_oneshot(run, params, [X], ONE)


def test_arguments_of_the_wrong_kind():
    for change, message in (
        ({"batches": X}, "batches is one array"),
        ({"batches": {"x": X}}, "batches is a dictionary"),
        ({"criterion": wanda}, "is no criterion"),
    ):
        call = {"batches": [X], "criterion": None} | change
        with pytest.raises(TypeError, match=message):
            prune_oneshot(one, PARAMS, call["batches"], ONE, criterion=call["criterion"])
    for share in (-0.5, 1.0, 1.5):
        with pytest.raises(ValueError, match="is not in"):
            Target(js.Unstructured(), share, "output")


def test_a_model_may_return_what_is_no_array():
    def run(params, x):
        return {"y": one(params, x), "name": "last", "loss": None, "config": {"depth": object()}}

    found, expected = (prune_oneshot(fn, PARAMS, [X], ONE) for fn in (run, one))
    np.testing.assert_array_equal(found.masks["w"], expected.masks["w"])


def test_errors_of_weights_that_are_zero_or_narrow():
    told = []
    for kernel in (jnp.zeros((8, 8)), PARAMS["w"].astype(jnp.bfloat16)):
        params = {"w": kernel}
        found = prune_oneshot(one, params, [X], ONE, criterion=alps(), on_pruned=told.append)
        whole = np.linalg.norm(X @ np.float32(kernel)) ** 2
        change = np.linalg.norm(X @ (np.float32(kernel) - np.float32(found.params["w"]))) ** 2
        assert told[-1].error == pytest.approx(change / whole if whole else 0, rel=1e-4)
