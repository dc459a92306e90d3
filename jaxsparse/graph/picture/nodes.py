"""Nodes of a picture: ops that a reader takes for one, of a module's size."""

import dataclasses
from collections.abc import Collection, Sequence
from typing import Literal

from jaxsparse.graph.analysis.channels import Channels
from jaxsparse.graph.analysis.values import Op

Kind = Literal["matmul", "takes", "passes", "stops", "other"]
ENDS = ("input", "output")
COLLECTIONS = ("params", "batch_stats")  # linen's, above the modules in a path
KINDS: tuple[Kind, ...] = ("stops", "matmul", "takes", "passes", "other")


@dataclasses.dataclass(frozen=True)
class Node:
    """Ops that a reader takes for one.

    Attributes:
      kind: "matmul", a product or convolution with a kernel whose channels may move;
        "takes", has parameters of the channels and passes these on; "passes", has
        none; "stops", pins them; "other", holds no channels that may move.
      name: of the module or leaf, empty if it has no parameters.
      scope: of the module, without that of the model.
      primitives: what it does, each primitive once.
      kernel: shape of the kernel.
      groups_in: groups which it sums over, "C".
      groups_out: groups of its result, "K" of a product.
      sparse: whether its kernel is.
      reasons: what it pins.
      repeat: length of the scans around it.
      inputs: places of the nodes which it takes, in `Picture.nodes`.
    """

    kind: Kind
    name: str
    scope: str
    primitives: tuple[str, ...]
    kernel: tuple[int, ...] | None
    groups_in: tuple[int, ...]
    groups_out: tuple[int, ...]
    sparse: bool
    reasons: tuple[str, ...]
    repeat: int
    inputs: tuple[int, ...]


def nodes_of(channels: Channels, sparse: Collection[str]) -> list[Node]:
    """The nodes in an order of evaluation; `sparse` are paths of leaves."""
    kinds: dict[int, Kind] = {op.id: _kind(channels, op) for op in channels.ops}
    why = {id: _reasons(channels, channels.ops[id]) for id in kinds}
    roots = {op.scope.split("/")[0] for op in channels.ops if op.scope}
    root = roots.pop() if len(roots) == 1 else ""
    scopes = {op.id: _scope(op, root) for op in channels.ops}
    clusters = _clusters(channels, kinds, scopes)
    of = {id: place for place, ops in enumerate(clusters) for id in ops}
    inputs = [
        tuple(sorted({of[i] for id in ops for i in channels.ops[id].inputs} - {place}))
        for place, ops in enumerate(clusters)
    ]
    homes = {scopes[op.id] for op in channels.ops if op.kernel is not None}
    found = [
        _node([channels.ops[id] for id in ops], kinds, why, scopes, sparse, homes, inputs[place])
        for place, ops in enumerate(clusters)
    ]
    # What neither holds channels nor pins any is left out, and its inputs passed on.
    shown = [i for i, node in enumerate(found) if node.kind != "other" or node.kernel is not None]
    places, reach = {i: place for place, i in enumerate(shown)}, {}
    for i, node in enumerate(found):
        sources = {i} if i in places else {s for j in node.inputs for s in reach[j]}
        reach[i] = sources
    return [
        dataclasses.replace(
            found[i],
            inputs=tuple(sorted({places[s] for j in found[i].inputs for s in reach[j]})),
        )
        for i in shown
    ]


def _kind(channels: Channels, op: Op) -> Kind:
    if op.kernel is not None and (op.groups_in or op.groups_out):
        return "matmul"
    stopped = any(
        pinned.cause.op == op.id and any(place.path not in op.weights for place in pinned.places)
        for pinned in channels.pinned
    )
    if (op.reasons and not op.groups_out) or stopped:
        return "stops"
    if op.groups_out or op.groups_in:
        return "takes" if op.weights else "passes"
    return "other"


