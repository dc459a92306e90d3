"""Multiplications and layers of traced programs, for any widths and densities."""

import itertools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

import jaxsparse as js
from jaxsparse.allocation import Flops, layers
from tests.allocation.costs_models import convolved, mobilenet, mobilenet_params

CASE = json.loads((pathlib.Path(__file__).parents[1] / "cases/mobilenet_macs.json").read_text())
IMAGE = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
RNG = np.random.default_rng(0)


def mlp(params, x):
    for layer in params["hidden"]:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    return x @ params["out"]


def mlp_params(sizes=(3, 8, 6, 4)):
    pairs = list(itertools.pairwise(sizes))
    hidden = [{"w": jnp.ones(shape), "b": jnp.zeros(shape[1])} for shape in pairs[:-1]]
    return {"hidden": hidden, "out": jnp.ones(pairs[-1])}


def test_mobilenet_costs_what_the_original_counts():
    found = layers(mobilenet, mobilenet_params(), IMAGE)
    prunable = [layer for layer in found if layer.op != "depthwise"]
    before = {layer.reads: layer.macs for layer in found if layer.op == "depthwise"}
    *convolutions, classifier = prunable
    assert [layer.shape[-2] for layer in prunable] == CASE["prunable_in_channels"]
    # The original's classifier counts its biases.
    *wanted, last = CASE["prunable_flops"]
    assert [layer.macs for layer in convolutions] == wanted
    assert classifier.macs + 1000 == last
    assert [before.get(layer.reads, 0) for layer in convolutions] == (
        CASE["buffer_flops_before_layer"][:-1]
    )
    assert (prunable[0].window, prunable[0].stride, prunable[1].window) == ((3, 3), (2, 2), (1, 1))


