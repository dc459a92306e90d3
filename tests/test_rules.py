"""Rules: what they match, and every mistake in them."""

import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import jaxsparse as js
from jaxsparse.patterns.rules import check_rules, resolve

LINEN = {
    "encoder": {
        f"layers_{i}": {"mlp": {"kernel": jnp.ones((8, 16)), "bias": jnp.ones(16)}}
        for i in range(2)
    },
    "head": {"kernel": jnp.ones((16, 10))},
}


class Layer(nnx.Module):
    def __init__(self, rngs):
        self.mlp = nnx.Linear(8, 16, rngs=rngs)


class Model(nnx.Module):
    def __init__(self, rngs):
        self.layers = nnx.List([Layer(rngs) for _ in range(2)])
        self.head = nnx.Linear(16, 10, rngs=rngs)


def test_one_rule_for_linen_and_nnx_spellings():
    rule = js.Rule(r".*layers[/_]\d/mlp/kernel", js.Block(4, 16), sparsity=0.5)
    assert list(resolve([rule], LINEN)) == [f"encoder/layers_{i}/mlp/kernel" for i in range(2)]
    state = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    found = resolve([rule], state)
    assert list(found) == ["layers/0/mlp/kernel", "layers/1/mlp/kernel"]
    spec = found["layers/0/mlp/kernel"]
    assert (spec.group_shape, spec.units, spec.sparsity) == ((2, 1), 2, 0.5)
    assert resolve([rule], jax.eval_shape(lambda: LINEN)) == resolve([rule], LINEN)


def test_the_whole_path_must_match():
    with pytest.raises(ValueError, match=r"'kernel' matches no leaf"):
        resolve([js.Rule("kernel", js.Unstructured())], LINEN)


def test_dead_rule_lists_near_misses():
    rules = [js.Rule("head/kernel", js.Unstructured()), js.Rule("heat/kernl", js.Unstructured())]
    with pytest.raises(ValueError, match=r"'heat/kernl' matches no leaf; did you mean 'head/ker"):
        resolve(rules, LINEN)


def test_double_rule_names_leaf_shape_and_both_rules():
    rules = [js.Rule("head/.*", js.Unstructured()), js.Rule(".*/kernel", js.Unstructured())]
    with pytest.raises(ValueError) as error:
        resolve(rules, LINEN)
    assert all(w in str(error.value) for w in ("'head/kernel'", "(16, 10)", "'head/.*'", "'.*/ker"))


def test_wrong_shape_names_path_shape_and_sizes():
    with pytest.raises(ValueError) as error:
        resolve([js.Rule("head/kernel", js.Block(4, 4))], LINEN)
    words = ("'head/kernel'", "(16, 10)", "output size 10", "8 or 12", "2 or 5", "pad=True")
    assert all(word in str(error.value) for word in words), error.value


@pytest.mark.parametrize("sparsity", [-0.1, 1.0, 1.5, 90, float("nan"), float("inf")])
def test_sparsity_outside(sparsity):
    with pytest.raises(ValueError, match=r"rule 'w'.*not in \[0, 1\)") as error:
        js.Rule("w", js.Unstructured(), sparsity=sparsity)
    assert ("did you mean 0.9?" in str(error.value)) == (sparsity == 90)


def test_sparsity_beyond_the_pattern():
    with pytest.raises(ValueError, match=r"0.6 is above 0.5"):
        js.Rule("w", js.NM(2, 4), sparsity=0.6)
    assert js.Rule("w", js.NM(9, 10), sparsity=0.1).sparsity == 0.1  # 1 - 9/10 rounds below 0.1
    assert js.Rule("w", js.NM(2, 3), sparsity=1 / 3).sparsity == 1 / 3


