"""Channels go through convolutions of every kind: grouped, transposed, dilated, in any layout."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from graph_models import numbers, randomize
from test_channels import assert_same

import jaxsparse as js

EXAMPLES, PLACES, WIDTH = 6, 5, 8


def block(dims, groups, each, layout="NHC", kernel_layout="HIO", batch_groups=1, **options):
    """1x1 to 8 channels, a convolution to `each` channels a group, 1x1 to 2."""
    letters = "DHW"[-dims:]
    numbers_ = tuple(s.replace("H", letters) for s in (layout, kernel_layout, layout))
    out = groups * each * batch_groups
    size = {"I": WIDTH // groups, "O": out} | dict.fromkeys(letters, 3)
    params = {
        "expand": jnp.ones((3, WIDTH)),
        "bias": jnp.ones(WIDTH),
        "window": jnp.ones([size[letter] for letter in numbers_[1]]),
        "project": jnp.ones((out, 2)),
    }
    channel = layout.index("C") if layout[-1] != "C" else -1
    strides = options.pop("strides", [1] * dims)

    def fn(params, x):
        x = jax.nn.relu(x @ params["expand"] + params["bias"])
        x = jax.lax.conv_general_dilated(
            jnp.moveaxis(x, -1, channel),
            params["window"],
            strides,
            "SAME" if "lhs_dilation" not in options else [(1, 2)] * dims,
            dimension_numbers=numbers_,
            feature_group_count=groups,
            batch_group_count=batch_groups,
            **options,
        )
        return jax.nn.relu(jnp.moveaxis(x, channel, -1)) @ params["project"]

    return fn, randomize(params), numbers(EXAMPLES, *[PLACES] * dims, 3)


def unread(count):
    """A mask of the last layer that reads the first channels only."""
    return lambda rows: {"project": jnp.broadcast_to(jnp.arange(rows)[:, None] < count, (rows, 2))}


@pytest.mark.parametrize(
    ("options", "read", "hidden", "out"),
    [
        ({"groups": 1, "each": 8}, 4, 8, 4),
        ({"groups": 8, "each": 1}, 4, 4, 4),
        ({"groups": 8, "each": 2}, 4, 2, 4),  # a multiplier of 2
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                ({"groups": 8, "each": 1, "dims": 1}, 3, 3, 3),
                ({"groups": 8, "each": 1, "dims": 3}, 3, 3, 3),
                ({"groups": 4, "each": 2}, 4, 4, 4),  # two groups of two
                ({"groups": 2, "each": 4}, 4, 4, 4),
                ({"groups": 4, "each": 2}, 3, 4, 4),  # half a group cannot go
                ({"groups": 8, "each": 1, "layout": "NCH", "kernel_layout": "OIH"}, 3, 3, 3),
                ({"groups": 4, "each": 2, "layout": "NCH", "kernel_layout": "IOH"}, 4, 4, 4),
                ({"groups": 4, "each": 2, "kernel_layout": "OHI"}, 4, 4, 4),
                ({"groups": 8, "each": 1, "lhs_dilation": (2, 2)}, 3, 3, 3),
                ({"groups": 4, "each": 2, "rhs_dilation": (2, 1), "strides": (2, 1)}, 2, 2, 2),
                ({"groups": 1, "each": 4, "batch_groups": 2}, 4, 8, 8),  # a group of examples stays
            )
        ),
    ],
)
def test_unread_channels_go_through(options, read, hidden, out):
    fn, params, x = block(**({"dims": 2} | options))
    masks = unread(read)(len(params["project"]))
    small, run, report = js.graph.shrink(fn, params, masks, x)
    assert (small["expand"].shape[1], len(small["project"])) == (hidden, out)
    assert_same(run(small, x), fn(js.mask_params(params, masks), x))
    assert not any(len(group.inexact) for group in report.groups)


@pytest.mark.slow
@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_what_nothing_feeds_goes(groups):
    """Empty columns of the first layer, or an empty kernel between."""
    fn, params, x = block(2, groups, 8 // groups)
    dead = jnp.arange(WIDTH) >= 4
    masks = {"expand": jnp.broadcast_to(~dead, (3, WIDTH)), "bias": ~dead}
    small, run, _ = js.graph.shrink(fn, params, masks, x)
    assert small["expand"].shape[1] == 4
    assert len(small["project"]) == (8 if groups == 1 else 4)
    assert_same(run(small, x), fn(js.mask_params(params, masks), x))
    masks = {"window": jnp.broadcast_to(~dead, params["window"].shape)}
    small, run, _ = js.graph.shrink(fn, params, masks, x)
    assert len(small["project"]) == 4
    assert small["expand"].shape[1] == (8 if groups == 1 else 4)
    assert_same(run(small, x), fn(js.mask_params(params, masks), x))


@pytest.mark.slow
def test_groups_of_examples():
    """Output channels belong to one group of examples each, input channels to all."""
    fn, params, x = block(2, 1, 4, batch_groups=2)
    masks = {"window": jnp.broadcast_to(jnp.arange(8)[:, None] < 5, params["window"].shape)}
    small, run, _ = js.graph.shrink(fn, params, masks, x)
    assert small["expand"].shape[1] == 5
    assert_same(run(small, x), fn(js.mask_params(params, masks), x))
    each = jnp.arange(8) % 4 < 3  # channel 3 of both groups
    masks = {"project": jnp.broadcast_to(each[:, None], (8, 2))}
    small, run, _ = js.graph.shrink(fn, params, masks, x)
    assert small["window"].shape[-1] == 6
    assert_same(run(small, x), fn(js.mask_params(params, masks), x))


class Decoder(nn.Module):
    """Up by a transposed convolution, whose kernel may be stored turned round."""

    flipped: bool
    dims: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(8, (3,) * self.dims, name="conv")(x))
        up = nn.ConvTranspose(
            12, (4,) * self.dims, (2,) * self.dims, transpose_kernel=self.flipped, name="up"
        )
        return nn.Conv(2, (1,) * self.dims, name="head")(nn.relu(up(x)))


@pytest.mark.parametrize(
    ("flipped", "dims"),
    [
        (True, 2),
        pytest.param(False, 2, marks=pytest.mark.slow),
        pytest.param(True, 1, marks=pytest.mark.slow),
    ],
)
def test_transposed(flipped, dims):
    net, x = Decoder(flipped, dims), numbers(1, *[3] * dims, 3)
    params = randomize(net.init(jax.random.key(1), x))
    shape = params["params"]["up"]["kernel"].shape
    into, out = (-1, -2) if flipped else (-2, -1)
    keep = np.moveaxis(np.ones(shape, bool), into, 0)
    keep[4:] = False
    keep = np.moveaxis(keep, 0, into)
    masks = {
        "params/up/kernel": keep,
        "params/head/kernel": np.broadcast_to(np.arange(12)[:, None] < 5, (*[1] * dims, 12, 2)),
    }
    small, run, _ = js.graph.shrink(net.apply, params, masks, x)
    assert small["params"]["conv"]["kernel"].shape[-1] == 4
    assert small["params"]["up"]["kernel"].shape[out] == 5
    assert_same(run(small, x), net.apply(js.mask_params(params, masks), x))
