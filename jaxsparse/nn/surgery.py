"""Surgery: exchange the dense layers that rules name for packed ones."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import jax
from flax import nnx

from jaxsparse.comparing import compare, pure
from jaxsparse.nn.exchange import aliases, exchange, nodes_by_path, replicated_as
from jaxsparse.nn.structures import normal_values
from jaxsparse.packed.base import Packed, is_packed
from jaxsparse.packed.packing import pack_params
from jaxsparse.patterns.rules import Rule, check_rules, describe, resolve
from jaxsparse.pruning import scores
from jaxsparse.pruning.prune import compute_masks
from jaxsparse.text import columned
from jaxsparse.trees import leaves_by_path, replace_by_path

CURE = "pack_params and sparsify would work"
ADVICE = (
    f"the model's own code uses the kernel otherwise than by calling the layer; {CURE}",
    CURE,
)


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
      before, after: parameters of the whole model, counted before and after; what
        is used in several places counts once.
    """

    replaced: tuple[Replacement, ...]
    before: int
    after: int

    def __str__(self) -> str:
        rows = [(r.path, r.pattern, f"{r.density:.1%}", r.before, r.after) for r in self.replaced]
        rows = [("weight", "pattern", "density", "before", "after"), *rows]
        rows.append(("whole model", "", f"{self.after / self.before:.1%}", self.before, self.after))
        return "\n".join(columned(rows, {0, 1}))


def replace(
    model: Any,
    rules: Sequence[Rule],
    *,
    keep: Literal["best", "none"] = "best",
    sparsity: float | None = None,
    seed: int = 0,
    inputs: Sequence[Any] | None = None,
) -> tuple[Any, Surgery]:
    """Packs the weights that rules name, each by its own pattern and density.

    What is exchanged does what it did, with the masked weights: a layer that does more
    than a `SparseLinear` can is an error that names it. Layers and kernels that are
    used in several places stay shared. Every new layer is run against the masked one on
    random numbers, and with `inputs` the whole model against the masked model.

    Args:
      model: an `nnx.Module`, of which every `nnx.Linear` named becomes a
        `SparseLinear`; or a tree of parameters (of linen, Haiku, Equinox or plain JAX),
        of which every leaf named becomes a packed weight for `sparsify`.
      rules: paths of kernels, such as r"encoder/.*/mlp/.*/kernel".
      keep: "best" keeps the trained weights with the largest magnitudes; "none"
        starts from scratch, with random values at random places.
      sparsity: for rules which name none.
      seed: for starting from scratch.
      inputs: (nnx) example inputs: the new model must give what the masked one gives,
        both called as model(*inputs). A model whose own code reads a kernel, rather than
        calls its layer, is found by this alone.

    Returns:
      The new model, the old one unchanged; and the parameters before and after.

    Raises:
      ValueError: a rule matches nothing, or (nnx) something else than the kernel of an
        `nnx.Linear`, not of a subclass; a layer has an option or metadata of its kernel
        that a packed layer lacks (`dot_general`, `precision`, sharding names); a shared
        kernel or leaf would be torn apart; the new model computes something else.

    Example:
      >>> from flax import nnx
      >>> import jax.numpy as jnp, jaxsparse as js
      >>> model = nnx.Sequential(nnx.Linear(64, 64, rngs=nnx.Rngs(0)))
      >>> rules = [js.Rule("layers/0/kernel", js.Block(4, 16), sparsity=0.75)]
      >>> model, surgery = js.nn.replace(model, rules, inputs=[jnp.ones((2, 64))])
      >>> surgery.before, surgery.after
      (4160, 1088)
    """
    if keep not in ("best", "none"):
        raise ValueError(f"keep={keep!r} is neither 'best' nor 'none'.")
    rules = check_rules(rules)
    is_module = isinstance(model, nnx.Module)
    if inputs is not None and not is_module:
        raise ValueError("inputs are for an nnx.Module; run sparsify(function) on a tree.")
    params = nnx.state(model, nnx.Param) if is_module else model
    if is_module:
        _check_first_paths(model, rules, params)
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
    if is_module:
        new, exchanged = exchange(model, packed)
        _compare(model, new, packed, exchanged, inputs)
        learned = nnx.state(new, nnx.Param)
    else:
        packed = _tied(leaves_by_path(params), packed)
        learned = new = replace_by_path(params, packed)
    specs, leaves = resolve(rules, params), leaves_by_path(params)
    replaced = tuple(
        Replacement(path, str(specs[path].pattern), p.density, leaves[path].size, p.values.size)
        for path, p in packed.items()
    )
    return new, Surgery(replaced, _count(params), _count(learned))


def _count(params) -> int:
    """Numbers to learn in a tree; a leaf that is there twice counts once."""
    leaves = {id(leaf): leaf for leaf in leaves_by_path(params, is_packed).values()}
    arrays = [leaf.values if is_packed(leaf) else leaf for leaf in leaves.values()]
    return sum(array.size for array in arrays if hasattr(array, "size"))


def _check_first_paths(model, rules, params):
    """Raises for a rule that knows a shared weight by another path than its first."""
    leaves, others = leaves_by_path(params), None
    for rule in rules:
        if any(rule.matches(path, describe(leaf)) for path, leaf in leaves.items()):
            continue
        others = aliases(model) if others is None else others
        for other, path in others.items():
            if path in leaves and rule.matches(other, describe(leaves[path])):
                raise ValueError(
                    f"rule {rule.label} matches no leaf but {other!r}, which is shared: a rule "
                    f"for its first path, {path!r}, would work"
                )


def _tied(leaves: Mapping[str, Any], packed: Mapping[str, Packed]) -> dict[str, Packed]:
    """One packed weight for leaves that are one and the same array.

    Raises:
      ValueError: some of them would be packed, or packed otherwise, and some not.
    """
    paths: dict[int, list[str]] = {}
    for path, leaf in leaves.items():
        paths.setdefault(id(leaf), []).append(path)
    one = {}
    for path, weight in packed.items():
        first, *others = paths[id(leaves[path])]
        kinds = {jax.tree.structure(packed.get(p)) for p in (first, *others)}
        if len(kinds) > 1:
            raise ValueError(
                f"{first!r} is the same array as {' and '.join(map(repr, others))}: rules that "
                "pack all of them alike would work, so would a copy of each"
            )
        one[path] = packed[first] if others else weight
    return one


def _compare(model, new, packed, exchanged, inputs):
    """Runs new layers, and given inputs the model, against those with the masked weights."""
    masked = nnx.clone(model)
    old_nodes, new_nodes = nodes_by_path(masked), nodes_by_path(new)
    for path, weight in packed.items():
        kernel = old_nodes[path]
        kernel[...] = replicated_as(weight.todense(), kernel[...])
    for where, path in exchanged.items():
        layer = new_nodes[where]
        x = jax.random.normal(jax.random.key(0), (4, layer.in_features), packed[path].dtype)
        what = f"the new layer {where!r}"
        compare(layer, old_nodes[where], [x], what, ADVICE, [_dtype(layer)])
    if inputs is not None:
        dtypes = [_dtype(new_nodes[where]) for where in exchanged]
        inputs = inputs if isinstance(inputs, Sequence) else [inputs]
        compare(pure(new), pure(masked), inputs, "the new model", ADVICE, dtypes)


def _dtype(layer):
    return layer.dtype or layer.kernel.dtype


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
