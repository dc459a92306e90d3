"""`LatencyReport`: what a table of latency predicts, beside what networks take as a whole."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxsparse.allocation.costs.flops import WHOLE, Densities, Widths
from jaxsparse.allocation.costs.latency import Latency
from jaxsparse.allocation.costs.table import TURN
from jaxsparse.text import columned
from jaxsparse.timing import interleave, medians, ratios

DENSE = "dense"


class Network(NamedTuple):
    """A network that is there, and how it came of the dense one.

    Attributes:
      run: computes one batch, compiled; no arguments.
      widths, densities: as in `Latency.total`.
    """

    run: Callable[[], Any]
    widths: Widths = WHOLE
    densities: Densities = WHOLE


@dataclasses.dataclass(frozen=True)
class LatencyRow:
    """One network.

    Attributes:
      name: of the network.
      predicted: milliseconds by the table.
      measured: milliseconds, the median of its rounds.
      beside_dense: how many times as long as dense it took, the median over the rounds, times
        what dense took when the table was made: the milliseconds with the machine's other work
        taken out.
    """

    name: str
    predicted: float
    measured: float
    beside_dense: float

    @property
    def error(self) -> float:
        """Predicted over measured, less 1: 0.1 says that it is 10 % faster than predicted."""
        return self.predicted / self.measured - 1

    @property
    def error_beside_dense(self) -> float:
        """The same of how many times faster than dense it is."""
        return self.predicted / self.beside_dense - 1


@dataclasses.dataclass(frozen=True)
class LatencyReport:
    """Networks, predicted and measured; `str(report)` is a table.

    Attributes:
      rows: the dense network first.
    """

    rows: tuple[LatencyRow, ...]

    @property
    def worst(self) -> float:
        """The largest error, without its sign."""
        return max(abs(row.error) for row in self.rows)

    @property
    def worst_beside_dense(self) -> float:
        """The largest `error_beside_dense`, without its sign."""
        return max(abs(row.error_beside_dense) for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Everything as plain numbers and strings, for JSON."""
        rows = [
            dataclasses.asdict(row)
            | {"error": row.error, "error_beside_dense": row.error_beside_dense}
            for row in self.rows
        ]
        return {"worst": self.worst, "worst_beside_dense": self.worst_beside_dense, "rows": rows}

    def __str__(self) -> str:
        head = ("network", "predicted ms", "measured ms", "error", "error beside dense")
        rows = [
            (
                row.name,
                f"{row.predicted:.3f}",
                f"{row.measured:.3f}",
                f"{row.error:+.1%}",
                f"{row.error_beside_dense:+.1%}",
            )
            for row in self.rows
        ]
        return "\n".join(columned([head, *rows], {0}))


def latency_report(
    latency: Latency, networks: Mapping[str, Network], *, rounds: int = 31
) -> LatencyReport:
    """Measures whole networks in turn, the dense one among them, and holds them to the table.

    Args:
      latency: of the dense network.
      networks: by name; "dense" is added.
      rounds: of which the median counts.

    Raises:
      ValueError: no network may be called "dense"; rounds below 1.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> from jaxsparse.allocation import LatencyTable
      >>> def mlp(params, x):
      ...     return jnp.tanh(x @ params["up"]) @ params["down"]
      >>> params, x = {"up": jnp.ones((4, 32)), "down": jnp.ones((32, 8))}, jnp.ones((5, 4))
      >>> latency = Latency(LatencyTable(rounds=3), mlp, params, x)
      >>> half = {"up": params["up"][:, :16], "down": params["down"][:16]}
      >>> run = jax.jit(mlp)
      >>> networks = {"half": Network(lambda: run(half, x), {"up, down": 16})}
      >>> report = latency_report(latency, networks, rounds=3)
      >>> [row.name for row in report.rows]
      ['dense', 'half']
    """
    if DENSE in networks:
        raise ValueError(f"latency_report: {DENSE!r} is the whole network; another name would work")
    if rounds < 1:
        raise ValueError(f"latency_report: rounds={rounds}; from 1 on would work")
    predicted = {DENSE: latency.total()} | {
        name: latency.total(network.widths, network.densities) for name, network in networks.items()
    }
    runs = {DENSE: latency.run} | {name: network.run for name, network in networks.items()}
    times = interleave(runs, rounds, turn=TURN, clock=latency.table.clock)
    seconds, beside = medians(times), ratios(times, DENSE)
    rows = (
        LatencyRow(name, predicted[name], 1e3 * seconds[name], latency.dense * beside[name])
        for name in runs
    )
    return LatencyReport(tuple(rows))
