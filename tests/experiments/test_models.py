import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from experiments import data, models, tasks
from experiments.data import Dataset, Split
from jaxsparse.allocation import Flops
from jaxsparse.trees import leaves_by_path

IMAGES = np.random.default_rng(0).random((8, 8, 8, 1), np.float32)
TOKENS = np.array([[3, 4, 5, 0], [2, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]], np.int32)
RATINGS = {
    "ids": np.array([[0, 1], [2, 3], [1, 0], [2, 2]], np.int32),
    "genres": np.eye(4, 3, dtype=np.float32),
    "dense": np.ones((4, 5), np.float32),
}


def dataset(inputs, task, outputs=1, **sizes):
    n = len(jax.tree.leaves(inputs)[0])
    dtype = np.int32 if task == "classification" else np.float32
    split = Split(inputs, (np.arange(n) % 2).astype(dtype))
    return Dataset(task, split, split, outputs, "test", sizes)


DIGITS = dataset(IMAGES, "classification", 10)
REVIEWS = dataset(TOKENS, "binary", tokens=6)
FILMS = dataset(RATINGS, "binary", ids=[3, 4], genres=3)
SMALL = {
    "mlp": (DIGITS, {"hidden": (16,)}),
    "linen_mlp": (DIGITS, {"hidden": (16,)}),
    "cnn": (DIGITS, {"widths": (4, 8), "blocks": 1}),
    "mobilenet": (DIGITS, {"width": 1 / 16, "blocks": 2}),
    "transformer": (REVIEWS, {"width": 8, "heads": 2, "mlp_width": 16, "depth": 1}),
    "dlrm": (FILMS, {"width": 4, "bottom": (8,), "top": (8,), "dropout": 0.1}),
}


# What starts from a directory has its runs in test_reviews_runs.
PRETRAINED = {"bert"}


def test_every_model_is_tested():
    assert {*SMALL, *PRETRAINED} == {*models.MODELS.names}


@pytest.mark.parametrize("name", SMALL)
def test_one_step_lowers_the_loss_of_its_batch(name):
    data_set, options = SMALL[name]
    model = models.create(name, data_set, **options)
    params, extra = jax.jit(model.init)(jax.random.key(0))
    inputs, labels = data_set.train.inputs, data_set.train.labels
    loss_of = tasks.loss_fn(data_set.task)

    @jax.jit
    def loss_and_grads(params, extra):
        def loss(params):
            outputs, new = model.apply(params, extra, inputs, jax.random.key(1))
            return loss_of(outputs, labels), (outputs, new)

        return jax.value_and_grad(loss, has_aux=True)(params)

    (before, (outputs, extra)), grads = loss_and_grads(params, extra)
    shape = (len(labels),) if data_set.outputs == 1 else (len(labels), data_set.outputs)
    assert outputs.shape == shape and outputs.dtype == jnp.float32
    params = optax.apply_updates(params, jax.tree.map(lambda g: -0.05 * g, grads))
    (after, _), _ = loss_and_grads(params, extra)
    assert np.isfinite(before) and after < before
    # Evaluation changes nothing and draws nothing.
    apply = jax.jit(lambda extra: model.apply(params, extra, inputs, None))
    one, kept = apply(extra)
    np.testing.assert_array_equal(one, apply(kept)[0])


@pytest.mark.parametrize(("width", "macs"), [(1.0, 568_740_352), (0.75, 325_400_448)])
def test_mobilenet_has_the_multiplications_of_the_paper(width, macs):
    """With the 1,000 biases of the classifier, as AMC's authors count, 568,741,352."""
    images = dataset(np.zeros((1, 224, 224, 3), np.float32), "classification", 1000)
    model = models.create("mobilenet", images, width=width)
    params, extra = jax.eval_shape(model.init, jax.random.key(0))

    def forward(params, extra, x):
        return model.apply(params, extra, x, None)[0]

    assert Flops(forward, params, extra, images.train.inputs).total() == macs


def test_mobilenet_wants_images_and_a_width():
    with pytest.raises(ValueError, match=r"reads images .* found \(4, 4\)"):
        models.create("mobilenet", REVIEWS)
    with pytest.raises(ValueError, match=r"model.width = 0.0: a factor above 0"):
        models.create("mobilenet", DIGITS, width=0.0)
    with pytest.raises(ValueError, match=r"model.blocks = 14: MobileNetV1 has 13"):
        models.create("mobilenet", DIGITS, blocks=14)


def test_the_default_mlp_is_the_published_one():
    params, _ = jax.eval_shape(models.create("mlp", DIGITS).init, jax.random.key(0))
    shapes = {path: leaf.shape for path, leaf in leaves_by_path(params).items()}
    assert [shapes[f"layers_{i}/kernel"] for i in range(3)] == [(64, 300), (300, 100), (100, 10)]


def test_linen_and_nnx_agree_on_paths_and_outputs():
    nnx_model = models.create("mlp", DIGITS, hidden=(16,))
    linen_model = models.create("linen_mlp", DIGITS, hidden=(16,))
    ours, _ = nnx_model.init(jax.random.key(0))
    theirs, extra = linen_model.init(jax.random.key(0))
    weights, others = leaves_by_path(ours), leaves_by_path(theirs)
    assert {p: w.shape for p, w in weights.items()} == {p: w.shape for p, w in others.items()}
    copied = {
        layer: {leaf: weights[f"{layer}/{leaf}"] for leaf in theirs[layer]} for layer in theirs
    }
    expected, _ = nnx_model.apply(ours, {}, IMAGES, None)
    found, _ = linen_model.apply(copied, extra, IMAGES, None)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_padding_changes_nothing():
    model = models.create("transformer", REVIEWS, **SMALL["transformer"][1])
    params, extra = jax.jit(model.init)(jax.random.key(0))
    apply = jax.jit(lambda tokens: model.apply(params, extra, tokens, None)[0])
    short, padded = apply(TOKENS[:1, :3]), apply(TOKENS[:1])
    np.testing.assert_allclose(short, padded, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "data_set", "options", "message"),
    [
        ("mpl", DIGITS, {}, "unknown model 'mpl'; did you mean 'mlp'"),
        ("mlp", DIGITS, {"hiden": (3,)}, "model 'mlp' has no option 'hiden'; did you mean"),
        ("mlp", DIGITS, {"hidden": (0,)}, r"model.hidden = \(0,\): every size must be at least 1"),
        ("transformer", REVIEWS, {"heads": 0}, "model.heads = 0: every size must be at least 1"),
        ("mlp", REVIEWS, {}, "this data set has token ids"),
        ("cnn", REVIEWS, {}, r"reads images \(n, height, width, channels\), found \(4, 4\)"),
        ("cnn", FILMS, {}, "found dict"),
        ("transformer", DIGITS, {}, "reads token ids of shape"),
        ("transformer", REVIEWS, {"width": 6, "heads": 4}, "4 heads do not divide the width 6"),
        ("dlrm", DIGITS, {}, "reads the inputs ids, genres and dense"),
    ],
)
def test_a_model_says_what_it_cannot_read(name, data_set, options, message):
    with pytest.raises(ValueError, match=message):
        models.create(name, data_set, **options)


def test_data_sets_fit_their_models():
    digits = data.load("digits")
    assert models.create("cnn", digits) and models.create("mlp", digits)
