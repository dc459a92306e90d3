"""`permute` gains magnitude, never loses any, and leaves the function as it is."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from graph_models import MODELS
from test_channels import assert_same

import jaxsparse as js
from jaxsparse.trees import leaves_by_path


@dataclasses.dataclass
class Result:
    """What `search_permutation` returns, as far as `permute` looks at it."""

    permutation: np.ndarray
    plain: float
    retained: float
    bound: float


def kept(matrix, n, m):
    """sum |w| that n of every m columns keep."""
    return np.sort(matrix.reshape(len(matrix), -1, m))[..., -n:].sum()


def swaps(matrix, n, m, tries=60):
    """A stand-in for the search: random swaps, those that gain stay."""
    rng, order = np.random.default_rng(0), np.arange(matrix.shape[1])
    plain = best = kept(matrix, n, m)
    for _ in range(tries):
        new = order.copy()
        i, j = rng.integers(len(order), size=2)
        new[[i, j]] = new[[j, i]]
        if (found := kept(matrix[:, new], n, m)) > best:
            order, best = new, found
    whole = matrix.shape[1] // m * n
    return Result(order, plain, best, np.sort(matrix)[:, -whole:].sum())


def reverse(matrix, n, m):
    """A bad search: it claims much, and its order is as good as any."""
    return Result(np.arange(matrix.shape[1])[::-1], 0.0, 1e9, 1e9)


ELIGIBLE = {
    "chain": (r"params/layers_[24]/kernel", {8, 12}),
    "residual": (r"params/conv[12]/kernel", {8}),
    "complex_siblings": (r"params/conv\d_[23]/kernel", {8}),
    "depthwise": (r"params/layers_4/kernel", {8}),
    "attention": (r".*/(query|key|value|out)/kernel", {4, 8}),
    "gated_fused": (r"down", {8}),
    "scanned_transformer": (r".*/Dense_./kernel", {8, 12}),
    "nnx_model": (r"(hidden|conv)/kernel", {8}),
}


@pytest.mark.parametrize("name", ELIGIBLE)
def test_masks_keep_more_and_the_function_stays(name):
    model = MODELS[name]()
    pattern, sizes = ELIGIBLE[name]
    # 2:4 along three input channels of an image needs padding.
    rules = [js.Rule(pattern, js.NM(2, 4, pad=True))]
    new, report = js.graph.permute(model.fn, model.params, *model.inputs, rules=rules, search=swaps)
    assert {report.channels.groups[id].size for id in report.permutations} <= sizes
    assert report.permutations
    for row in report.groups:
        if row.pattern:
            assert row.plain <= row.retained <= row.bound * (1 + 1e-12)
            assert 0 <= row.efficacy <= 1 + 1e-12
    plain, gained = (sum(getattr(leaf, k) for leaf in report.leaves) for k in ("plain", "retained"))
    assert gained > plain
    rules = js.read_axes(rules, model.fn, model.params, *model.inputs)
    for params, column in ((model.params, "plain"), (new, "retained")):
        masked = js.mask_params(params, js.compute_masks(params, rules))
        leaves = leaves_by_path(masked)
        for leaf in report.leaves:
            total = np.abs(np.asarray(leaves[leaf.path], np.float64)).sum()
            np.testing.assert_allclose(total, getattr(leaf, column), rtol=1e-6)
    fn = jax.jit(model.fn)
    assert_same(fn(new, *model.inputs), fn(model.params, *model.inputs))


@pytest.mark.parametrize("method", ["1d", "best", "greedy"])
def test_an_order_that_keeps_less_is_not_taken(method):
    params = {"up": jnp.ones((4, 8)), "down": jnp.tile(jnp.array([[9.0, 9, 1, 1] * 2]).T, 4)}
    rules = [js.Rule("down", js.NM(2, 4, method=method))]

    def mlp(p, x):
        return jnp.tanh(x @ p["up"]) @ p["down"]

    new, report = js.graph.permute(mlp, params, jnp.ones((1, 4)), rules=rules, search=reverse)
    assert not report.permutations
    assert report.groups[0].reason == "no order found keeps more"
    assert report.groups[0].retained == report.groups[0].plain
    np.testing.assert_array_equal(new["down"], params["down"])


def test_output_channels_count_where_tiles_are_transposable():
    """A 4x4 tile of "best" changes with the order of its outputs, too."""
    rng = np.random.default_rng(3)
    params = {
        "in": jnp.asarray(rng.normal(size=(8, 8)), jnp.float32),
        "out": jnp.asarray(rng.normal(size=(8, 4)), jnp.float32),
    }
    rules = [js.Rule(".*", js.NM(2, 4, method="best"))]

    def mlp(p, x):
        return jnp.tanh(x @ p["in"]) @ p["out"]

    _, report = js.graph.permute(mlp, params, jnp.ones((1, 8)), rules=rules, search=swaps)
    plain, retained = (
        sum(getattr(leaf, column) for leaf in report.leaves) for column in ("plain", "retained")
    )
    assert retained >= plain


def test_why_a_leaf_was_not_searched():
    model = MODELS["attention"]()
    rules = [js.Rule(r".*/out/kernel", js.NM(2, 4))]
    _, report = js.graph.permute(model.fn, model.params, *model.inputs, rules=rules, search=swaps)
    heads = next(row for row in report.groups if row.group.size == 2)
    assert "its neighbours along the input are other channels" in heads.reason
    assert "not searched" in str(report) and "efficacy" in str(report)

    model = MODELS["chain"]()
    rules = [js.Rule(r".*_2/kernel", js.NM(3, 6, pad=True))]
    _, report = js.graph.permute(model.fn, model.params, *model.inputs, rules=rules, search=swaps)
    assert "8 channels are no multiple of 6" in report.groups[0].reason


def test_rules_without_nm_are_an_error():
    model = MODELS["chain"]()
    with pytest.raises(ValueError, match="no rule has an n:m pattern"):
        js.graph.permute(
            model.fn,
            model.params,
            *model.inputs,
            rules=[js.Rule(".*kernel", js.Unstructured(), 0.5)],
        )


def test_the_search_of_the_library_recovers_most():
    model = MODELS["complex_siblings"]()
    rules = [js.Rule(r"params/conv\d_[23]/kernel", js.NM(2, 4))]
    _, report = js.graph.permute(model.fn, model.params, *model.inputs, rules=rules, escapes=10)
    assert sum(row.efficacy for row in report.groups) > 0.3
