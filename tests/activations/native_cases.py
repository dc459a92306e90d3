"""Convolutions by the native kernels beside XLA's, as a program of its own for other processors."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxsparse import activations as act
from jaxsparse.kernels import cpu

# Rows, channels and windows: every remainder of a group of six pairs and of a strip of columns,
# weights deeper than is multiplied at once, taps from 1 to 125.
SHAPES = [
    (1, 1, 1, dict(size=1)),
    (40, 3, 16, dict(size=3)),
    (200, 1, 1, dict(size=3)),
    (200, 7, 100, dict(size=3, dilation=2)),
    (150, 300, 17, dict(size=(3, 1, 3))),
    (300, 33, 65, dict(size=2, stride=2, outputs="floor")),
    (300, 5, 48, dict(size=3, stride=2, outputs="receptive")),
    (120, 2, 31, dict(size=5)),
]


def drawn(rng, rows, channels):
    """A cloud in no order, with rows to spare that hold NaN."""
    places = rng.choice(2 * 7**3, rows, replace=False)
    coordinates = np.stack(np.unravel_index(places, (2, 7, 7, 7)), 1) - (0, 3, 3, 3)
    features = np.full((rows + 5, channels), np.nan, np.float32)
    features[:rows] = rng.normal(size=(rows, channels))
    box = act.Bounds(2, (-3,) * 3, (4,) * 3)
    x = act.sparse_tensor(coordinates, features[:rows], box, capacity=rows + 5)
    return x.with_features(jnp.asarray(features))


def results(x, w, g, maps, dataflow):
    """y and the gradients of x and w."""

    def convolve(features, w):
        return act.sparse_conv(x.with_features(features), w, maps, dataflow=dataflow).features

    y, pull = jax.vjp(convolve, x.features, w)
    return y, *pull(g)


def check(rng, rows, inputs, outputs, options):
    """Fails unless both agree to rounding, and where nothing is to be, it is zero."""
    x = drawn(rng, rows, inputs)
    maps = act.kernel_map(x, **options)
    w = jnp.asarray(rng.normal(size=(*maps.window.size, inputs, outputs)), jnp.float32)
    count = int(maps.outputs.count)
    g = np.full((maps.outputs.capacity, outputs), np.nan, np.float32)
    g[:count] = rng.normal(size=(count, outputs))
    found, expected = (results(x, w, jnp.asarray(g), maps, d) for d in ("native", "implicit"))
    for one, other in zip(found, expected, strict=True):
        scale = float(jnp.max(jnp.abs(other))) + 1
        np.testing.assert_allclose(one, other, rtol=0, atol=3e-6 * scale)
    assert not np.any(found[0][count:]) and not np.any(found[1][rows:])


if __name__ == "__main__":
    generator = np.random.default_rng(0)
    for shape in SHAPES:
        check(generator, *shape)
    print(cpu.instruction_set())
