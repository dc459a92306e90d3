"""What a budget is counted in, by name."""

from collections.abc import Callable
from typing import Any, NamedTuple

from experiments.registry import Registry
from jaxsparse.allocation import Bytes, Cost, Flops, Latency, LatencyTable


class Traced(NamedTuple):
    """A model whose cost is asked for.

    Attributes:
      fn: (tree, inputs) -> outputs.
      tree: of shapes.
      example: inputs of one example.
      batch: inputs of as many as are timed together.
      table: file of the table of latency.
      steps: widths of a group at which that is measured.
    """

    fn: Callable[[Any, Any], Any]
    tree: Any
    example: Any
    batch: Any
    table: str
    steps: int


KINDS: Registry[Cost] = Registry("budget", given=1)


@KINDS.register("flops")
def flops(traced: Traced) -> Flops:
    """Multiplications of one forward pass of one example."""
    return Flops(traced.fn, traced.tree, traced.example)


@KINDS.register("bytes")
def stored(traced: Traced) -> Bytes:
    """Bytes of the parameters."""
    return Bytes(traced.fn, traced.tree, traced.example)


def latency(traced: Traced) -> Latency:
    """Milliseconds of one forward pass of a batch here; measures what the table lacks.

    Raises:
      ValueError: a table of another machine.
    """
    table = LatencyTable(traced.table)
    return Latency(table, traced.fn, traced.tree, traced.batch, steps=traced.steps)


# No decorator: the type of what `latency` returns would be lost.
KINDS.register("latency")(latency)
