"""Small models, as functions of plain trees, whose costs are known."""

import jax
import jax.numpy as jnp

# MobileNetV1: what each pointwise convolution ends in, and the stride before it.
POINTWISE = ((64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5,
             (1024, 2), (1024, 1))  # fmt: skip


def convolved(x, kernel, stride=1, groups=1):
    """A convolution as flax has it."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), "SAME", feature_group_count=groups,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )  # fmt: skip


def mobilenet_params(width=32, pointwise=POINTWISE, classes=1000):
    """Shapes of MobileNetV1's parameters."""
    shapes = {"conv": {"kernel": (3, 3, 3, width), "scale": (width,)}}
    for i, (out, _) in enumerate(pointwise):
        shapes[f"depthwise{i}"] = {"kernel": (3, 3, 1, width), "scale": (width,)}
        shapes[f"pointwise{i}"] = {"kernel": (1, 1, width, out), "scale": (out,)}
        width = out
    shapes["classifier"] = {"kernel": (width, classes), "bias": (classes,)}
    return {
        layer: {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in leaves.items()}
        for layer, leaves in shapes.items()
    }


def mobilenet(params, x, pointwise=POINTWISE):
    """MobileNetV1 of images (batch, height, width, 3); logits."""
    x = jax.nn.relu(convolved(x, params["conv"]["kernel"], 2) * params["conv"]["scale"])
    for i, (_, stride) in enumerate(pointwise):
        layer = params[f"depthwise{i}"]
        x = convolved(x, layer["kernel"], stride, layer["kernel"].shape[-1])
        x = jax.nn.relu(x * layer["scale"])
        layer = params[f"pointwise{i}"]
        x = jax.nn.relu(convolved(x, layer["kernel"]) * layer["scale"])
    x = jnp.mean(x, (1, 2))
    return x @ params["classifier"]["kernel"] + params["classifier"]["bias"]