def test_mobilenet_with_other_widths_costs_what_the_paper_says():
    flops = Flops(mobilenet, mobilenet_params(), IMAGE)
    assert flops.total() + 1000 == CASE["total_flops"]
    assert len(flops.units) == len(CASE["half_channels"]) - 1
    widths = dict(zip(flops.units, CASE["half_channels"][1:], strict=True))
    assert flops.total(widths) + 1000 == CASE["half_flops"]
    quarters = {name: units * 3 // 4 for name, units in flops.units.items()}
    assert 1.747 < flops.total() / flops.total(quarters) < 1.749


def attention(params, x):
    y = linen.LayerNorm().apply({"params": params["norm"]}, x)
    q, k, v = (jnp.einsum("btd,dnh->btnh", y, params[name]) for name in "qkv")
    mixed = jnp.einsum("bnts,bsnh->btnh", jax.nn.softmax(jnp.einsum("btnh,bsnh->bnts", q, k)), v)
    x = x + jnp.einsum("btnh,nhd->btd", mixed, params["o"])
    gate, up = jnp.split(x @ params["gate_up"], 2, axis=-1)
    return x + (jax.nn.silu(gate) * up) @ params["down"]


ATTENTION = {
    "norm": {"scale": jnp.ones(8), "bias": jnp.zeros(8)},
    **{name: jnp.ones((8, 4, 2)) for name in "qkv"},
    "o": jnp.ones((4, 2, 8)),
    "gate_up": jnp.ones((8, 20)),
    "down": jnp.ones((10, 8)),
}


def residual(params, x):
    x = convolved(x, params["stem"])
    y = jax.nn.relu(convolved(x, params["a"]))
    both = jnp.concatenate([y, jax.nn.relu(convolved(x, params["b"]))], -1)
    return jnp.mean(x + convolved(both, params["c"], 1), (1, 2)) @ params["out"]


RESIDUAL = {
    "stem": jnp.ones((3, 3, 1, 4)),
    "a": jnp.ones((1, 1, 4, 6)),
    "b": jnp.ones((3, 3, 4, 5)),
    "c": jnp.ones((3, 3, 11, 4)),
    "out": jnp.ones((4, 2)),
}

SMALL_MOBILENET = ((8, 1), (12, 2))
MODELS = {
    "mlp": (mlp, mlp_params(), jnp.ones((5, 3))),
    "attention": (attention, ATTENTION, jnp.ones((2, 3, 8))),
    "residual": (residual, RESIDUAL, jnp.ones((2, 6, 6, 1))),
    "mobilenet": (
        lambda params, x: mobilenet(params, x, SMALL_MOBILENET),
        jax.tree.map(lambda shape: jnp.ones(shape.shape), mobilenet_params(4, SMALL_MOBILENET, 3)),
        jnp.ones((2, 8, 8, 3)),
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_any_widths_cost_what_the_shrunk_program_multiplies(name):
    fn, params, x = MODELS[name]
    flops, structure = Flops(fn, params, x), js.graph.structure(fn, params, x)
    assert flops.units and flops.units == {g.name: g.units for g in structure.groups}
    for _ in range(3):
        widths = {n: int(RNG.integers(1, units + 1)) for n, units in flops.units.items()}
        masks = {}
        for group in structure.groups:
            kept = jnp.arange(group.units) < widths[group.name]
            for member in group.members:
                before = masks.get(member.path)
                if before is None:
                    before = jnp.ones(js.graph.channels(fn, params, x).shapes[member.path], bool)
                masks[member.path] = before & member.spread(kept, before)
        small, run, _ = js.graph.shrink(fn, params, masks, x)
        shrunk = Flops(run, small, x)
        assert flops.total(widths) == shrunk.total()
        for layer in shrunk.layers:
            assert flops.of(layer.path, widths) == layer.macs


def test_layers_know_the_units_that_they_read_and_write():
    found = {layer.path: layer for layer in layers(attention, ATTENTION, jnp.ones((2, 3, 8)))}
    heads, neurons = js.graph.structure(attention, ATTENTION, jnp.ones((2, 3, 8))).groups
    assert [found[n].writes for n in "qkv"] == [heads.name] * 3
    assert (found["o"].reads, found["o"].writes) == (heads.name, None)
    assert found["gate_up"].writes == found["down"].reads == neurons.name
    assert found["gate_up"].macs == 2 * 3 * 8 * 20
    # Several groups on one axis are told by no one name.
    parts = {layer.path: layer for layer in layers(residual, RESIDUAL, jnp.ones((2, 6, 6, 1)))}
    assert parts["c"].reads is None and parts["a"].writes != parts["b"].writes


def test_products_of_activations_count_in_the_total_alone():
    flops = Flops(attention, ATTENTION, jnp.ones((2, 3, 8)))
    alone = sum(flops.of(path) for path in dict.fromkeys(layer.path for layer in flops.layers))
    assert flops.total() - alone == 2 * (2 * 4 * 3 * 3 * 2)


def test_what_is_kept_multiplies():
    params = mlp_params()
    flops = Flops(mlp, params, jnp.ones((5, 3)))
    first, second = flops.units
    assert flops.of("hidden/1/w", densities={"hidden/1/w": 7 / 48}) == 5 * 7
    widths = {first: 4, second: 5}
    assert flops.of("hidden/1/w", widths, {"hidden/1/w": 0.5}) == 5 * 10
    whole = flops.total(widths)
    assert flops.total(widths, {"hidden/1/w": 0.5, "out": 0}) == whole - 50 - 5 * 5 * 4
    assert flops.total(densities={"hidden/0/b": 0.5}) == flops.total()
    assert flops.of("hidden/0/b") == 0


def test_weights_that_share_a_function_are_told_apart():
    square = jax.jit(lambda w, x: jnp.tanh(x @ w))

    def model(params, x):
        return square(params["b"], square(params["a"], x)) @ params["a"]

    params = {name: jnp.ones((4, 4)) for name in "ab"}
    flops = Flops(model, params, jnp.ones((3, 4)))
    assert [layer.path for layer in flops.layers] == ["a", "b", "a"]
    assert (flops.of("a"), flops.of("b"), flops.total()) == (96, 48, 144)
    assert flops.total(densities={"a": 0.5}) == 96


def test_experts_that_data_picks_are_layers():
    def model(params, x):
        best = jnp.argmax(x.sum(0))
        return jnp.tanh(x @ params["a"][best]) @ params["b"][best]

    params = {"a": jnp.ones((3, 4, 4)), "b": jnp.ones((3, 4, 4))}
    flops = Flops(model, params, jnp.ones((5, 4)))
    assert [(layer.path, layer.macs) for layer in flops.layers] == [("a", 80), ("b", 80)]
    assert flops.total(densities={"a": 0.25}) == 100


def test_ragged_products_count_every_row_once():
    def model(params, x):
        return jax.lax.ragged_dot(x, params["w"], jnp.array([2, 3]))

    flops = Flops(model, {"w": jnp.ones((2, 4, 6))}, jnp.ones((5, 4)))
    assert flops.total() == flops.of("w") == 5 * 4 * 6


def test_loops_count_their_turns_and_branches_the_dearest():
    def model(params, x):
        x, _ = jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, params["stack"])
        branches = (lambda x: x @ params["wide"] @ params["back"], lambda x: x @ params["narrow"])
        return jax.lax.cond(x.sum() > 0, *branches, x)

    params = {
        "stack": jnp.ones((3, 4, 4)),
        "wide": jnp.ones((4, 9)),
        "back": jnp.ones((9, 4)),
        "narrow": jnp.ones((4, 4)),
    }
    flops = Flops(model, params, jnp.ones((2, 4)))
    assert {layer.path: layer.calls for layer in flops.layers}["stack"] == 3
    assert flops.of("stack") == 3 * 32 and flops.of("narrow") == 32
    assert flops.total() == 3 * 32 + 2 * 72
    assert flops.total(densities={"wide": 0, "back": 0}) == 3 * 32 + 32
    assert flops.total({name: 1 for name in flops.units}) == 3 * 32 + 32


def test_widths_of_numpy_are_widths():
    flops = Flops(*MODELS["mlp"])
    name, *_ = flops.units
    assert flops.total({name: np.int64(3)}) == flops.total({name: 3})


@pytest.mark.parametrize(
    ("call", "error", "text"),
    [
        (lambda f: f.total({"nothing": 3}), ValueError, "residual streams"),
        (lambda f: f.total({next(iter(f.units)): 0}), ValueError, "1 to 8 would work"),
        (lambda f: f.total({next(iter(f.units)): 9}), ValueError, "keeps 9"),
        (lambda f: f.total({next(iter(f.units)): 2.0}), TypeError, "keeps 2.0"),
        (lambda f: f.total(densities={"hidden/0": 0.5}), KeyError, "hidden/0/w"),
        (lambda f: f.total(densities={"out": float("nan")}), ValueError, "0 to 1"),
        (lambda f: f.total(densities={"out": 1.5}), ValueError, "'out' keeps 1.5"),
        (lambda f: f.of("layer"), KeyError, "no leaf 'layer'"),
    ],
)
def test_what_is_no_width_or_density_is_named(call, error, text):
    with pytest.raises(error, match=text):
        call(Flops(*MODELS["mlp"]))


def test_what_has_no_number_is_refused():
    (batch,) = jax.export.symbolic_shape("batch")
    with pytest.raises(ValueError, match="batch"):
        Flops(mlp, mlp_params(), jax.ShapeDtypeStruct((batch, 3), jnp.float32))
    params = {"w": js.pack(jnp.eye(8), js.Unstructured())}
    with pytest.raises(TypeError, match=r"'w' is .*unpack_params"):
        Flops(lambda params, x: x @ params["w"], params, jnp.ones((2, 8)))
    call = jax.ffi.ffi_call("nobody_knows", jax.ShapeDtypeStruct((2, 8), jnp.float32))
    with pytest.raises(ValueError, match="how much ffi_call multiplies"):
        Flops(lambda params, x: call(x, params["w"]), {"w": jnp.eye(8)}, jnp.ones((2, 8)))


@pytest.mark.parametrize("size", [5, 7, 15, 25])
def test_masks_keep_no_more_than_is_counted(size):
    """A share that is half-way between two numbers of entries is masked up to the larger."""
    params, rules = {"w": jnp.arange(1.0, size + 1)[:, None]}, [js.Rule("w", js.Unstructured())]
    flops = Flops(lambda params, x: x @ params["w"], params, jnp.ones((1, size)))
    for share in np.arange(2 * size) / (2 * size):
        allocation = js.allocation.Allocation({"w": share})
        masks = js.compute_masks(params, rules, distribution=allocation)
        kept = int(masks["w"].sum())
        assert kept <= flops.total(densities={"w": 1 - share}) <= kept + 1


@pytest.mark.parametrize("pattern", [js.Block(4, 16), js.Block(16, 16, pad=True)])
def test_masks_of_blocks_keep_no_more_than_rules_count(pattern):
    params = {"w": jax.random.normal(jax.random.key(1), (8, 48))}
    flops = Flops(lambda p, x: x @ p["w"], params, jnp.ones((3, 8)), rules=[js.Rule("w", pattern)])
    for sparsity in np.linspace(0, 0.99, 23).tolist():
        masks = js.compute_masks(params, [js.Rule("w", pattern, sparsity=sparsity)])
        kept = 3 * int(masks["w"].sum())
        found = flops.total(densities={"w": 1 - sparsity})
        assert found == kept or (found > kept and pattern.pad)
        assert found == flops.of("w", densities={"w": 1 - sparsity})


def test_a_width_and_a_density_of_a_leaf_with_a_rule_are_refused():
    params = {"up": jnp.ones((4, 8)), "down": jnp.ones((8, 4))}
    rules = [js.Rule("down", js.Block(4, 4))]
    flops = Flops(lambda p, x: jnp.tanh(x @ p["up"]) @ p["down"], params, jnp.ones((1, 4)),
                  rules=rules)  # fmt: skip
    assert flops.total({"up, down": 4}) == 32
    with pytest.raises(ValueError, match=r"'down' of shape \(8, 4\) is pruned by a rule"):
        flops.total({"up, down": 4}, {"down": 0.5})
