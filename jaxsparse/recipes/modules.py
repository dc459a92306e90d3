"""Names and classes of modules, as recipes of torch have them, of the layers of a tree.

A layer is what a leaf `kernel` or `embedding` belongs to. `layers/0/attention/query` is known as
`layers.0.attention.query`, and, with parts as transformers calls them, as
`layers.0.self_attn.q_proj` and `model.layers.0.self_attn.q_proj`.
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping, Sequence

from jaxsparse.patterns.rules import describe
from jaxsparse.recipes.configuration import RecipeError
from jaxsparse.recipes.scopes import layer_of
from jaxsparse.trees import Tree, leaves_by_path, near_misses

EXPRESSION = "re:"
# What transformers calls the parts of a decoder.
_PARTS = {
    "attention": "self_attn",
    "query": "q_proj",
    "key": "k_proj",
    "value": "v_proj",
    "output": "o_proj",
    "out": "o_proj",
    "feed_forward": "mlp",
    "gate": "gate_proj",
    "up": "up_proj",
    "down": "down_proj",
    "head": "lm_head",
    "embedding": "embed_tokens",
}
_HEAD = "lm_head"


@dataclasses.dataclass(frozen=True)
class Module:
    """A layer as a recipe sees it.

    Attributes:
      path: of its kernel or table.
      kind: the class in torch: Linear, Conv1d, Conv2d, Conv3d or Embedding.
      names: dotted, each of which it is known by.
    """

    path: str
    kind: str
    names: tuple[str, ...]

    def matches(self, pattern: str, *, inside: bool = False) -> bool:
        """Whether a name, an `re:` that matches from its start on, or a class means the layer.

        Args:
          pattern: as in the recipe.
          inside: whether a module that the layer lies in is enough.
        """
        if not pattern.startswith(EXPRESSION) and pattern == self.kind:
            return True
        for name in self.names:
            parts = name.split(".")
            wholes = [".".join(parts[:n]) for n in range(1, len(parts))] if inside else []
            if any(_means(pattern, whole) for whole in (name, *wholes)):
                return True
        return False


def modules_of(params: Tree, names: Mapping[str, str] | None = None) -> list[Module]:
    """The layers of a tree.

    A kernel is a Linear unless "conv" is in its layer's name, a Conv by its rank then. A table
    of embeddings stands for `lm_head` too if no kernel ends in its vocabulary: it is the head.

    Args:
      params: parameters, arrays or shapes.
      names: by layer, such as "blocks/0/q", the one name that it has in the recipe's model.

    Raises:
      RecipeError: a tree without kernels, and `names` of layers that are not there.
    """
    leaves = {path: describe(leaf) for path, leaf in leaves_by_path(params).items()}
    shapes = {path: leaf.shape for path, leaf in leaves.items() if not isinstance(leaf, str)}
    kernels = [path for path in shapes if path.rpartition("/")[2] == "kernel"]
    tables = [path for path in shapes if path.rpartition("/")[2] == "embedding"]
    if not kernels:
        raise RecipeError(
            f"no leaf is called 'kernel', and layers are told by that; {near_misses('', shapes)}. "
            "js.calibration.prune_oneshot takes leaves of any names"
        )
    own = dict(names or {})
    layers = {layer_of(path) for path in (*kernels, *tables)}
    for layer in own:
        if layer not in layers:
            raise RecipeError(f"names: {layer!r} is no layer; {near_misses(layer, layers)}")
    known = {path: _names(layer_of(path), own) for path in (*kernels, *tables)}
    has_head = any(_HEAD in known[path] for path in kernels)
    found = [Module(path, _kind(path, shapes[path]), known[path]) for path in kernels]
    for path in tables:
        vocabulary = shapes[path][:1]
        tied = not has_head and all(shapes[kernel][-1:] != vocabulary for kernel in kernels)
        found.append(Module(path, "Embedding", known[path] + (_HEAD,) * tied))
    return found


def meant(
    patterns: Iterable[str], modules: Sequence[Module], where: str, *, inside: bool = False
) -> list[Module]:
    """The modules that at least one pattern means, in the order of the tree.

    Raises:
      RecipeError: on a pattern that means none: what it was to leave out would be pruned.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = {module.path for module in modules if module.matches(pattern, inside=inside)}
        if not found:
            known = {name for module in modules for name in (*module.names, module.kind)}
            name = pattern.removeprefix(EXPRESSION)
            raise RecipeError(
                f"{where}: {pattern!r} means no layer; {near_misses(name, known)}. "
                "names={'path/of/layer': 'its.name.in.the.recipe'} would say how layers are "
                "called there"
            )
        chosen |= found
    return [module for module in modules if module.path in chosen]


def check_pattern(pattern: str, where: str) -> None:
    """Raises RecipeError on an expression that is none."""
    try:
        _means(pattern, "")
    except re.error as error:
        raise RecipeError(f"{where}: {pattern!r} is no regular expression: {error}") from error


def _means(pattern: str, name: str) -> bool:
    if pattern.startswith(EXPRESSION):
        return re.match(pattern.removeprefix(EXPRESSION), name) is not None
    return pattern == name


def _names(layer: str, own: Mapping[str, str]) -> tuple[str, ...]:
    if layer in own:
        return (own[layer],)
    parts = [part for part in layer.split("/") if part]
    plain = ".".join(parts)
    theirs = ".".join(_PARTS.get(part, part) for part in parts)
    inner = () if theirs == _HEAD else (f"model.{theirs}",)
    return tuple(dict.fromkeys((plain, theirs, *inner)))


def _kind(path: str, shape: tuple[int, ...]) -> str:
    if "conv" in layer_of(path).rpartition("/")[2].lower() and 3 <= len(shape) <= 5:
        return f"Conv{len(shape) - 2}d"
    return "Linear"
