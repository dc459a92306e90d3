"""The channel graph as a picture: nodes, and blocks that repeat shown once."""

import dataclasses
import itertools
from collections.abc import Collection, Sequence

from jaxsparse.graph.analysis.channels import Channels
from jaxsparse.graph.picture.nodes import Node, nodes_of


@dataclasses.dataclass(frozen=True)
class Block:
    """Nodes that the model repeats.

    Attributes:
      first, last: places of its nodes in `Picture.nodes`, both included.
      times: how often it comes in a row.
      modules: scopes of its first and last copy, empty if they have none.
    """

    first: int
    last: int
    times: int
    modules: tuple[str, ...]

    @property
    def title(self) -> str:
        """Such as "3 times  layer_0 … layer_2"."""
        names = " … ".join(dict.fromkeys(filter(None, self.modules)))
        return f"{self.times} times  {names}".strip()


@dataclasses.dataclass(frozen=True)
class Picture:
    """Nodes in an order of evaluation, and the blocks among them."""

    nodes: tuple[Node, ...]
    blocks: tuple[Block, ...]


def picture(channels: Channels, sparse: Collection[str], collapse: bool) -> Picture:
    """Makes nodes of ops and, if asked to, one block of those that repeat."""
    nodes = nodes_of(channels, sparse)
    return _collapse(nodes) if collapse else Picture(tuple(nodes), ())


def _collapse(nodes: Sequence[Node]) -> Picture:
    """Shows the first of equal runs of nodes that follow one another."""
    signatures = [
        (
            *(node.kind, node.primitives, node.kernel, node.sparse, node.reasons, node.repeat),
            *(bool(node.groups_in), bool(node.groups_out)),
            tuple(place - i for i in node.inputs),
        )
        for place, node in enumerate(nodes)
    ]
    repeats = sorted(_repeats(nodes, signatures, 0, len(nodes)))
    stands = list(range(len(nodes)))  # the shown node that stands for each
    for first, period, times in repeats:
        for place in range(first + period, first + period * times):
            stands[place] = stands[place - period]
    shown = sorted(set(stands))
    places = {node: place for place, node in enumerate(shown)}
    kept = [
        dataclasses.replace(
            nodes[i], inputs=tuple(sorted({places[stands[j]] for j in nodes[i].inputs}))
        )
        for i in shown
    ]
    blocks = tuple(
        Block(
            places[first],
            places[first + period - 1],
            times,
            tuple(
                module_of(nodes[at : at + period]) for at in (first, first + period * (times - 1))
            ),
        )
        for first, period, times in repeats
    )
    return Picture(tuple(kept), blocks)


def _repeats(
    nodes: Sequence[Node], signatures: Sequence[tuple], begin: int, end: int
) -> list[tuple[int, int, int]]:
    """(first, period, times) of the repeats in a range, those that save most first."""
    best, most = None, 1
    for period in range(1, (end - begin) // 2 + 1):
        run = 0
        for place in range(end - period - 1, begin - 2, -1):
            if place >= begin and signatures[place] == signatures[place + period]:
                run += 1
                continue
            times, spare = divmod(run, period)
            if times * period > most:
                most = times * period
                # Of the places where the copies may begin, the one that makes them modules.
                starts = range(place + 1, place + 2 + spare)
                first = max(starts, key=lambda s: len(module_of(nodes[s : s + period])))
                best = first, period, times + 1
            run = 0
    if best is None:
        return []
    first, period, times = best
    return [
        best,
        *_repeats(nodes, signatures, begin, first),
        *_repeats(nodes, signatures, first + period * times, end),
    ]


def module_of(nodes: Sequence[Node]) -> str:
    """The scope that all nodes share, as far as they have one."""
    paths = [node.scope.split("/") for node in nodes if node.scope]
    shared = itertools.takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
    return "/".join(parts[0] for parts in shared)