def _reasons(channels: Channels, op: Op) -> tuple[str, ...]:
    if op.primitive not in ENDS:
        return op.reasons
    causes = (p.cause for p in channels.pinned if p.cause.op == op.id)
    return op.reasons or tuple(dict.fromkeys(cause.reason for cause in causes))


def _scope(op: Op, root: str) -> str:
    """The module of an op: from its name stack, without the model's own, or its weights."""
    if op.scope:
        return op.scope.removeprefix(f"{root}/")
    homes = {tuple(path.split("/")[:-1]) for path in op.weights}
    homes = {home[1:] if home[:1] and home[0] in COLLECTIONS else home for home in homes}
    return "/".join(homes.pop()) if len(homes) == 1 else ""


def _clusters(
    channels: Channels, kinds: dict[int, Kind], scopes: dict[int, str]
) -> list[list[int]]:
    """Ops in clusters, these in an order of evaluation: no cluster feeds itself."""
    cluster = {op.id: op.id for op in channels.ops}
    members: dict[int, list[int]] = {op.id: [op.id] for op in channels.ops}

    def sources(of: int) -> set[int]:
        return {cluster[i] for id in members[of] for i in channels.ops[id].inputs} - {of}

    def detour(start: int, end: int) -> bool:
        """Whether a path leads from one cluster to the other by way of a third."""
        waiting = list(sources(end) - {start})
        seen = set(waiting)
        while waiting:
            new = sources(waiting.pop()) - seen
            if start in new:
                return True
            seen |= new
            waiting.extend(new)
        return False

    def alone(op: Op) -> bool:
        return op.kernel is not None or kinds[op.id] == "stops" or op.primitive in ENDS

    for op in channels.ops:
        before = sorted(sources(op.id))
        for into in before:
            first, mine = channels.ops[into], cluster[op.id]
            if alone(op) or alone(first) or into not in members or into == mine:
                continue
            # A module's ops, and chains of ops that belong to none or to the same.
            module = scopes[op.id] == scopes[into] != ""
            plain = not any(channels.ops[i].weights for i in (*members[into], *members[mine]))
            chain = plain and len(before) == 1 and not scopes[op.id] and kinds[op.id] == kinds[into]
            if (module or chain) and not detour(into, mine) and not detour(mine, into):
                for id in members[mine]:
                    cluster[id] = into
                members[into] = sorted(members[into] + members.pop(mine))
    waiting, order = {place: sources(place) for place in members}, []
    while waiting:
        place = next(place for place in waiting if waiting[place].isdisjoint(waiting))
        order.append(members[place])
        del waiting[place]
    return order


def _node(
    ops: Sequence[Op],
    kinds: dict[int, Kind],
    why: dict[int, tuple[str, ...]],
    scopes: dict[int, str],
    sparse: Collection[str],
    homes: Collection[str],
    inputs: tuple[int, ...],
) -> Node:
    present = {kinds[op.id] for op in ops}
    kind: Kind = next(kind for kind in KINDS if kind in present)
    weights = [path for op in ops for path in op.weights]
    primitives = tuple(dict.fromkeys(op.primitive for op in ops))
    scope = scopes[ops[0].id]
    if ops[0].primitive in ENDS:
        name = ops[0].primitive
    elif not weights:
        name = ""
    elif scope and (scope not in homes or weights[0].endswith("/kernel")):
        name = scope
    else:
        name = f"{scope}/{weights[0].split('/')[-1]}".removeprefix("/")
    last = ops[-1]
    return Node(
        kind,
        name,
        scope,
        primitives,
        ops[0].kernel,
        tuple(dict.fromkeys(group for op in ops for group in op.groups_in)),
        last.groups_out or tuple(dict.fromkeys(g for op in ops for g in op.groups_out)),
        any(path in sparse for path in weights),
        tuple(dict.fromkeys(reason for op in ops for reason in why[op.id])),
        max(op.repeat for op in ops),
        inputs,
    )
