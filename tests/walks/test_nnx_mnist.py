"""A newcomer's walk with the convolutional network of Flax's MNIST example, in small."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxsparse as js
from tests.walks import steps


class CNN(nnx.Module):
    """Two convolutions with batch norm and dropout, each pooled, and two dense layers."""

    def __init__(self, rngs):
        self.conv1 = nnx.Conv(1, 16, (3, 3), rngs=rngs)
        self.batch_norm1 = nnx.BatchNorm(16, rngs=rngs)
        self.dropout1 = nnx.Dropout(0.025, rngs=rngs)
        self.conv2 = nnx.Conv(16, 32, (3, 3), rngs=rngs)
        self.batch_norm2 = nnx.BatchNorm(32, rngs=rngs)
        self.avg_pool = partial(nnx.avg_pool, window_shape=(2, 2), strides=(2, 2))
        self.linear1 = nnx.Linear(4 * 32, 64, rngs=rngs)
        self.dropout2 = nnx.Dropout(0.025, rngs=rngs)
        self.linear2 = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        x = self.avg_pool(nnx.relu(self.batch_norm1(self.dropout1(self.conv1(x)))))
        x = self.avg_pool(nnx.relu(self.batch_norm2(self.conv2(x))))
        x = nnx.relu(self.dropout2(self.linear1(x.reshape(x.shape[0], -1))))
        return self.linear2(x)


IMAGES = jax.random.normal(jax.random.key(0), (8, 8, 8, 1))
LABELS = jnp.arange(8)
RULES = [
    js.Rule("conv1/kernel", *steps.PATTERNS["unstructured"]),
    js.Rule("conv2/kernel", *steps.PATTERNS["nm"]),
    js.Rule("linear1/kernel", *steps.PATTERNS["block"]),
    js.Rule("linear2/kernel", js.Channel(-2), steps.HALF),
]


@pytest.mark.slow
def test_mnist(tmp_path):
    model = CNN(nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, steps.pruned_adam(RULES), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer):
        def loss(model):
            losses = optax.softmax_cross_entropy_with_integer_labels(model(IMAGES), LABELS)
            return losses.mean()

        optimizer.update(model, nnx.grad(loss)(model))

    for _ in range(3):
        step(model, optimizer)
    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)

    def apply(params, x):
        return nnx.merge(graph, params, rest)(x)

    masks = js.masks(optimizer.opt_state)
    report = steps.walk(apply, params, masks, RULES, IMAGES, tmp_path / "cnn.safetensors")
    assert report.kept["linear1/kernel"][1].size == 32

    # Packed weights in the model's own code: the message says what they need.
    packed = js.pack_params(params, masks, RULES)
    with pytest.raises(TypeError, match=r"js.sparsify\(function\) runs a function of arrays on it"):
        nnx.merge(graph, packed, rest)(IMAGES)

    # The layers themselves, exchanged: what is no nnx.Linear is named, with what works instead.
    with pytest.raises(ValueError, match="'conv1/kernel' is not the kernel"):
        js.nn.replace(model, RULES)
    linears = [rule for rule in RULES if "linear" in rule.path]
    model.conv1.kernel, model.conv2.kernel = (
        nnx.Param(masks[name] * getattr(model, name.split("/")[0]).kernel[...])
        for name in ("conv1/kernel", "conv2/kernel")
    )
    small, surgery = js.nn.replace(model, linears, inputs=[IMAGES])
    np.testing.assert_allclose(small(IMAGES), model(IMAGES), rtol=1e-3, atol=1e-4)
    assert surgery.after < surgery.before