def test_a_packed_weight_is_called_one_and_not_its_parts():
    rules, params = (
        [js.Rule("up/kernel", js.Block(4, 4), 0.5)],
        {"up": {"kernel": jnp.ones((8, 8))}},
    )
    masks = js.compute_masks(params, rules)
    packed = js.pack_params(params, masks, rules)
    for use in (
        lambda: js.pack_params(packed, masks, rules),
        lambda: js.compute_masks(packed, rules),
        lambda: js.mask_params(packed, masks),
        lambda: js.report(packed, masks),
        lambda: js.graph.shrink(lambda p: p["up"]["kernel"], packed, masks),
    ):
        with pytest.raises(ValueError, match=r"'up/kernel', which is packed.* js.unpack_params\("):
            use()
    assert js.mask_params(js.unpack_params(packed), masks)


@pytest.mark.parametrize(
    "make,error,words",
    [
        (lambda: js.Rule("(", js.Unstructured()), ValueError, "no regular expression"),
        (lambda: js.Rule("w", js.Unstructured), TypeError, "is no pattern"),
        (lambda: js.Rule("w", (4, 16)), TypeError, r"Block\(4, 16\)"),
        (lambda: check_rules(["w"]), TypeError, "'w' is no Rule"),
        (lambda: check_rules("w"), TypeError, "'w' is no list of rules"),
        (lambda: js.prune(()), ValueError, r"no rules, .*\[Rule\(path, pattern\)\] would work"),
        (lambda: check_rules(js.Rule("w", None, override=True)), TypeError, r"; \[Rule\(path, "),
    ],
)
def test_wrong_kinds(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_axes_of_the_rule_reach_the_view():
    kernel = {"w": jnp.ones((2, 3, 4))}
    listed = js.Rule("w", js.Unstructured(), in_axis=[0, 1], out_axis=2)
    assert resolve([listed], kernel)["w"].view.matrix_shape == (6, 4)
    stacked = js.Rule("w", js.Unstructured(), in_axis=1, out_axis=0, batch_axis=2)
    assert resolve([stacked], kernel)["w"].view.batch_shape == (4,)
    with pytest.raises(ValueError, match="no axis 7"):
        resolve([js.Rule("w", js.Unstructured(), in_axis=7)], kernel)


def test_kept_counts():
    spec = resolve([js.Rule("head/kernel", js.NM(2, 4))], LINEN)["head/kernel"]
    assert [spec.kept(s) for s in (0.0, 0.25, 0.5)] == [40, 20, 0]  # of 40 groups of four
    spec = resolve([js.Rule("head/kernel", js.Unstructured())], LINEN)["head/kernel"]
    assert spec.kept(0.9) == 16


def kernels(path, leaf):
    return path.endswith("kernel") and leaf.shape[-1] == 16


def test_a_rule_by_a_function_of_path_and_leaf():
    rules = [js.Rule(kernels, js.Unstructured(), 0.5)]
    found = resolve(rules, LINEN)
    assert list(found) == [f"encoder/layers_{i}/mlp/kernel" for i in range(2)]
    assert resolve(rules, jax.eval_shape(lambda: LINEN)) == found
    state = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    assert list(resolve(rules, state)) == [f"layers/{i}/mlp/kernel" for i in range(2)]
    half = {"a": jnp.ones((2, 16), jnp.bfloat16), "b": jnp.ones((2, 16)), "c": 3, "d": len}
    by_dtype = js.Rule(lambda path, leaf: leaf.dtype == jnp.bfloat16, js.Unstructured())
    assert list(resolve([by_dtype], half)) == ["a"]


def test_mistakes_in_functions():
    with pytest.raises(ValueError, match=r"rule kernels matches no leaf; known: 'w'"):
        resolve([js.Rule(kernels, js.Unstructured())], {"w": jnp.ones((2, 2))})
    for bad in (lambda path: True, 3, None):
        with pytest.raises(TypeError, match=r"nor a function of \(path, leaf\); lambda path, leaf"):
            js.Rule(bad, js.Unstructured())
    broken = js.Rule(lambda path, leaf: leaf.shape[3] > 1, js.Unstructured())
    with pytest.raises(IndexError) as error:
        resolve([broken], {"w": jnp.ones((2, 2))})
    assert "asked about 'w' of shape (2, 2)" in error.value.__notes__[0]


def test_a_default_with_overrides():
    default = js.Rule(".*/kernel", js.Unstructured(), 0.9)
    first = js.Rule(".*layers_0/.*/kernel", js.Block(4, 4), 0.5, override=True)
    head = js.Rule("head/.*", None, override=True)
    found = resolve([default, first, head], LINEN)
    paths = [f"encoder/layers_{i}/mlp/kernel" for i in range(2)]
    assert [(p, str(s.pattern), s.sparsity) for p, s in found.items()] == [
        (paths[0], "Block(4, 4)", 0.5),
        (paths[1], "Unstructured()", 0.9),
    ]
    later = js.Rule(paths[0], js.Channel(-1), 0.25, override=True)
    every = js.Rule(".*layers_./.*kernel", js.Block(2, 2), 0.5, override=True)
    assert resolve([default, every, later], LINEN)[paths[0]].sparsity == 0.25
    assert [s.sparsity for s in resolve([default, later, head], LINEN).values()] == [0.25, 0.9]


@pytest.mark.parametrize(
    "rules,words",
    [
        # asked for by the later rule alone
        (["head/kernel!", ".*/kernel"], ["'head/kernel'", "(16, 10)", "override=True"]),
        # a default that nothing is left of
        (["head/kernel", ".*/kernel!"], ["'head/kernel' loses every leaf", "override=True"]),
    ],
)
def test_overrides_are_asked_for(rules, words):
    made = [
        js.Rule(r.removesuffix("!"), js.Unstructured(), override=r.endswith("!")) for r in rules
    ]
    with pytest.raises(ValueError) as error:
        resolve(made, LINEN)
    assert all(word in str(error.value) for word in words), error.value


def test_dense_only_by_override():
    with pytest.raises(TypeError, match=r"None is no pattern.*needs override=True"):
        js.Rule("w", None)
    with pytest.raises(ValueError, match=r"keeps leaves dense, but sparsity is 0\.5"):
        js.Rule("w", None, 0.5, override=True)


def test_keys_with_slashes():
    """Haiku names modules so."""
    params = {"net/~/linear_0": {"w": jnp.ones((4, 4)), "b": jnp.ones(4)}}
    rules = [js.Rule(r"net/~/linear_\d/w", js.Unstructured(), 0.5)]
    masks = js.compute_masks(params, rules)
    assert list(masks) == ["net/~/linear_0/w"]
    assert js.mask_params(params, masks)["net/~/linear_0"]["w"].sum() == 8
    assert js.report(params, masks, rules=rules).kept == 12
    tx = js.pruned(
        optax.adam(0.1),
        js.prune(rules, schedule=js.constant(end=9), regrowth=js.regrow_random(0.5)),
    )
    state, after = tx.init(params), params
    for _ in range(3):
        updates, state = tx.update(params, state, after)
        after = optax.apply_updates(after, updates)
    zeros = ~js.masks(state)["net/~/linear_0/w"]
    assert zeros.sum() == 8 and (after["net/~/linear_0"]["w"][zeros] == 0).all()


class Plain(js.Pattern):
    """A pattern that is no dataclass; two of them are two."""

    def __init__(self, size):
        self.size = size


def test_patterns_of_your_own_are_told_apart():
    assert Plain(2) != Plain(4) and Plain(2) != js.Unstructured()
    assert js.Block(4, 4) == js.Block(4, 4) and hash(js.Block(4, 4)) == hash(js.Block(4, 4))


def test_the_sparsity_of_nm_may_be_rounded():
    params = {"w": jnp.arange(18.0).reshape(6, 3)}
    for sparsity in (1 / 3, 1 - 2 / 3):  # the second is the larger
        masks = js.compute_masks(params, [js.Rule("w", js.NM(2, 3), sparsity)])
        assert masks["w"].sum() == 12
