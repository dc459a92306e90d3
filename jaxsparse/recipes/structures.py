"""How a layer is cut into groups: NNCF's modes as patterns of a kernel and its bias.

NNCF's weights are (out, in) and Flax's kernels (in, out), so `sparse_factors` change places,
and axis 0, a row of NNCF's, is an output of ours. A bias is cut along the outputs as its
kernel is, once for all of it where the kernel's groups span them.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from jaxsparse.patterns.base import Pattern, Unstructured
from jaxsparse.patterns.groups import Block, Channel
from jaxsparse.patterns.rules import Rule
from jaxsparse.patterns.views import View, view_of
from jaxsparse.recipes.configuration import RecipeError, check_keys, integer, number
from jaxsparse.recipes.scopes import layer_of, read_scopes

_MODES = {"fine": None, "block": "sparse_factors", "per_dim": "axis"}
_AXES = ("in_axis", "out_axis", "batch_axis")
FACTOR = "importance_regularization_factor"


@dataclasses.dataclass(frozen=True)
class Structure:
    """One entry of `sparse_structure_by_scopes`.

    Attributes:
      where: how messages name it.
      mode: "fine", "block" or "per_dim".
      scopes: which layers it is for; none is what no other entry takes.
      factors: (rows, columns) of a block on (out, in), and None in other modes.
      axis: 0 for rows of (out, in), 1 for columns, and None in other modes.
      regularization: the factor of its layers, None for that of the whole.
      axes: `in_axis`, `out_axis`, `batch_axis` of its kernels, as in `Rule`.
    """

    where: str
    mode: str
    scopes: tuple[str, ...] = ()
    factors: tuple[int, int] | None = None
    axis: int | None = None
    regularization: float | None = None
    axes: tuple[tuple[str, Any], ...] = ()

    def kernel_rule(self, path: str, shape: tuple[int, ...]) -> tuple[Rule, View]:
        """The rule of a kernel, and how the kernel is seen.

        Raises:
          RecipeError: if the groups do not fit the shape.
        """
        axes = dict(self.axes)
        try:
            view = view_of(path, shape, *(axes.get(name) for name in _AXES))
        except ValueError as error:
            raise RecipeError(f"{self.where}: {error}") from error
        inputs, outputs = view.matrix_shape
        if self.factors and (outputs % self.factors[0] or inputs % self.factors[1]):
            raise RecipeError(
                f"{self.where}: sparse_factors {list(self.factors)} do not divide {path!r} of "
                f"shape {shape}, which is (out, in) = ({outputs}, {inputs}); rows that divide "
                f"{outputs} and columns that divide {inputs} would work"
            )
        return Rule(re.escape(path), self._of_kernel(view), **axes), view

    def bias_rule(self, path: str, shape: tuple[int, ...], kernel: View) -> Rule:
        """The rule of the bias that goes with a kernel; its shape is (*batch, *outputs).

        Raises:
          RecipeError: on another shape.
        """
        outputs = tuple(kernel.shape[axis] for axis in kernel.outputs)
        if shape != kernel.batch_shape + outputs:
            raise RecipeError(
                f"{self.where}: the bias {path!r} has shape {shape}, and its kernel of shape "
                f"{kernel.shape}, seen as {kernel}, has outputs {kernel.batch_shape + outputs}; a "
                "bias of that shape would work, so would in_axis and out_axis in an entry for the "
                f"layer, or {layer_of(path)!r} in ignored_scopes"
            )
        batch = len(kernel.batch)
        axes = {
            "in_axis": (),
            "out_axis": tuple(range(batch, len(shape))),
            "batch_axis": tuple(range(batch)),
        }
        return Rule(re.escape(path), self._of_bias(kernel), **(axes if len(shape) > 1 else {}))

    def _of_kernel(self, view: View) -> Pattern:
        inputs, outputs = view.matrix_shape
        if self.mode == "fine":
            return Unstructured()
        if self.factors is not None:
            rows, columns = self.factors
            return Block(columns, rows)
        side, whole = (
            (view.outputs, Block(inputs, 1)) if self.axis == 0 else (view.inputs, Block(1, outputs))
        )
        return Channel(side[0] - len(view.shape)) if len(side) == 1 else whole

    def _of_bias(self, kernel: View) -> Pattern:
        if self.factors is not None:
            return Block(1, self.factors[0])
        return Block(1, kernel.matrix_shape[1]) if self.axis == 1 else Unstructured()


def read_structure(entry: Any, where: str) -> Structure:
    """An entry of `sparse_structure_by_scopes`, checked in itself.

    Beside NNCF's keys it may have a factor of its own, `importance_regularization_factor`, and
    `in_axis`, `out_axis`, `batch_axis` for kernels whose names do not tell them.

    Raises:
      RecipeError: on a missing, unknown or impossible key.
    """
    if not isinstance(entry, Mapping):
        raise RecipeError(f'{where} is {entry!r}; {{"mode": ..., "target_scopes": ...}} would work')
    mode = entry.get("mode")
    if not isinstance(mode, str) or mode not in _MODES:
        raise RecipeError(f"{where}.mode is {mode!r}; one of {', '.join(_MODES)} would work")
    label = f"{where} (mode {mode!r}, target_scopes {entry.get('target_scopes')!r})"
    own = _MODES[mode]
    for key in filter(None, _MODES.values()):
        if key in entry and key != own:
            raise RecipeError(f"{label}: {key} does not go with mode {mode!r}; drop it")
    check_keys(entry, ("mode", "target_scopes", "sparse_factors", "axis", FACTOR, *_AXES), label)
    for key in ("target_scopes", own):
        if key is not None and entry.get(key) is None:
            raise RecipeError(f"{label}: {key} is missing")
    factor = number(entry, FACTOR, label)
    if factor is not None and factor < 0:
        raise RecipeError(f"{label}: {FACTOR} is {factor}; a number from 0 on would work")
    return Structure(
        label,
        mode,
        read_scopes(entry["target_scopes"], f"{label}: target_scopes"),
        _block(entry["sparse_factors"], label) if mode == "block" else None,
        _axis(entry["axis"], label) if mode == "per_dim" else None,
        factor,
        tuple((name, _side(entry[name], f"{label}: {name}")) for name in _AXES if name in entry),
    )


def _block(value: Any, label: str) -> tuple[int, int]:
    given = value if isinstance(value, list | tuple) else ()
    sizes = [size for size in map(integer, given) if size is not None and size > 0]
    if len(given) != 2 or len(sizes) != 2:
        raise RecipeError(
            f"{label}: sparse_factors is {value!r}; two integers from 1 on, [rows, columns] of a "
            "block on (out, in), would work"
        )
    return sizes[0], sizes[1]


def _axis(value: Any, label: str) -> int:
    axis = integer(value)
    if axis is None or axis not in (0, 1):
        raise RecipeError(
            f"{label}: axis is {value!r}; 0, the rows of (out, in), or 1, its columns, would work"
        )
    return axis


def _side(value: Any, label: str) -> int | tuple[int, ...]:
    given = value if isinstance(value, list | tuple) else [value]
    axes = tuple(axis for axis in map(integer, given) if axis is not None)
    if len(axes) != len(given):
        raise RecipeError(f"{label} is {value!r}; an axis or a list of axes would work")
    return axes
