"""The analysis on every shape of model, on leaks, and on shapes without numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from graph_models import MODELS, Model

import jaxsparse as js


def shuffles(channels, seed=0):
    rng = np.random.default_rng(seed)
    return {group.id: rng.permutation(group.size) for group in channels.groups}


def assert_same(actual, expected, tolerance=1e-6):
    """Equal up to `tolerance` of the largest number in each output."""
    for a, b in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        scale = np.max(np.abs(b))
        assert scale > 0
        assert np.max(np.abs(a - b)) <= tolerance * scale


@pytest.mark.parametrize("name", MODELS)
def test_permuting_every_group_changes_nothing(name):
    model: Model = MODELS[name]()
    channels = js.graph.channels(model.fn, model.params, *model.inputs)
    assert sorted(group.size for group in channels.groups) == sorted(model.groups), str(channels)
    if not channels.groups:
        return
    moved = channels.permuted(model.params, shuffles(channels))
    assert jax.tree.structure(moved) == jax.tree.structure(model.params)
    fn = jax.jit(model.fn)
    assert_same(fn(moved, *model.inputs), fn(model.params, *model.inputs))


def test_complex_siblings_are_the_white_papers_groups():
    model = MODELS["complex_siblings"]()
    channels = js.graph.channels(model.fn, model.params, *model.inputs)
    groups = {frozenset(use.path.split("/")[1] for use in g.uses) for g in channels.groups}
    assert groups == {
        frozenset({"conv2_2"}),
        frozenset({"conv1_2"}),
        frozenset({"conv1_3", "conv4_1", "conv3_1"}),
        frozenset({"conv3_2"}),
        frozenset({"conv4_2"}),
    }


LEAKS = {
    "leak_output": "is an output of the function",
    "leak_unknown": "fft is not understood",
    "leak_ordered": "cumsum accumulates along the axis",
    "leak_residual_of_input": "is an input of the function",
}


@pytest.mark.parametrize("name", LEAKS)
def test_a_leak_says_what_holds_it(name):
    model = MODELS[name]()
    channels = js.graph.channels(model.fn, model.params, *model.inputs)
    held = [p for p in channels.pinned if any(q.path.endswith("conv0/bias") for q in p.places)]
    assert [str(p.cause) for p in held] == [LEAKS[name]]
    assert LEAKS[name] in str(channels)


def test_shapes_are_enough_and_nothing_runs():
    def fn(params, x):
        for layer in params["layers"]:
            x = x + jax.nn.relu(x @ layer["up"]) @ layer["down"]
        return x @ params["out"]

    big = jax.ShapeDtypeStruct((60_000, 240_000), jnp.float32)  # 58 GB each
    params = {
        "layers": [{"up": big, "down": jax.ShapeDtypeStruct(big.shape[::-1], big.dtype)}] * 12,
        "out": jax.ShapeDtypeStruct((60_000, 2), big.dtype),
        "in": jax.ShapeDtypeStruct((3, 60_000), big.dtype),
    }
    x = jax.ShapeDtypeStruct((1, 3), big.dtype)
    channels = js.graph.channels(lambda p, x: fn(p, x @ p["in"]), params, x)
    assert sorted(g.size for g in channels.groups) == [60_000] + 12 * [240_000]


def test_where_channels_lie_on_a_shared_axis():
    model = MODELS["fused_qkv_split"]()
    channels = js.graph.channels(model.fn, model.params, *model.inputs)
    heads = next(g for g in channels.groups if g.size == 2)
    assert [str(p) for p in heads.places if p.path == "qkv"] == [
        "qkv[1] (2 of 24, stride 4, 4 times)",
        "qkv[1] (2 of 24, from 8, stride 4, 4 times)",
        "qkv[1] (2 of 24, from 16, stride 4, 4 times)",
    ]
    swapped = channels.index("qkv", 1, {heads.id: np.array([1, 0])})
    assert swapped.tolist() == [b + i for b in (0, 8, 16) for i in (4, 5, 6, 7, 0, 1, 2, 3)]
    assert channels.group_of("qkv", 1) is None


def test_ops_are_a_graph_with_weights_and_groups():
    model = MODELS["chain"]()
    channels = js.graph.channels(model.fn, model.params, *model.inputs)
    products = [op for op in channels.ops if op.kernel]
    assert [op.kernel for op in products] == [(5, 8), (8, 12), (12, 3)]
    assert [op.weights for op in products] == [(f"params/layers_{i}/kernel",) for i in (0, 2, 4)]
    first, second = (channels.group_of(f"params/layers_{i}/kernel", 1) for i in (0, 2))
    assert [(op.groups_in, op.groups_out) for op in products] == [
        ((), (first.id,)),
        ((first.id,), (second.id,)),
        ((second.id,), ()),
    ]
    assert all(source < op.id for op in channels.ops for source in op.inputs)
    assert channels.ops[0].primitive == "input" and channels.ops[-1].primitive == "output"


def test_scanned_layers_run_as_often_as_the_scan_is_long():
    model = MODELS["scanned_transformer"]()
    channels = js.graph.channels(model.fn, model.params, *model.inputs)
    assert {op.repeat for op in channels.ops if "Block" in op.scope} == {3}
    stacked = next(p for p in channels.pinned if p.size == 3)
    assert stacked.cause.primitive == "scan"


def test_wrong_permutations_are_errors():
    model = MODELS["gated"]()
    channels = js.graph.channels(model.fn, model.params, *model.inputs)
    with pytest.raises(ValueError, match="group 0 has 8 channels"):
        channels.permuted(model.params, {0: np.zeros(8, int)})
    with pytest.raises(ValueError, match="no group 1"):
        channels.permuted(model.params, {1: np.arange(8)})
    with pytest.raises(KeyError, match="did you mean 'down'"):
        channels.group_of("dwon", 0)


def test_the_result_is_frozen():
    model = MODELS["gated"]()
    channels = js.graph.channels(model.fn, model.params, *model.inputs)
    with pytest.raises(dataclasses.FrozenInstanceError):
        channels.groups = ()
    with pytest.raises(TypeError):
        channels.axes["up"] = ()


def test_an_nnx_model_is_a_tree_of_parameters():
    def layer(*sizes):
        return nnx.Linear(*sizes, rngs=nnx.Rngs(0))

    net, x = nnx.Sequential(layer(4, 8), nnx.relu, layer(8, 2)), jnp.ones((1, 4))
    channels = js.graph.channels(lambda net, x: net(x), net, x)
    assert channels.group_of("layers/0/kernel", 1).size == 8
    moved = channels.permuted(net, shuffles(channels))
    assert isinstance(moved, nnx.Sequential)
    assert_same(moved(x), net(x))


def test_a_leaf_that_the_function_does_not_use_stays_as_it_is():
    """Another head of the same network may use it."""
    params = {"up": jnp.ones((2, 8)), "down": jnp.ones((8, 3)), "head": jnp.ones((8, 8))}
    inner = jax.jit(lambda params, x: jnp.tanh(x @ params["up"]) @ params["down"])
    channels = js.graph.channels(inner, params, jnp.ones((1, 2)))
    assert [place.path for group in channels.groups for place in group.places] == ["down", "up"]
    unused = [pinned for pinned in channels.pinned if pinned.places[0].path == "head"]
    assert [str(pinned.cause) for pinned in unused] == ["is not used by the function"] * 2


def test_inputs_that_are_closed_over():
    """A sum of a weight and a constant is then an array in which axes of neither are left."""
    x = jnp.ones((3, 8, 16))
    params = {"scale": jnp.ones(16), "head": jnp.ones((16, 2))}

    def model(params):
        total = (x * params["scale"]).sum(-1).reshape(3, 8, 1)
        return (x + total) @ params["head"]

    channels = js.graph.channels(model, params)
    assert channels.shapes["scale"] == (16,)
