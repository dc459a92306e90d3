"""Every kernel shape as the matrix that the layer multiplies by."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

from jaxsparse.patterns.views import view_of

RULES = [  # path, shape, batch shape, (K, N)
    ("norm/scale", (7,), (), (1, 7)),
    ("dense/kernel", (6, 4), (), (6, 4)),
    ("conv/kernel", (5, 6, 4), (), (30, 4)),
    ("Conv_0/kernel", (3, 3, 6, 4), (), (54, 4)),
    ("Conv3D/kernel", (2, 3, 3, 6, 4), (), (108, 4)),
    ("conv2_d/w", (3, 3, 6, 4), (), (54, 4)),
    ("weight", (4,), (), (1, 4)),
    ("attention/query/kernel", (8, 2, 4), (), (8, 8)),
    ("key/kernel", (3, 8, 2, 4), (3,), (8, 8)),
    ("attention/out/kernel", (2, 4, 8), (), (8, 8)),
    ("a/out/kernel", (3, 2, 4, 6), (3,), (8, 6)),
]
REFUSED = [  # path, shape, whether also where the sides do not matter
    ("layers/kernel", (3, 6, 4), True),
    ("conv/weight", (4, 6, 3), False),
    ("about/kernel", (3, 4, 6), True),  # ends with "out" but is no attention
    ("monkey/kernel", (3, 4, 6), True),
    ("stack/conv_block/layers/kernel", (2, 3, 3, 6, 4), True),
    ("stem/kernel", (3, 3, 6, 4), False),
    ("ConvTranspose_0/kernel", (3, 3, 6, 4), False),
    ("conv2_d_transpose/w", (3, 3, 6, 4), False),
    ("deconv/kernel", (3, 6, 4), False),
    ("embed/embedding", (32, 16), False),
    ("embed/embeddings", (32, 16), False),
    ("layers/0/weight", (32, 16), False),
    ("cell/weight_ih", (32, 16), False),
    ("attention/in_proj_weight", (32, 16), False),
]


@pytest.mark.parametrize("path,shape,batch,matrix", RULES)
def test_by_name(path, shape, batch, matrix):
    view = view_of(path, shape)
    assert (view.batch_shape, view.matrix_shape) == (batch, matrix)
    leaf = np.arange(np.prod(shape)).reshape(shape)
    seen = view.matrix(jnp.asarray(leaf))
    np.testing.assert_array_equal(seen, leaf.reshape(*batch, *matrix))  # all are in order already
    np.testing.assert_array_equal(view.leaf(seen), leaf)


@pytest.mark.parametrize("path,shape,always", REFUSED)
def test_what_a_name_does_not_tell_is_refused(path, shape, always):
    with pytest.raises(ValueError) as error:
        view_of(path, shape)
    words = str(error.value)
    assert repr(path) in words and str(shape) in words and "js.read_axes(" in words
    # Whatever the message lists works.
    for axes in re.findall(r"((?:\w+_axis=(?:-?\d|\([^)]*\))(?:, )?)+)", words):
        view_of(path, shape, **eval(f"dict({axes})"))
    assert words.count("_axis=") >= 4
    if always:
        with pytest.raises(ValueError, match="does not tell"):
            view_of(path, shape, directed=False)
    else:
        view_of(path, shape, directed=False)


def test_conv_view_multiplies_like_the_layer():
    conv = linen.Conv(5, (2, 3), padding="VALID")
    x = jax.random.normal(jax.random.key(0), (1, 2, 3, 4))
    params = conv.init(jax.random.key(1), x)["params"]
    matrix = view_of("Conv_0/kernel", params["kernel"].shape).matrix(params["kernel"])
    np.testing.assert_allclose(x.reshape(1, -1) @ matrix, conv.apply({"params": params}, x)[0, 0],
                               atol=1e-5)  # fmt: skip


@pytest.mark.parametrize(
    "in_axis,out_axis,batch_axis", [(1, 0, 2), ((2, 0), 1, ()), (-3, (-1, 1), None)]
)
def test_given_axes(in_axis, out_axis, batch_axis):
    shape = (2, 3, 4)
    leaf = np.arange(24).reshape(shape)
    view = view_of("w", shape, in_axis, out_axis, batch_axis)

    def listed(axes):
        axes = () if axes is None else axes
        return [a % 3 for a in (axes if isinstance(axes, tuple) else (axes,))]

    order = listed(batch_axis) + listed(in_axis) + listed(out_axis)
    expected = leaf.transpose(order).reshape(*view.batch_shape, *view.matrix_shape)
    np.testing.assert_array_equal(view.matrix(jnp.asarray(leaf)), expected)
    np.testing.assert_array_equal(view.leaf(jnp.asarray(expected)), leaf)


def test_what_no_axis_names_is_a_receptive_field():
    view = view_of("w", (3, 3, 8, 4), in_axis=-2)
    assert (view.batch, view.inputs, view.outputs) == ((), (0, 1, 2), (3,))
    assert view_of("w", (5, 3, 8, 4), batch_axis=0).matrix_shape == (24, 4)


def test_text_has_the_stack_and_the_matrix():
    assert str(view_of("layers/kernel", (3, 6, 4), batch_axis=0)) == "3 x (6, 4)"


@pytest.mark.parametrize(
    "shape,axes,words",
    [
        ((), {}, ["scalar", "'w'"]),
        ((2, 3), {"in_axis": 2}, ["(2, 3)", "no axis 2"]),
        ((2, 3), {"in_axis": -3}, ["no axis -3"]),
        ((2, 3), {"in_axis": -1}, ["named twice", "in_axis=-1"]),
        ((2, 3, 4), {"batch_axis": 1}, ["named twice", "batch_axis=1"]),
        ((5,), {"out_axis": 0}, ["(5,)", "no axis -2"]),
    ],
)
def test_errors(shape, axes, words):
    with pytest.raises(ValueError) as error:
        view_of("w", shape, **axes)
    assert all(word in str(error.value) for word in words)
