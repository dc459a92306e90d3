"""`plot`: the channel graph as a picture or as text."""

import pathlib
from collections.abc import Collection, Sequence

from jaxsparse.graph.analysis.channels import Channels
from jaxsparse.graph.picture.drawing import Box, Frame, draw
from jaxsparse.graph.picture.nodes import ENDS, Kind, Node
from jaxsparse.graph.picture.repeats import Block, Picture, picture
from jaxsparse.trees import near_misses

COLORS: dict[Kind, tuple[str, str, str]] = {
    "matmul": ("#b7e1a1", "green", "product or convolution whose channels move or are pruned"),
    "takes": ("#ffc98b", "orange", "has parameters of the channels, permuted with them"),
    "passes": ("#fff3a3", "yellow", "passes the channels on"),
    "stops": ("#f4a6a0", "red", "stops them, for the reason given"),
    "other": ("#e4e4e4", "grey", "holds no channels that may move"),
}
WIDEST, WIDEST_NAME = 34, 24  # letters of a line of a label
# Primitives that say little of what a module does.
SILENT = {"broadcast_in_dim", "convert_element_type", "reshape", "squeeze", "stop_gradient"}
PICTURES = (".svg", ".png", ".pdf")


def plot(
    channels: Channels,
    path: str | pathlib.Path | None = None,
    *,
    sparse: Collection[str] = (),
    collapse: bool = True,
) -> str:
    """Draws the channel graph, or tells it.

    A node is a module's work on its input. Green: products and convolutions with a
    kernel whose channels may be permuted or pruned; orange: takes the permutation and
    passes it on (bias, normalisation); yellow: passes it on; red: stops it, with the
    reason. Labels: name, primitive and shape of the kernel, `K` the groups of its
    output channels, `C` those of its input channels, `S` if it is sparse, `x N` if a
    scan repeats it. Blocks of equal layers that follow one another are drawn once,
    in a frame with their number; the group ids are those of the first.

    Args:
      channels: the result of `js.graph.channels`.
      path: where to write to: .svg, .png or .pdf, or .txt for the text. None writes
        nothing. Pictures need `pip install "jaxsparse[plot]"`.
      sparse: paths of sparse leaves; a mapping of masks by path will do.
      collapse: draw repeated blocks once.

    Returns:
      The graph as text, a line for every node.

    Raises:
      ValueError: another suffix, or a path that no leaf has.
      ModuleNotFoundError: if the packages that draw are not installed.

    Example:
      >>> import jax.numpy as jnp
      >>> from jaxsparse.graph import channels
      >>> def mlp(params, x):
      ...     return jnp.tanh(x @ params["up"] + params["bias"]) @ params["down"]
      >>> params = {"up": jnp.ones((2, 8)), "bias": jnp.ones(8), "down": jnp.ones((8, 3))}
      >>> print(plot(channels(mlp, params, jnp.ones((5, 2))), sparse=["down"]))
      red     input: is an input of the function
      green   up: dot_general 2 x 8, K 0 <- input
      orange  bias: add, K 0 <- up
      yellow  tanh, K 0 <- bias
      green   down: dot_general 8 x 3, C 0, S <- tanh
      red     output: is an output of the function <- down
    """
    path = None if path is None else pathlib.Path(path)
    if path is not None and path.suffix not in (*PICTURES, ".txt"):
        raise ValueError(f"plot: {str(path)!r} ends in none of {', '.join(PICTURES)} and .txt")
    for leaf in sparse:
        if leaf not in channels.shapes:
            raise ValueError(f"plot: no leaf {leaf!r}; {near_misses(leaf, channels.shapes)}")
    drawn = picture(channels, frozenset(sparse), collapse)
    text = _text(drawn)
    if path is not None and path.suffix == ".txt":
        path.write_text(text + "\n")
    elif path is not None:
        boxes = [
            Box(_label(node, name), COLORS[node.kind][0], node.inputs)
            for node, name in zip(drawn.nodes, _names(drawn), strict=True)
        ]
        frames = [Frame(block.first, block.last, block.title) for block in drawn.blocks]
        present = {node.kind for node in drawn.nodes}
        legend = [(COLORS[kind][0], COLORS[kind][2]) for kind in COLORS if kind in present]
        draw(boxes, frames, legend, path)
    return text


def _text(drawn: Picture) -> str:
    heads = {block.first: block for block in drawn.blocks}
    names, inside = _names(drawn), _inside(drawn)
    lines = []
    for place, node in enumerate(drawn.nodes):
        if place in heads:
            lines.append(heads[place].title)
        if node.primitives[0] in ENDS:
            what = ": ".join(filter(None, (node.name, "; ".join(node.reasons))))
        else:
            what = ", ".join(filter(None, (_work(node, " x "), _tags(node, ", "))))
            what = f"{names[place]}: {what}" if node.name else what
            if node.kind == "stops":
                what += f" ({'; '.join(node.reasons)})"
        sources = ", ".join(names[i] or _work(drawn.nodes[i], "") for i in node.inputs)
        indent = "  " if place in inside else ""
        color = COLORS[node.kind][1]
        lines.append(f"{indent}{color:<8}{what}" + (f" <- {sources}" if sources else ""))
    return "\n".join(lines)


def _inside(drawn: Picture) -> dict[int, Block]:
    return {i: block for block in drawn.blocks for i in range(block.first, block.last + 1)}


def _names(drawn: Picture) -> list[str]:
    """Names of the nodes; within a block the module's goes without saying."""
    inside = _inside(drawn)
    modules = [inside[i].modules[0] if i in inside else "" for i in range(len(drawn.nodes))]
    return [
        node.name.removeprefix(f"{module}/")
        for node, module in zip(drawn.nodes, modules, strict=True)
    ]


def _work(node: Node, times: str) -> str:
    """What a node does: its primitives, and the shape of its kernel."""
    telling = [p for p in node.primitives if p not in SILENT] or list(node.primitives)
    work = "/".join(p.removesuffix("_general_dilated") for p in telling[:3])
    work += "/…" if len(telling) > 3 else ""
    return work if node.kernel is None else f"{work} {times.join(map(str, node.kernel))}"


def _tags(node: Node, between: str) -> str:
    """K, C, S and the number of repeats."""

    def named(letter: str, groups: Sequence[int]) -> str:
        return f"{letter} {' '.join(map(str, groups))}" if groups else ""

    tags = [
        named("K", node.groups_out),
        named("C", node.groups_in),
        "S" if node.sparse else "",
        f"x {node.repeat}" if node.repeat > 1 else "",
    ]
    return between.join(filter(None, tags))


def _label(node: Node, name: str) -> list[str]:
    if node.primitives[0] in ENDS:
        return [name, *_wrap("; ".join(node.reasons))]
    while len(name) > WIDEST_NAME and "/" in name.removeprefix("…/"):
        name = "…/" + name.removeprefix("…/").split("/", 1)[1]
    lines = [name, *_wrap(_work(node, "×")), _tags(node, "   ").replace("x ", "× ")]
    if node.kind == "stops":
        lines += _wrap("; ".join(node.reasons))
    return [line for line in lines if line]


def _wrap(text: str) -> list[str]:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= WIDEST:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return lines
