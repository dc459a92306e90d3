"""Models as people build them shrink from end to end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from flax import nnx
from graph_models import linen, numbers, randomize
from test_channels import assert_same
from test_modules import drawn, masked
from test_shrink import emptying

import jaxsparse as js
from jaxsparse.trees import leaves_by_path

pytestmark = pytest.mark.slow
IMAGE = numbers(2, 8, 8, 3)


def norm(x):
    return nn.BatchNorm(use_running_average=True)(x)


class MobileNet(nn.Module):
    """A stem, an inverted residual with a shortcut and one with a stride, and a head."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu6(norm(nn.Conv(8, (3, 3), (2, 2), use_bias=False, name="stem")(x)))
        x = x + self.inverted(x, "one", 24, 8, 1)
        x = self.inverted(x, "two", 24, 12, 2)
        x = nn.relu6(norm(nn.Conv(16, (1, 1), use_bias=False, name="last")(x)))
        return nn.Dense(3, name="head")(x.mean((1, 2)))

    def inverted(self, x, name, hidden, out, stride):
        y = nn.relu6(norm(nn.Conv(hidden, (1, 1), use_bias=False, name=f"{name}_expand")(x)))
        y = nn.Conv(
            *(hidden, (3, 3), (stride, stride)),
            feature_group_count=hidden,
            use_bias=False,
            name=f"{name}_depthwise",
        )(y)
        y = nn.relu6(norm(y))
        return norm(nn.Conv(out, (1, 1), use_bias=False, name=f"{name}_project")(y))


class UNet(nn.Module):
    """Down, and up again by transposed convolutions beside what was on the way down."""

    @nn.compact
    def __call__(self, x):
        ways = []
        for i, width in enumerate((8, 12)):
            x = nn.relu(nn.Conv(width, (3, 3), name=f"down{i}")(x))
            ways.append(x)
            x = nn.avg_pool(x, (2, 2), (2, 2))
        x = nn.relu(nn.Conv(16, (3, 3), name="middle")(x))
        for i, (width, way) in enumerate(zip((12, 8), ways[::-1], strict=True)):
            up = nn.ConvTranspose(width, (2, 2), (2, 2), transpose_kernel=i == 0, name=f"up{i}")
            x = jnp.concatenate([nn.relu(up(x)), way], -1)
            x = nn.relu(nn.Conv(width, (3, 3), name=f"conv{i}")(x))
        return nn.Conv(2, (1, 1), name="head")(x)


