"""Masks of a run made those of whole heads and neurons, at the end of its sparsification."""

import pathlib
from typing import Any

import jaxsparse as js
from experiments import workdir
from jaxsparse.graph import StructureReport

NUMBERS = "structure.json"


def resolve(
    structure: js.graph.Structure, opt_state: Any, **options: Any
) -> tuple[Any, StructureReport]:
    """The optimizer's state with masks that keep heads and neurons as a whole or not at all.

    Args:
      structure: of the model.
      opt_state: that has its masks.
      options: of ``jaxsparse.graph.Structure.resolve``.

    Returns:
      The state, and what is kept of every group.

    Raises:
      ValueError: a model without such groups, options without meaning.
    """
    masks = structure.resolve(js.masks(opt_state), **options)
    return js.replace_masks(opt_state, masks), structure.report(masks)


def write(report: StructureReport, folder: pathlib.Path) -> None:
    """Writes which heads and neurons are kept."""
    rows = [
        {
            "group": row.group.name,
            "kind": row.group.kind,
            "units": row.group.units,
            "kept": row.kept.tolist(),
            "lacking": list(row.lacking),
        }
        for row in report.groups
    ]
    workdir.write_json(folder / NUMBERS, rows)
