"""Which layers of a model a configuration sparsifies, and the rules of their leaves."""

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

from jaxsparse.patterns.rules import Rule, describe
from jaxsparse.patterns.views import view_of
from jaxsparse.recipes.configuration import RecipeError
from jaxsparse.recipes.scopes import among, layer_of, read_scopes
from jaxsparse.recipes.structures import Structure, read_structure
from jaxsparse.trees import Tree, leaves_by_path, near_misses

ENTRIES = "sparse_structure_by_scopes"

Shapes = Mapping[str, tuple[int, ...]]


@dataclasses.dataclass(frozen=True)
class Layer:
    """A layer that gets sparse.

    Attributes:
      path: of the layer, without the name of a leaf.
      structure: the entry of the configuration that it goes by, in words.
      regularization: its factor.
      leaves: paths of its kernel and, where it has one, its bias.
      rules: of these.
    """

    path: str
    structure: str
    regularization: float
    leaves: tuple[str, ...]
    rules: tuple[Rule, ...]


def layers_of(section: Mapping[str, Any], params: Tree, factor: float) -> tuple[Layer, ...]:
    """Every layer that gets sparse, in the order of the tree.

    Raises:
      RecipeError: on scopes and entries that do not fit the parameters, or each other.
    """
    leaves = {path: describe(leaf) for path, leaf in leaves_by_path(params).items()}
    shapes = {path: leaf.shape for path, leaf in leaves.items() if not isinstance(leaf, str)}
    kernels = {layer_of(path): path for path in shapes if path.rpartition("/")[2] == "kernel"}
    if not kernels:
        raise RecipeError(
            f"no leaf is called 'kernel', and layers are told by that; {near_misses('', shapes)}. "
            "js.prune(rules, score=js.movement(), schedule=js.importance_threshold(begin=, end=)) "
            "takes leaves of any names"
        )
    linear = {layer: path for layer, path in kernels.items() if _is_linear(path, shapes[path])}
    taken = _taken_out(section, shapes)
    chosen: dict[str, Structure] = {}
    for structure in _structures(section):
        # Axes in an entry make a matrix of any kernel.
        among_these = kernels if structure.axes else linear
        for layer in _meant(structure, among_these, shapes, taken):
            if layer in chosen:
                raise RecipeError(
                    f"the leaf {kernels[layer]!r} of shape {shapes[kernels[layer]]} is matched by "
                    f"{chosen[layer].where} and by {structure.where}; scopes that leave it to one "
                    "of them would work"
                )
            chosen[layer] = structure
    default = Structure("mode 'fine', the default of what no entry takes", "fine")
    chosen = {layer: default for layer in linear if layer not in taken} | chosen
    if not chosen:
        left = f"the linear layers {_listed(linear)} are ignored, or no target" * bool(linear)
        raise RecipeError(
            "nothing is left to sparsify: "
            + (left or f"no leaf is a 'kernel' of rank 2; {near_misses('kernel', shapes)}")
        )
    return tuple(
        _layer(layer, kernel, chosen[layer], shapes, factor)
        for layer, kernel in kernels.items()
        if layer in chosen
    )


def _structures(section: Mapping[str, Any]) -> list[Structure]:
    listed = section.get(ENTRIES, [])
    if not isinstance(listed, list):
        raise RecipeError(f"{ENTRIES} is {listed!r}; a list of entries would work")
    return [read_structure(entry, f"{ENTRIES}[{i}]") for i, entry in enumerate(listed)]


def _taken_out(section: Mapping[str, Any], shapes: Shapes) -> set[str]:
    """The layers that are ignored, or are no target where there are targets.

    An empty list ignores none; of targets it would leave nothing, and is refused.
    """
    layers, taken = {layer_of(path) for path in shapes}, set()
    if section.get("ignored_scopes") not in (None, []):
        scopes = read_scopes(section["ignored_scopes"], "ignored_scopes")
        taken = among(scopes, layers, "ignored_scopes")
    if section.get("target_scopes") is not None:
        scopes = read_scopes(section["target_scopes"], "target_scopes")
        taken |= layers - among(scopes, layers, "target_scopes")
    return taken


def _meant(
    structure: Structure, layers: Mapping[str, str], shapes: Shapes, taken: set[str]
) -> set[str]:
    """The layers that an entry is for; a RecipeError where a scope of it is for none."""
    everything, meant = {layer_of(path) for path in shapes}, set()
    for scope in structure.scopes:
        found = among([scope], everything, structure.where)
        if not found & layers.keys():
            others = [f"{p} {shape}" for p, shape in shapes.items() if layer_of(p) in found]
            raise RecipeError(
                f"{structure.where}: the scope {scope!r} matches no linear layer, but "
                f"{_listed(others)}; one with a 'kernel' of rank 2 would work, so would in_axis "
                "and out_axis in the entry"
            )
        if not found & layers.keys() - taken:
            raise RecipeError(
                f"{structure.where}: the scope {scope!r} matches {_listed(found)}, which "
                "ignored_scopes, or the target_scopes of the whole, leave out; dropping either "
                "would work"
            )
        meant |= found & layers.keys() - taken
    return meant


def _layer(layer: str, kernel: str, structure: Structure, shapes: Shapes, factor: float) -> Layer:
    rule, view = structure.kernel_rule(kernel, shapes[kernel])
    rules, bias = {kernel: rule}, f"{kernel.removesuffix('kernel')}bias"
    if bias in shapes:
        rules[bias] = structure.bias_rule(bias, shapes[bias], view)
    own = structure.regularization
    used = factor if own is None else own
    return Layer(layer, structure.where, used, tuple(rules), tuple(rules.values()))


def _is_linear(path: str, shape: tuple[int, ...]) -> bool:
    """Whether a kernel is a matrix, or that of an attention by its name."""
    if len(shape) <= 2:
        return len(shape) == 2
    if "conv" in layer_of(path).rpartition("/")[2].lower():
        return False
    try:
        view_of(path, shape)
    except ValueError:
        return False
    return True


def _listed(names: Iterable[str], limit: int = 3) -> str:
    found = sorted(names)
    shown = ", ".join(map(repr, found[:limit]))
    return shown + (f" and {len(found) - limit} more" if len(found) > limit else "")