class ResNet(nn.Module):
    """Two residual blocks, the second of which strides."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(norm(nn.Conv(8, (3, 3), use_bias=False)(x)))
        for width, stride in ((8, 1), (12, 2)):
            y = nn.relu(norm(nn.Conv(width, (3, 3), (stride, stride), use_bias=False)(x)))
            y = norm(nn.Conv(width, (3, 3), use_bias=False)(y))
            if y.shape != x.shape:
                x = norm(nn.Conv(width, (1, 1), (stride, stride), use_bias=False)(x))
            x = nn.relu(x + y)
        return nn.Dense(3)(x.mean((1, 2)))


def shrunk(net, masks_of):
    fn, params, x = linen(net, IMAGE)
    params = randomize(params)
    masks = masks_of(js.graph.channels(fn, params, x))
    small, run, report = js.graph.shrink(fn, params, masks, x)
    expected = jax.jit(fn)(js.mask_params(params, masks), x)
    assert_same(jax.jit(run)(small, IMAGE), expected, 1e-5)
    return {path: leaf.shape for path, leaf in leaves_by_path(small).items()}, report


@pytest.mark.parametrize("net", [MobileNet(), UNet(), ResNet()], ids=lambda net: type(net).__name__)
def test_half_of_everything(net):
    _, report = shrunk(net, lambda channels: emptying(channels, channels.groups))
    for row in report.groups:
        assert len(row.kept) == row.group.size - row.group.size // 2, str(row)
    assert report.after < 0.4 * report.before


def rows(channels, path, axis, count):
    """A mask of a leaf that keeps the first slices of an axis."""
    keep = np.moveaxis(np.zeros(channels.shapes[path], bool), axis, -1)
    keep[..., :count] = True
    return {path: np.moveaxis(keep, -1, axis)}


def test_a_mobilenet_shrinks_by_what_its_projections_do_not_read():
    def masks_of(channels):
        return rows(channels, "params/one_project/kernel", 2, 6) | rows(
            channels, "params/two_project/kernel", 2, 10
        )

    shapes, _ = shrunk(MobileNet(), masks_of)
    assert shapes["params/one_expand/kernel"] == (1, 1, 8, 6)
    assert shapes["params/one_depthwise/kernel"] == (3, 3, 1, 6)
    assert shapes["params/two_depthwise/kernel"] == (3, 3, 1, 10)
    assert shapes["params/two_project/kernel"] == (1, 1, 10, 12)


def test_constants_of_a_mobilenet_go_where_no_window_pads():
    """Empty columns of the last 1x1 convolution: batch norm makes constants of them."""
    shapes, report = shrunk(MobileNet(), lambda c: rows(c, "params/last/kernel", 3, 10))
    assert shapes["params/head/kernel"] == (10, 3)
    assert list(report.groups[0].folded) == ["params/head/bias"]
    _, report = shrunk(MobileNet(), lambda c: rows(c, "params/one_expand/kernel", 3, 10))
    (row,) = report.groups
    # Those that are 0 behind batch norm and relu6 go, the other constants see the border.
    assert 10 < len(row.kept) < 24
    assert [stay.reasons for stay in row.stays] == [("params/one_project/kernel reads them",)]


class Classifier(nnx.Module):
    """Embeddings, an LSTM and a low-rank head."""

    def __init__(self, rngs):
        self.embed = nnx.Embed(11, 6, rngs=rngs)
        self.rnn = nnx.RNN(nnx.OptimizedLSTMCell(6, 8, rngs=rngs), rngs=rngs)
        self.mix = nnx.LoRALinear(8, 12, lora_rank=4, rngs=rngs)
        self.head = nnx.Linear(12, 3, rngs=rngs)

    def __call__(self, tokens):
        x = self.rnn(self.embed(tokens))[:, -1]
        return self.head(nnx.relu(self.mix(x)))


class Decoder(nnx.Module):
    """Grouped and transposed convolutions."""

    def __init__(self, rngs):
        self.grouped = nnx.Conv(3, 8, (1, 1), rngs=rngs)
        self.conv = nnx.Conv(8, 12, (3, 3), feature_group_count=4, rngs=rngs)
        self.up = nnx.ConvTranspose(12, 6, (2, 2), (2, 2), rngs=rngs)
        self.turned = nnx.ConvTranspose(6, 10, (2, 2), (2, 2), transpose_kernel=True, rngs=rngs)
        self.head = nnx.Conv(10, 2, (1, 1), rngs=rngs)

    def __call__(self, x):
        x = nnx.relu(self.up(nnx.relu(self.conv(nnx.relu(self.grouped(x))))))
        return self.head(nnx.relu(self.turned(x)))


@pytest.mark.parametrize(
    ("build", "x"), [(Classifier, jnp.array([[1, 4, 2], [3, 3, 5]])), (Decoder, IMAGE)]
)
def test_modules(build, x):
    model = drawn(build(nnx.Rngs(0)))
    graph, random, params = nnx.split(model, nnx.RngState, ...)
    channels = js.graph.channels(lambda p, x: nnx.merge(graph, random, p, copy=True)(x), params, x)
    masks = emptying(channels, channels.groups)
    small, report = js.graph.shrink_model(model, masks, x)
    assert report.after < 0.4 * report.before
    call = nnx.jit(lambda model, x: model(x))
    assert_same(call(small, x), call(masked(model, masks), x))
    if build is Classifier:
        assert (small.rnn.cell.hidden_features, small.mix.in_features) == (4, 4)
        assert (small.mix.lora.in_features, small.mix.lora.out_features) == (4, 6)
        assert small.mix.lora.lora_a.shape == (4, 2)
    else:
        assert (small.conv.in_features, small.conv.feature_group_count) == (2, 2)
        assert (small.up.in_features, small.up.out_features) == (4, 3)
        assert (small.turned.in_features, small.turned.out_features) == (3, 5)


class Heads(nnx.Module):
    """Attention that knows its head_dim as a number of its own."""

    def __init__(self, rngs):
        self.query, self.key, self.value, self.out = (nnx.Linear(8, 8, rngs=rngs) for _ in range(4))
        self.head_dim = 4

    def __call__(self, x):
        q, k, v = (
            part(x).reshape(*x.shape[:-1], -1, self.head_dim)
            for part in (self.query, self.key, self.value)
        )
        return self.out(jax.nn.dot_product_attention(q, k, v).reshape(*x.shape[:-1], -1))


@pytest.mark.parametrize(
    "names, message",
    [
        (("query", "key"), "does not run: its own code insists on sizes"),
        (("query", "key", "value"), "computes something else than the masked one"),
    ],
)
def test_heads_that_all_lost_half_of_a_static_head_dim_are_refused(names, message):
    even = jnp.arange(8) % 2 == 0
    masks = {f"{name}/kernel": jnp.broadcast_to(even, (8, 8)) for name in names}
    masks |= {f"{name}/bias": even for name in names}
    if "value" in names:
        masks["out/kernel"] = jnp.broadcast_to(even[:, None], (8, 8))
    with pytest.raises(ValueError, match=message):
        js.graph.shrink_model(Heads(nnx.Rngs(0)), masks, numbers(2, 3, 8))
