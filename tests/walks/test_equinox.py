"""A newcomer's walk with Equinox: weights are (out, in), and functions are leaves."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxsparse as js
from tests.walks import steps

eqx = pytest.importorskip("equinox", reason="equinox is not installed: pip install .[test]")

IMAGES = jax.random.normal(jax.random.key(0), (4, 4, 8, 8))
LABELS = jnp.arange(4)
RULES = [
    js.Rule(r"conv/weight", *steps.PATTERNS["nm"]),
    js.Rule(r"mlp/layers/0/weight", *steps.PATTERNS["block"]),
    js.Rule(r"mlp/layers/1/weight", js.Channel(1), steps.HALF),
    js.Rule(r"mlp/layers/2/weight", *steps.PATTERNS["unstructured"]),
]


class Net(eqx.Module):
    conv: eqx.nn.Conv2d
    norm: eqx.nn.GroupNorm
    mlp: eqx.nn.MLP

    def __init__(self, key):
        a, b = jax.random.split(key)
        self.conv = eqx.nn.Conv2d(4, 16, 3, padding=1, key=a)
        self.norm = eqx.nn.GroupNorm(4, 16)
        self.mlp = eqx.nn.MLP(16, 10, 32, 2, key=b)

    def __call__(self, x):
        x = jax.nn.relu(self.norm(self.conv(x)))
        return self.mlp(x.mean((1, 2)))


def apply(model, images):
    return jax.vmap(model)(images)


@pytest.mark.slow
def test_equinox(tmp_path):
    model = Net(jax.random.key(1))
    params, rest = eqx.partition(model, eqx.is_inexact_array)

    def loss(params):
        y = apply(eqx.combine(params, rest), IMAGES)
        return optax.softmax_cross_entropy_with_integer_labels(y, LABELS).mean()

    # (out, in) or (in, out)? A name does not tell, and the message says what does.
    with pytest.raises(ValueError, match=r"js.read_axes\(rules, fn, params, \*inputs\)"):
        js.compute_masks(model, RULES)
    rules = js.read_axes(RULES, apply, model, IMAGES)

    params, masks = steps.train(loss, params, rules)
    model = eqx.combine(params, rest)
    file = tmp_path / "net.safetensors"
    report = steps.walk(apply, model, masks, rules, IMAGES, file, jit=eqx.filter_jit)
    assert report.kept["mlp/layers/0/weight"][0].size == 16
