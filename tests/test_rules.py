"""Rules: what they match, and every mistake in them."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

import jaxsparse as js
from jaxsparse.rules import check_rules, resolve

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


@pytest.mark.parametrize(
    "make,error,words",
    [
        (lambda: js.Rule("(", js.Unstructured()), ValueError, "no regular expression"),
        (lambda: js.Rule("w", js.Unstructured), TypeError, "is no pattern"),
        (lambda: js.Rule("w", (4, 16)), TypeError, r"Block\(4, 16\)"),
        (lambda: check_rules(["w"]), TypeError, "'w' is no Rule"),
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
