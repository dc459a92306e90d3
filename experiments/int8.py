"""A trained model in INT8: every linear layer that rules name, on calibrated codes."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

import jaxsparse as js
from jaxsparse.calibration import Reducer


class Int8(NamedTuple):
    """A model whose layers multiply in integers.

    Attributes:
      params: with packed int8 weights.
      codes: by path of the weight, of what it meets.
      forward: called as forward(params, *inputs); not jitted.
    """

    params: Any
    codes: dict[str, js.quantized.Affine]
    forward: Callable[..., Any]


def quantize(
    forward: Callable[..., Any],
    params: Any,
    batches: Iterable[tuple[Any, ...]],
    rules: Sequence[js.Rule],
    reducer: Reducer | None = None,
) -> Int8:
    """Post-training static quantization: u8 activations, int8 weights with a scale a column.

    Args:
      forward: called as forward(params, *batch).
      params: masked by zeros; blocks of nothing else are not stored.
      batches: to calibrate with.
      rules: the layers, and how their weights are packed.
      reducer: as in `js.quantized.calibrate`.
    """
    codes = js.quantized.calibrate(forward, params, batches, rules, reducer=reducer)
    packed = js.pack_params(params, {}, rules, dtype=jnp.int8)
    run = js.quantized.sparsify(forward, codes, on_dense="error", on_float="error")
    return Int8(packed, codes, run)
