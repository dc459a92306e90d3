"""Masks chosen outside training, and what cannot be counted or scored."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxsparse as js

W = {"w": jnp.arange(1.0, 17.0).reshape(4, 4)}
HALF = [js.Rule("w", js.Unstructured(), 0.5)]


def users_own(look):
    return js.Score(lambda w, s: (), lambda g, s, w, c: (look(g, w), s))


@pytest.mark.parametrize(
    "score",
    [
        js.gradient(),
        js.saliency(),
        js.saliency_momentum(),
        js.movement(),
        users_own(lambda g, w: {path: jnp.abs(g[path]) for path in w}),
        users_own(lambda g, w: {path: jnp.abs(x) for path, x in g.items()}),
        users_own(lambda g, w: {path: g.get(path, 0) for path in w}),
        users_own(lambda g, w: dict(zip(g, w.values(), strict=True))),
        users_own(lambda g, w: g | w),
        users_own(lambda g, w: w if "w" in g else {}),
    ],
)
def test_a_score_of_gradients_needs_some(score):
    with pytest.raises(ValueError, match=r"looks at gradients.*grads=jax\.grad\(loss\)\(params\)"):
        js.compute_masks(W, HALF, score=score)
    assert js.compute_masks(W, HALF, score=score, grads=W)["w"].sum() == 8


@pytest.mark.parametrize(
    "score", [js.magnitude(), js.random(), users_own(lambda g, w: w)], ids=["w", "random", "own"]
)
def test_a_score_of_weights_needs_none(score):
    assert js.compute_masks(W, HALF, score=score)["w"].sum() == 8


def test_gradients_must_fit():
    with pytest.raises(ValueError, match=r"gradient of 'w' has shape \(2, 4\), the leaf \(4, 4\)"):
        js.compute_masks(W, HALF, score=js.gradient(), grads={"w": W["w"][:2]})
    with pytest.raises(ValueError, match=r"no gradient for leaf 'w'; known: 'v'"):
        js.compute_masks(W, HALF, score=js.gradient(), grads={"v": W["w"]})


# Moduli 10, 1, 2, 9: neither the real nor the imaginary part orders them.
COMPLEX = {"w": jnp.array([[0.1 + 10j, 1 + 0j], [2 + 0j, 8.9 - 1j]], jnp.complex64)}


@pytest.mark.parametrize(
    "score,pattern",
    [
        (js.magnitude(), js.Unstructured()),
        (js.gradient(), js.Block(1, 1)),
        (js.saliency(), js.Block(1, 1, reduce="max")),
        (js.saliency_momentum(), js.Block(1, 1, reduce="l2")),
        (users_own(lambda g, w: {"w": jnp.abs(w["w"])}), js.Block(1, 1, reduce="sum")),
    ],
    ids=["magnitude", "gradient", "saliency", "saliency_momentum", "own"],
)
def test_complex_weights_count_by_modulus(score, pattern):
    rules = [js.Rule("w", pattern, 0.5)]
    masks = js.compute_masks(COMPLEX, rules, score=score, grads=COMPLEX)
    assert masks["w"].tolist() == [[True, False], [False, True]]
    seen = js.mask_params(COMPLEX, masks)["w"]
    np.testing.assert_array_equal(seen, np.where(masks["w"], COMPLEX["w"], 0))


@pytest.mark.parametrize("pattern", [js.NM(1, 2), js.Channel(0), js.Block(2, 1)], ids=str)
def test_complex_groups(pattern):
    masks = js.compute_masks(COMPLEX, [js.Rule("w", pattern)], sparsity=0.5)["w"]
    moduli = np.abs(np.asarray(COMPLEX["w"]))
    expected = {
        "NM(1, 2)": moduli == moduli.max(axis=0),
        "Channel(0)": np.array([[True] * 2, [False] * 2]),
        "Block(2, 1)": np.array([[True, False], [True, False]]),
    }[str(pattern)]
    np.testing.assert_array_equal(masks, expected)


def test_movement_of_complex_weights_is_the_change_of_the_loss():
    """dL/ds of L(s w) at s = 1, which is Re(g w) in JAX's convention."""
    target = jnp.array([[1 - 1j, 2j], [0.5 + 0j, -1 + 1j]], jnp.complex64)

    def loss(w):
        return jnp.sum(jnp.abs(w - target) ** 2)

    grads = {"w": jax.grad(loss)(COMPLEX["w"])}
    slopes = jax.grad(lambda s: loss(s * COMPLEX["w"]))(jnp.ones((2, 2)))
    score = js.movement()
    specs = js.prune(HALF, score=score, schedule=js.one_shot()).init(COMPLEX)
    moved = np.argsort(np.asarray(jnp.real(grads["w"] * COMPLEX["w"])).ravel())
    np.testing.assert_array_equal(moved, np.argsort(np.asarray(slopes).ravel()))
    np.testing.assert_allclose(jnp.real(grads["w"] * COMPLEX["w"]), slopes, rtol=1e-5)
    assert specs.score.scores["w"].dtype == jnp.float32


def test_complex_scores_have_no_order():
    rules = [js.Rule("w", js.Block(2, 2))]
    score = users_own(lambda g, w: {"w": jnp.ones((1, 1), jnp.complex64)})
    with pytest.raises(ValueError, match=r"score of leaf 'w' is complex64.*jnp\.abs\(score\)"):
        js.compute_masks(COMPLEX, rules, sparsity=0.5, score=score)


HUGE = jax.ShapeDtypeStruct((2**16, 2**15), jnp.bfloat16)


@pytest.mark.parametrize(
    "run",
    [
        lambda w, rule: js.compute_masks(w, [rule], sparsity=0.5),
        lambda w, rule: js.compute_masks(w, [rule], sparsity=0.5, distribution=js.global_()),
        lambda w, rule: js.prune([rule], sparsity=0.5, schedule=js.one_shot()).init(w),
        lambda w, rule: js.prune([rule], schedule=0.5).init(w),
        lambda w, rule: js.prune(
            [rule], score=js.movement(), schedule=js.importance_threshold(begin=1, end=5)
        ).init(w),
    ],
    ids=["compute_masks", "global_", "prune", "given", "importance_threshold"],
)
def test_a_leaf_of_2_to_the_31_groups_is_refused_by_name(run):
    fine = js.Rule("head/kernel", js.Block(4, 16))
    with pytest.raises(ValueError, match=r"'head/kernel' of shape \(65536, 32768\).*2147483648"):
        jax.eval_shape(lambda w: run(w, js.Rule(".*", js.Unstructured())), {"head/kernel": HUGE})
    # What the message says would work does.
    jax.eval_shape(lambda w: run(w, fine), {"head/kernel": HUGE})
    batched = js.Rule("head/kernel", js.Unstructured(), batch_axis=0, in_axis=(), out_axis=1)
    jax.eval_shape(lambda w: run(w, batched), {"head/kernel": HUGE})
