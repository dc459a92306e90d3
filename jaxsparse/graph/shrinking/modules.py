"""`shrink_model`: a smaller `nnx` model, its modules resized to what is left of them."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxsparse.comparing import compare, pure
from jaxsparse.evaluation import active
from jaxsparse.graph.shrinking.choice import Resolve
from jaxsparse.graph.shrinking.shrink import shrink
from jaxsparse.graph.shrinking.shrink_report import ShrinkReport
from jaxsparse.trees import Tree

Axes = tuple[np.ndarray, ...]

CURE = "the function that shrink(...) returns would work"
ADVICE = (
    f"its own code insists on sizes that have changed; {CURE}",
    "its code counts channels that were removed (a mean over channels, the scale of attention); "
    + CURE,
)


def shrink_model(
    model: nnx.Module,
    masks: Tree,
    *inputs: Any,
    resolve: Resolve = "union",
    blocks: Mapping[str, tuple[int, int]] | None = None,
    keep: Sequence[str] = (),
) -> tuple[nnx.Module, ShrinkReport]:
    """Removes what masks leave empty from an `nnx` model: see `shrink`.

    Every module of Flax in it gets the sizes of its smaller weights (`in_features`,
    `num_heads`, `num_groups` and so on). The model's own code then runs at those sizes,
    which is not always what the trace did: a layer norm would divide by fewer channels,
    and attention would scale by a smaller head_dim. So where the inputs are arrays the
    new model is run against the rewritten trace, and where they differ that is an error.
    `shrink` itself has no such limit.

    Args:
      model: in evaluation mode; called as model(*inputs). It is left as it is.
      masks, resolve, blocks, keep: as in `shrink`.
      inputs: arrays; with shapes only, no more than that the new model runs is checked: one
        whose heads were cut, but not its `head_dim`, might run on heads of other channels.

    Returns:
      The smaller model, and the report of `shrink`.

    Raises:
      TypeError: if it is no `nnx.Module`.
      ValueError: if it is not in evaluation mode, and if the smaller model does not run or computes
        something else.

    Example:
      >>> import jax.numpy as jnp
      >>> model = nnx.Sequential(
      ...     nnx.Linear(2, 8, rngs=nnx.Rngs(0)), nnx.relu, nnx.Linear(8, 3, rngs=nnx.Rngs(1))
      ... )
      >>> masks = {"layers/2/kernel": jnp.arange(8)[:, None] < jnp.full(3, 5)}
      >>> small, report = shrink_model(model, masks, jnp.ones((4, 2)))
      >>> small.layers[0].out_features, small.layers[2].in_features
      (5, 5)
    """
    if not isinstance(model, nnx.Module):
        raise TypeError(
            f"{type(model).__name__} is no nnx.Module; shrink(apply, params, masks, *inputs), with "
            "the model as a function of its parameters and inputs, would work"
        )
    if found := active(model):
        raise ValueError(
            f"{found}, and the smaller model would draw or average other numbers: model.eval() "
            "first would work, and so would shrink(...)"
        )
    graph, random, params = nnx.split(model, nnx.RngState, ...)

    def fn(params, *inputs):
        # A copy: what the model counts as it draws random numbers is not to be ours.
        return nnx.merge(graph, random, params, copy=True)(*inputs)

    smaller, run, report = shrink(
        fn, params, masks, *inputs, resolve=resolve, blocks=blocks, keep=keep
    )
    found = nnx.merge(graph, random, smaller)
    for path, module in nnx.iter_modules(found):
        prefix = "".join(f"{part}/" for part in path)
        kept = {
            name.removeprefix(prefix): axes
            for name, axes in report.kept.items()
            if name.startswith(prefix)
        }
        for kind, resize in _RESIZE.items():
            if isinstance(module, kind):
                resize(module, kept)
    run = jax.jit(functools.partial(run, smaller))
    compare(pure(found), run, inputs, "the smaller model", ADVICE)
    return found, report


# How each module of Flax names its sizes; `kept` has, by the path of a leaf in the
# module, the positions that are left on every axis.


def _linear(module, kept: Mapping[str, Axes]):
    module.in_features, module.out_features = module.kernel.shape


def _linear_general(module, kept: Mapping[str, Axes]):
    shape, outputs = module.kernel.shape, len(module.out_features)
    module.in_features = shape[-outputs - len(module.in_features) : -outputs]
    module.out_features = shape[-outputs:]


def _conv(module, kept: Mapping[str, Axes]):
    each = module.out_features // module.feature_group_count
    groups = len(np.unique(kept["kernel"][-1] // each))
    module.kernel_shape = module.kernel.shape
    module.feature_group_count = groups
    module.in_features = module.kernel.shape[-2] * groups
    module.out_features = module.kernel.shape[-1]


def _conv_transpose(module, kept: Mapping[str, Axes]):
    out, into = (-2, -1) if module.transpose_kernel else (-1, -2)
    module.kernel_shape = module.kernel.shape
    module.in_features, module.out_features = module.kernel.shape[into], module.kernel.shape[out]


def _einsum(module, kept: Mapping[str, Axes]):
    module.kernel_shape = module.kernel.shape
    if module.bias_shape is not None:
        module.bias_shape = module.bias.shape


def _embed(module, kept: Mapping[str, Axes]):
    module.num_embeddings, module.features = module.embedding.shape


def _norm(module, kept: Mapping[str, Axes]):
    for name in ("mean", "scale", "bias"):
        if name in kept:
            module.num_features = len(kept[name][0])


def _group_norm(module, kept: Mapping[str, Axes]):
    for name in ("scale", "bias"):
        if name in kept:
            left = kept[name][0]
            module.num_groups = len(np.unique(left // module.group_size))
            module.group_size = len(left) // module.num_groups
            return


def _lora(module, kept: Mapping[str, Axes]):
    module.in_features, module.out_features = module.lora_a.shape[0], module.lora_b.shape[1]


def _cell(module, kept: Mapping[str, Axes]):
    fused = hasattr(module, "dense_i")
    into, hidden = (module.dense_i, module.dense_h) if fused else (module.ii, module.hi)
    module.in_features, module.hidden_features = into.kernel.shape[0], hidden.kernel.shape[0]


def _attention(module, kept: Mapping[str, Axes]):
    module.in_features, module.num_heads, module.head_dim = module.query.kernel.shape
    module.in_kv_features, module.num_kv_heads, _ = module.key.kernel.shape
    module.qkv_features = module.num_heads * module.head_dim
    module.out_features = module.out.kernel.shape[-1]


_RESIZE: dict[type, Callable[[Any, Mapping[str, Axes]], None]] = {
    nnx.Linear: _linear,
    nnx.LinearGeneral: _linear_general,
    nnx.Conv: _conv,
    nnx.ConvTranspose: _conv_transpose,
    nnx.Einsum: _einsum,
    nnx.Embed: _embed,
    nnx.BatchNorm: _norm,
    nnx.LayerNorm: _norm,
    nnx.RMSNorm: _norm,
    nnx.InstanceNorm: _norm,
    nnx.GroupNorm: _group_norm,
    nnx.MultiHeadAttention: _attention,
    nnx.LoRA: _lora,
    nnx.SimpleCell: _cell,
    nnx.GRUCell: _cell,
    nnx.LSTMCell: _cell,
    nnx.OptimizedLSTMCell: _cell,
}
