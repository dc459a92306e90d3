"""Surgery: exchange the dense layers that rules name for packed ones."""

import dataclasses
import re
from collections.abc import Sequence
from typing import Any, Literal

import jax
from flax import nnx

from jaxsparse import scores
from jaxsparse.choosing import compute_masks
from jaxsparse.nn.nnx import SparseLinear
from jaxsparse.nn.structures import normal_values
from jaxsparse.packed import is_packed
from jaxsparse.packing import pack_params
from jaxsparse.rules import Rule, check_rules, resolve
from jaxsparse.trees import leaves_by_path, near_misses, replace_by_path


@dataclasses.dataclass(frozen=True)
class Replacement:
    """One weight that became a packed one.

    Attributes:
      path: its slash path.
      pattern: what it is stored by.
      density: fraction of it that is stored.
      before, after: parameters of it before and after.
    """

    path: str
    pattern: str
    density: float
    before: int
    after: int


@dataclasses.dataclass(frozen=True)
class Surgery:
    """What `replace` did; `str(surgery)` is a table.

    Attributes:
      replaced: the weights that became packed.
      before, after: parameters of the whole model before and after.
    """

    replaced: tuple[Replacement, ...]
    before: int
    after: int

    def __str__(self) -> str:
        rows = [(r.path, r.pattern, f"{r.density:.1%}", r.before, r.after) for r in self.replaced]
        rows = [("weight", "pattern", "density", "before", "after"), *rows]
        rows.append(("whole model", "", f"{self.after / self.before:.1%}", self.before, self.after))
        widths = [max(len(str(row[i])) for row in rows) for i in range(5)]
        return "\n".join(
            "  ".join(
                str(cell).ljust(width) if i < 2 else str(cell).rjust(width)
                for i, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )


def replace(
    model: Any,
    rules: Sequence[Rule],
    *,
    keep: Literal["best", "none"] = "best",
    sparsity: float | None = None,
    seed: int = 0,
) -> tuple[Any, Surgery]:
    """Packs the weights that rules name, each by its own pattern and density.

    Args:
      model: an `nnx.Module`, of which every `nnx.Linear` named becomes a
        `SparseLinear`; or a tree of parameters (of linen, Haiku or plain JAX), of
        which every leaf named becomes a packed weight for `sparsify`.
      rules: paths of kernels, such as r"encoder/.*/mlp/.*/kernel".
      keep: "best" keeps the trained weights with the largest magnitudes; "none"
        starts from scratch, with random values at random places.
      sparsity: for rules which name none.
      seed: for starting from scratch.

    Returns:
      The new model, the old one unchanged; and the parameters before and after.

    Raises:
      ValueError: a rule matches nothing, or (nnx) something else than the
        kernel of an `nnx.Linear`.

    Example:
      >>> from flax import nnx
      >>> import jaxsparse as js
      >>> model = nnx.Sequential(nnx.Linear(64, 64, rngs=nnx.Rngs(0)))
      >>> rules = [js.Rule("layers/0/kernel", js.Block(4, 16), sparsity=0.75)]
      >>> model, surgery = js.nn.replace(model, rules)
      >>> surgery.before, surgery.after
      (4160, 1088)
    """
    if keep not in ("best", "none"):
        raise ValueError(f"keep={keep!r} is neither 'best' nor 'none'.")
    rules = check_rules(rules)
    is_module = isinstance(model, nnx.Module)
    params = nnx.state(model, nnx.Param) if is_module else model
    score = scores.magnitude() if keep == "best" else scores.random(seed)
    masks = compute_masks(params, rules, sparsity=sparsity, score=score)
    leaves = leaves_by_path(pack_params(params, masks, rules), is_packed)
    packed = {path: leaf for path, leaf in leaves.items() if is_packed(leaf)}
    if keep == "none":
        keys = jax.random.split(jax.random.key(seed), len(packed))
        packed = {
            path: p.with_values(_fresh(key, p))
            for key, (path, p) in zip(keys, packed.items(), strict=True)
        }
    new = _with_layers(model, packed) if is_module else replace_by_path(params, packed)
    specs, leaves = resolve(rules, params), leaves_by_path(params)
    replaced = tuple(
        Replacement(path, str(specs[path].pattern), p.density, leaves[path].size, p.values.size)
        for path, p in packed.items()
    )
    before = sum(leaf.size for leaf in leaves.values())
    return new, Surgery(replaced, before, before + sum(r.after - r.before for r in replaced))


def _fresh(key, packed):
    draw = normal_values
    for size in reversed(packed.batch_shape):
        draw = _stacked(draw, size)
    return draw(key, packed.structure, packed.values.dtype)


def _stacked(draw, size):
    def draw_all(key, structure, dtype):
        keys = jax.random.split(key, size)
        return jax.vmap(lambda key, structure: draw(key, structure, dtype))(keys, structure)

    return draw_all


def _with_layers(model, packed):
    model = nnx.clone(model)
    layers = {
        "/".join(map(str, path)): layer
        for path, layer in nnx.iter_modules(model)
        if isinstance(layer, nnx.Linear)
    }
    for path, weight in packed.items():
        where = re.sub(r"(^|/)kernel$", "", path)
        if where not in layers or where == path:
            raise ValueError(
                f"{path!r} is not the kernel of an nnx.Linear; "
                f"{near_misses(path, [f'{name}/kernel' for name in layers])}; for other layers "
                "pack_params and sparsify work."
            )
        old = layers[where]
        shape = old.in_features, old.out_features
        options = {"dtype": old.dtype, "param_dtype": old.param_dtype, "rngs": nnx.Rngs(0)}
        new = SparseLinear(*shape, weight, use_bias=old.bias is not None, **options)
        if old.bias is not None and new.bias is not None:
            new.bias[...] = old.bias[...]
        if not where:
            return new
        *parents, name = where.split("/")
        holder = model
        for part in parents:
            holder = _child(holder, part)
        if hasattr(holder, name):
            setattr(holder, name, new)
        else:
            holder[int(name) if name.isdigit() else name] = new
    return model


def _child(holder, name):
    if hasattr(holder, name):
        return getattr(holder, name)
    return holder[int(name) if name.isdigit() else name]
