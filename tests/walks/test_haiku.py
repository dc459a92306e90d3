"""A newcomer's walk with Haiku: pairs of functions, and names of modules with slashes."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsparse as js
from tests.walks import steps

hk = pytest.importorskip("haiku", reason="dm-haiku is not installed: pip install .[test]")

IMAGES = jax.random.normal(jax.random.key(0), (4, 8, 8, 4))
LABELS = jnp.arange(4)
RULES = [
    js.Rule(r"net/~/conv2_d/w", *steps.PATTERNS["nm"]),
    js.Rule(r"net/~/mlp/~/linear_0/w", *steps.PATTERNS["block"]),
    js.Rule(r"net/~/mlp/~/linear_1/w", js.Channel(-2), steps.HALF),
    js.Rule(r"net/linear/w", *steps.PATTERNS["unstructured"]),
]


class Net(hk.Module):
    def __init__(self):
        super().__init__("net")
        self.conv = hk.Conv2D(16, 3)
        self.norm = hk.LayerNorm(-1, create_scale=True, create_offset=True)
        self.mlp = hk.nets.MLP([32, 16])

    def __call__(self, x):
        x = jax.nn.relu(self.norm(self.conv(x)))
        return hk.Linear(10)(self.mlp(x.mean((1, 2))))


@pytest.mark.slow
def test_haiku(tmp_path):
    model = hk.without_apply_rng(hk.transform(lambda x: Net()(x)))
    params = model.init(jax.random.key(1), IMAGES)

    def loss(params):
        y = model.apply(params, IMAGES)
        return optax.softmax_cross_entropy_with_integer_labels(y, LABELS).mean()

    params, masks = steps.train(loss, params, RULES)
    report = steps.walk(model.apply, params, masks, RULES, IMAGES, tmp_path / "net.safetensors")
    assert report.kept["net/~/mlp/~/linear_0/w"][1].size == 16
