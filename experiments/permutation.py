"""Permuting the channels of a run's model, before n:m masks are chosen."""

import dataclasses
import logging
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import jaxsparse as js
from experiments import workdir
from jaxsparse.files import naming
from jaxsparse.graph import PermutationReport
from jaxsparse.trees import leaves_by_path, replace_by_path

_LOG = logging.getLogger(__name__)

PICTURE, TEXT, NUMBERS = "graph.png", "graph.txt", "permutation.json"


def permute(
    apply: Callable[..., Any],
    rules: Sequence[js.Rule],
    inputs: Any,
    trees: tuple[Any, Any, Any],
    **options: Any,
) -> tuple[tuple[Any, Any, Any], PermutationReport]:
    """The same model with channels in the order under which its rules keep the most.

    Args:
      apply: see ``experiments.models.base.Model``.
      rules: the config's; those with n:m count.
      inputs: an example batch.
      trees: parameters, what training changes besides them (running means), and the
        optimizer's state, whose moments are permuted like the parameters.
      options: of the search.

    Returns:
      The three trees and the report.
    """
    params, extra, opt_state = trees
    moved = [dataclasses.replace(rule, path=f"params/(?:{rule.path})") for rule in rules]
    model, report = js.graph.permute(
        lambda tree, batch: apply(tree["params"], tree["batch_stats"], batch, None)[0],
        {"params": params, "batch_stats": extra},
        inputs,
        rules=moved,
        **options,
    )
    shapes = {path: leaf.shape for path, leaf in leaves_by_path(params).items()}
    new = {}
    for path, leaf in leaves_by_path(opt_state).items():
        owner = _owner(path, shapes)
        if owner and getattr(leaf, "shape", None) == shapes[owner]:
            for axis in range(leaf.ndim):
                index = report.channels.index(f"params/{owner}", axis, report.permutations)
                leaf = jax.numpy.take(leaf, index, axis=axis)
            new[path] = leaf
    return (model["params"], model["batch_stats"], replace_by_path(opt_state, new)), report


def _owner(path: str, shapes: Mapping[str, Any]) -> str:
    """The longest path of a parameter that a path of the optimizer's state ends in."""
    parts = path.split("/")
    tails = ("/".join(parts[i:]) for i in range(len(parts)))
    return next((tail for tail in tails if tail in shapes), "")


def write(report: PermutationReport, folder: pathlib.Path) -> None:
    """Writes the op graph as a picture and as text, and what every group gained."""
    sparse = [leaf.path for leaf in report.leaves]
    try:
        with naming(folder / PICTURE):
            js.graph.plot(report.channels, folder / PICTURE, sparse=sparse)
    except ModuleNotFoundError as error:
        _LOG.warning("%s is left out: %s", folder / PICTURE, error)
    with naming(folder / TEXT):
        js.graph.plot(report.channels, folder / TEXT, sparse=sparse)
    workdir.write_json(folder / NUMBERS, rows(report))


def rows(report: PermutationReport) -> list[dict[str, Any]]:
    """The groups of a report as JSON has them."""
    return [
        {
            "group": row.group.id,
            "channels": row.group.size,
            "leaves": [path.removeprefix("params/") for path in row.leaves],
            "plain": row.plain,
            "retained": row.retained,
            "bound": row.bound,
            "efficacy": row.efficacy,
            "reason": row.reason,
        }
        for row in report.groups
    ]


def table(groups: Sequence[Mapping[str, Any]]) -> str:
    """A line for every group: what n:m keeps of its magnitude, before and after."""
    head = (
        f"{'group':>5} {'channels':>8} {'plain':>10} {'permuted':>10} {'bound':>10} {'efficacy':>8}"
    )
    lines = [f"{head}  leaves"]
    for row in groups:
        if not row["bound"]:
            lines.append(f"{row['group']:>5} {row['channels']:>8} not searched: {row['reason']}")
            continue
        sums = " ".join(f"{row[key]:>10.2f}" for key in ("plain", "retained", "bound"))
        note = f" ({row['reason']})" if row["reason"] else ""
        lines.append(
            f"{row['group']:>5} {row['channels']:>8} {sums} {row['efficacy']:>8.1%}  "
            f"{', '.join(row['leaves'])}{note}"
        )
    gained = np.sum([row["retained"] - row["plain"] for row in groups])
    room = np.sum([row["bound"] - row["plain"] for row in groups])
    lines.append(f"in all {gained / room if room else 0.0:.1%} of what could be recovered")
    return "\n".join(lines)
