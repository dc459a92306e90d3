"""A newcomer's walk with a linen ResNet: TrainState, batch statistics, strided shortcuts."""

from typing import Any

import flax.linen as linen
import jax
import jax.numpy as jnp
import optax
import pytest
from flax.training import train_state

import jaxsparse as js
from tests.walks import steps


class ResNetBlock(linen.Module):
    features: int
    strides: int = 1
    train: bool = True

    @linen.compact
    def __call__(self, x):
        def norm(**options):
            return linen.BatchNorm(use_running_average=not self.train, momentum=0.9, **options)

        shape = (self.strides, self.strides)
        y = linen.Conv(self.features, (3, 3), shape, use_bias=False)(x)
        y = linen.relu(norm()(y))
        y = linen.Conv(self.features, (3, 3), use_bias=False)(y)
        y = norm(scale_init=linen.initializers.zeros_init())(y)
        if x.shape != y.shape:
            x = linen.Conv(self.features, (1, 1), shape, use_bias=False, name="conv_proj")(x)
            x = norm(name="norm_proj")(x)
        return linen.relu(x + y)


class ResNet(linen.Module):
    train: bool = True

    @linen.compact
    def __call__(self, x):
        x = linen.Conv(16, (3, 3), use_bias=False, name="conv_init")(x)
        x = linen.relu(linen.BatchNorm(not self.train, name="bn_init")(x))
        x = ResNetBlock(16, train=self.train)(x)
        x = ResNetBlock(32, strides=2, train=self.train)(x)
        return linen.Dense(10)(x.mean(axis=(1, 2)))


class TrainState(train_state.TrainState):
    batch_stats: Any


IMAGES = jax.random.normal(jax.random.key(0), (4, 8, 8, 3))
LABELS = jnp.arange(4)
RULES = [
    js.Rule(r"(params/)?ResNetBlock_0/Conv_0/kernel", *steps.PATTERNS["block"]),
    js.Rule(r"(params/)?ResNetBlock_0/Conv_1/kernel", js.Channel(-2), steps.HALF),
    js.Rule(r"(params/)?ResNetBlock_1/Conv_./kernel", *steps.PATTERNS["nm"]),
    js.Rule(r"(params/)?ResNetBlock_1/conv_proj/kernel", *steps.PATTERNS["unstructured"]),
]


@pytest.mark.slow
def test_resnet(tmp_path):
    model = ResNet()
    variables = model.init(jax.random.key(1), IMAGES)
    state = TrainState.create(
        apply_fn=model.apply,
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        tx=steps.pruned_adam(RULES),
    )

    @jax.jit
    def step(state):
        def loss(params):
            given = {"params": params, "batch_stats": state.batch_stats}
            y, new = state.apply_fn(given, IMAGES, mutable=["batch_stats"])
            losses = optax.softmax_cross_entropy_with_integer_labels(y, LABELS)
            return losses.mean(), new["batch_stats"]

        grads, batch_stats = jax.grad(loss, has_aux=True)(state.params)
        return state.apply_gradients(grads=grads, batch_stats=batch_stats)

    for _ in range(3):
        state = step(state)
    # Batch statistics shrink with the channels they belong to, so they are parameters here.
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    masks = {"params": js.masks(state.opt_state, state.params)}
    apply = ResNet(train=False).apply
    report = steps.walk(apply, variables, masks, RULES, IMAGES, tmp_path / "resnet.safetensors")
    assert report.kept["params/ResNetBlock_0/Conv_0/kernel"][3].size == 8
    assert report.kept["batch_stats/ResNetBlock_0/BatchNorm_0/mean"][0].size == 8
