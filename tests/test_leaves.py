"""Every kind of leaf through every function that takes a tree: it works, or the leaf is named."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxsparse as js
from jaxsparse.trees import leaves_by_path

W = jax.random.normal(jax.random.key(0), (8, 8))
MASK = {"kernel": js.compute_masks({"k": W}, [js.Rule("k", js.Unstructured(), 0.5)])["k"]}

# What stands beside a kernel and no rule names.
BESIDE = {
    "float": 0.07,
    "int": 3,
    "bool": True,
    "complex": 1j,
    "numpy scalar": np.float32(2),
    "numpy float64": np.ones((2, 2)),
    "key": jax.random.key(1),
    "keys": jax.random.split(jax.random.key(1), 4),
    "raw key": jax.random.PRNGKey(0),
    "None": None,
    "empty": jnp.zeros((0, 4)),
    "fp8": jnp.ones((4, 4), jnp.float8_e4m3fn),
    "int4": jnp.ones((4, 4), jnp.int4),
    "int32": jnp.arange(4),
    "complex64": jnp.ones(3, jnp.complex64),
    "function": jax.nn.relu,
    "string": "gelu",
    "numpy string": np.array(["a"]),
    "class": jnp.float32,
}
# What a rule names and can prune, ...
PRUNED = {
    "numpy": np.asarray(W),
    "numpy float64": np.asarray(W, np.float64),
    "float16": W.astype(jnp.float16),
    "bfloat16": W.astype(jnp.bfloat16),
    "float8_e4m3fn": W.astype(jnp.float8_e4m3fn),
    "float8_e5m2": W.astype(jnp.float8_e5m2),
    "complex64": W * jnp.exp(1j * W),
    "int8": jnp.arange(64, dtype=jnp.int8).reshape(8, 8),
    "one entry": jnp.ones((1, 1)),
    "vector": jnp.arange(8.0),
    "no inputs": jnp.zeros((0, 8)),
    "no outputs": jnp.zeros((8, 0)),
    "no members": jnp.zeros((0, 8, 8)),
}
# ... and what it cannot.
REFUSED = {
    "array scalar": jnp.ones(()),
    "float": 0.5,
    "numpy scalar": np.float32(1),
    "key": jax.random.key(0),
    "keys": jax.random.split(jax.random.key(1), (8, 8)),
    "function": jax.nn.relu,
    "string": "x",
    "numpy string": np.array([["a"]]),
    "None": None,
}


def prune(rules, **options):
    return js.prune(rules, schedule=js.constant(end=9), **options)


def step(tx, params, **extra):
    """Updates whose gradients are the parameters themselves."""
    return tx.update(params, tx.init(params), params, **extra)[0]


def pruned(optimizer):
    return lambda p, r, m: optax.apply_updates(p, step(js.pruned(optimizer, prune(r)), p))


def compute(**options):
    return lambda p, r, m: js.compute_masks(p, r, **options)


def without_sparsity(rules):
    return [dataclasses.replace(rule, sparsity=None) for rule in rules]


PENALTIES = ("add_l1", "add_group_lasso", "prox_group_lasso")
# Every function of (params, rules, masks).
FUNCTIONS = {
    "compute_masks": compute(),
    "compute_masks erk": lambda p, r, m: js.compute_masks(
        p, without_sparsity(r), sparsity=0.5, distribution=js.erk()
    ),
    "compute_masks global_": lambda p, r, m: js.compute_masks(
        p, without_sparsity(r), sparsity=0.5, distribution=js.global_()
    ),
    "compute_masks saliency": lambda p, r, m: js.compute_masks(p, r, score=js.saliency(), grads=p),
    "targets": lambda p, r, m: js.targets(r, p),
    "mask_params": lambda p, r, m: js.mask_params(p, m),
    "masked": lambda p, r, m: js.masked(lambda params: params, m)(p),
    "report": lambda p, r, m: js.report(p, m, rules=r),
    "pack_params": lambda p, r, m: js.pack_params(p, m, r),
    "unpack_params": lambda p, r, m: js.unpack_params(js.pack_params(p, m, r)),
    "prune.init": lambda p, r, m: prune(r).init(p),
    "prune.update": lambda p, r, m: step(prune(r), p),
    "prune.update regrowth": lambda p, r, m: step(prune(r, regrowth=js.regrow_gradient()), p),
    "prune.update movement": lambda p, r, m: step(prune(r, score=js.movement()), p),
    "masks": lambda p, r, m: js.masks(prune(r).init(p), p),
    "pruned": pruned(optax.sgd(0.5)),
    "pruned adam": pruned(optax.adam(0.5)),
    "apply_masks": lambda p, r, m: step(js.apply_masks(), p, masks=m),
    "add_l1": lambda p, r, m: step(js.add_l1(0.1, r), p),
    "add_group_lasso": lambda p, r, m: step(js.add_group_lasso(0.1, r), p),
    "prox_group_lasso": lambda p, r, m: step(js.prox_group_lasso(0.1, 0.1, r), p),
}
TREES = {  # functions that return the tree, with what is beside as it was
    "mask_params",
    "masked",
    "pack_params",
    "unpack_params",
    "prune.update",
    "prune.update regrowth",
    "prune.update movement",
    "apply_masks",
    *PENALTIES,
}
# Optimizers calculate with every leaf, and cannot with these; `pruned` says which.
NO_NUMBERS = ["key", "keys", "function", "string", "numpy string", "class"]
HALF = [js.Rule("kernel", js.Unstructured(), 0.5)]
FAST = {"compute_masks", "mask_params", "masked", "report", "prune.init", "targets", "add_l1"}
each_function = pytest.mark.parametrize(
    "function",
    [pytest.param(name, marks=[] if name in FAST else pytest.mark.slow) for name in FUNCTIONS],
)


@each_function
def test_beside_what_is_pruned(function):
    """Passed on as they are; optimizers get those that they can calculate with."""
    able = [k for k in BESIDE if k not in (*NO_NUMBERS, "int4", "complex")]
    beside = {k: BESIDE[k] for k in (able if function.startswith("pruned") else BESIDE)}
    params = {"kernel": W, "beside": beside}
    found = FUNCTIONS[function](params, HALF, MASK)
    if function in TREES:
        assert all(found["beside"][kind] is leaf for kind, leaf in beside.items())
    if function.startswith("compute_masks"):
        assert list(found) == ["kernel"] and found["kernel"].sum() == 32
    if function == "masks":
        assert set(found["beside"].values()) == {None}
    if function == "report":
        rows = {row.path.removeprefix("beside/"): row.size for row in found.leaves}
        assert rows["float"] == 1 and rows["fp8"] == 16 and rows["empty"] == 0
        assert not rows.keys() & {*NO_NUMBERS, "None"}


@pytest.mark.parametrize("kind", NO_NUMBERS)
def test_an_optimizer_that_fails_says_on_which_leaf(kind):
    params = {"kernel": W, "beside": {"leaf": BESIDE[kind]}}
    with pytest.raises(TypeError, match=r"'beside/leaf', an? .*optax\.masked.*would work"):
        FUNCTIONS["pruned"](params, HALF, MASK)
    only = optax.masked(optax.sgd(0.5), {"kernel": True, "beside": {"leaf": False}})
    tx = js.pruned(only, prune(HALF))
    updates = step(tx, params)
    assert updates["beside"]["leaf"] is BESIDE[kind]
    assert ((W + updates["kernel"] == 0) == ~MASK["kernel"]).all()


@each_function
def test_what_is_pruned(function):
    rules = [js.Rule(".*", js.Unstructured(), 0.5)]
    if "pack" not in function:
        rules.append(js.Rule("no members", js.Unstructured(), 0.5, batch_axis=0, override=True))
    # Storages of nothing are packing's own tests.
    packs, empty = "pack" in function, ("no inputs", "no outputs", "no members")
    params = {k: leaf for k, leaf in PRUNED.items() if not (packs and k in empty)}
    masks = js.compute_masks(params, rules)
    kept = {kind: leaf.size - round(0.5 * leaf.size) for kind, leaf in params.items()}
    found = FUNCTIONS[function](params, rules, masks)
    rows = {row.path: row for row in found.leaves} if function == "report" else {}
    for kind, leaf in params.items():
        mask = np.asarray(masks[kind])
        assert mask.shape == leaf.shape and mask.sum() == kept[kind], kind
        if function == "compute_masks saliency":
            assert found[kind].sum() == kept[kind], kind
        if function in ("mask_params", "masked", "unpack_params"):
            masked = np.where(mask, leaf, np.zeros_like(leaf))
            np.testing.assert_array_equal(np.asarray(found[kind], masked.dtype), masked, kind)
        if function.startswith("pruned"):
            assert not np.asarray(found[kind])[~mask].any(), kind
        if function in TREES and function != "pack_params":
            assert found[kind].shape == leaf.shape, kind
        if function == "report":
            row = rows[kind]
            assert (row.kept, row.size, row.target) == (kept[kind], leaf.size, 0.5)
            assert row.stored_bytes <= row.dense_bytes


@each_function
@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_pruned_is_named(function, kind):
    params = {"kernel": REFUSED[kind], "other": W}
    with pytest.raises((ValueError, KeyError), match="'kernel'"):
        FUNCTIONS[function](params, HALF, MASK)


@pytest.mark.slow
def test_weights_of_x64():
    with jax.enable_x64(True):
        params = {"kernel": jnp.asarray(np.random.default_rng(0).normal(size=(8, 8)))}
        rules = [js.Rule("kernel", js.Block(2, 2), 0.5)]
        masks = js.compute_masks(params, rules)
        for name in ("mask_params", "masked", "prune.update movement", "pruned", *PENALTIES):
            found = FUNCTIONS[name](params, rules, masks)
            assert leaves_by_path(found)["kernel"].dtype == jnp.float64, name


@jax.tree_util.register_pytree_with_keys_class
class Module:
    """As Equinox's: a dataclass whose activation is a leaf like any other."""

    def __init__(self, weight, activation):
        self.weight, self.activation = weight, activation

    def tree_flatten_with_keys(self):
        key = jax.tree_util.GetAttrKey
        return [(key("weight"), self.weight), (key("activation"), self.activation)], None

    @classmethod
    def tree_unflatten(cls, aux, children):
        del aux
        return cls(*children)


def test_a_module_with_a_function_in_it_is_trained_by_its_arrays():
    """What the error of `pruned` says would work does."""
    module = {"layers": [Module(W, jax.nn.relu), Module(W.T, jnp.tanh)]}
    rules = [js.Rule(r"layers/\d/weight", js.Unstructured(), 0.5)]
    tx = js.pruned(optax.adam(1e-2), prune(rules))
    with pytest.raises(TypeError, match=r"'layers/0/activation', a .*; 'layers/1/activation'"):
        tx.init(module)
    arrays = jax.tree.map(lambda x: x if isinstance(x, jax.Array) else None, module)
    state = tx.init(arrays)
    updates, state = tx.update(arrays, state, arrays)
    arrays = optax.apply_updates(arrays, updates)
    masks = js.masks(state)
    for path, leaf in leaves_by_path(arrays).items():
        np.testing.assert_array_equal(leaf != 0, masks[path])
    seen = js.mask_params(module, masks)
    assert seen["layers"][1].activation is jnp.tanh
    assert js.report(module, masks, rules=rules).size == 128
