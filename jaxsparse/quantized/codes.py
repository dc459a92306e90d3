"""Weights that another library quantized: their codes packed, their scales left to the program."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxsparse.packed.packing import pack_params
from jaxsparse.patterns.rules import Rule
from jaxsparse.trees import Tree, leaves_by_path, near_misses, replace_by_path

CODES = "/qvalue"  # what qwix calls the codes of an array
_BOXES = ("/array",)  # what it puts around some of them


def pack_codes(params: Tree, masks: Tree, rules: Sequence[Rule]) -> Tree:
    """Packs the int8 codes of a model that qwix quantized.

    Rules and masks are those of the model before: `up/kernel` is meant where the quantized tree
    has `up/kernel/array/qvalue`. Scales stay where they are, for the program multiplies by them:
    `sparsify` runs it on what comes out, and gives every bit of what it gave.

    Args:
      params: as `qwix.quantize_params` and quantized models have them.
      masks: as in `pack_params`.
      rules: those that the model was pruned by.

    Returns:
      The tree with a packed weight, int8 values without scales, in the place of every such code.

    Raises:
      ValueError: a rule that means no codes of int8, codes that are not 0 where a mask is False,
        or that have a zero point: a zero of theirs is another code. The path is quoted.

    Example:
      >>> import jaxsparse as js
      >>> params = {"up": {"qvalue": jnp.eye(8, dtype=jnp.int8), "scale": jnp.ones((1, 8))}}
      >>> pack_codes(params, {}, [js.Rule("up", js.Block(4, 4))])["up"]["qvalue"]
      BlockSparse[4x4, 50.0%](shape=(8, 8), int8)
    """
    leaves = leaves_by_path(params)
    codes: dict[str, str] = {}
    for path, leaf in leaves.items():
        if path.endswith(CODES) and getattr(leaf, "dtype", None) == jnp.int8:
            codes[_weight_of(path)] = path
    weights = {weight: leaves[path] for weight, path in codes.items()}
    masks = leaves_by_path(masks)
    for weight, mask in masks.items():
        if weight not in codes:
            raise ValueError(
                f"pack_codes: a mask for {weight!r}, which has no int8 codes; "
                f"{near_misses(weight, codes)}"
            )
        _check_zeros(weight, leaves[codes[weight]], mask)
    packed = pack_params(weights, masks, rules)
    new = {}
    for weight, path in codes.items():
        if packed[weight] is weights[weight]:
            continue
        if path.removesuffix(CODES) + "/zero_point" in leaves:
            raise ValueError(
                f"pack_codes: the codes of {weight!r} of shape {weights[weight].shape} have a zero "
                "point, so that its zeros are other codes; symmetric ones (absmax) would work"
            )
        new[path] = packed[weight]
    return replace_by_path(params, new)


def _weight_of(path: str) -> str:
    path = path.removesuffix(CODES)
    for box in _BOXES:
        path = path.removesuffix(box)
    return path


def _check_zeros(weight: str, codes: Any, mask: Any) -> None:
    codes, mask = np.asarray(codes), np.asarray(mask)
    if codes.shape == mask.shape and (wrong := (codes != 0) & ~mask).any():
        place = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(
            f"pack_codes: {weight!r} of shape {codes.shape} has code {codes[place]} at {place}, "
            "which its mask leaves out; weights masked before they are quantized would work"
        )
