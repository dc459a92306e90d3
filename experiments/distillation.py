"""A second target beside the labels: what a finished run says of the training examples."""

import hashlib
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments import tasks
from experiments.data import Split
from experiments.data.base import Task
from jaxsparse.files import naming, replacing
from jaxsparse.recipes.distillation import distill_logits

_LOG = logging.getLogger(__name__)


class Taught(NamedTuple):
    """The labels of examples, and a teacher's logits of them."""

    labels: Any
    logits: Any


def labels_of(targets: Any) -> Any:
    """The labels, with or without a teacher."""
    return targets.labels if isinstance(targets, Taught) else targets


def taught(split: Split, outputs: Callable[[Split], np.ndarray], folder: str) -> Split:
    """A split with a teacher's logits beside its labels.

    They are worked out once for all runs that have this teacher, and kept in its folder.

    Args:
      split: the training examples.
      outputs: of the teacher; called where none are kept.
      folder: of the teacher's run.
    """
    whole = hashlib.sha256()
    for leaf in jax.tree.leaves(split.inputs):
        whole.update(np.ascontiguousarray(leaf).tobytes())
    file = pathlib.Path(folder) / f"logits-{whole.hexdigest()[:16]}.npy"
    if not file.exists():
        _LOG.info("asking the teacher in %s about %d examples", folder, len(split))
        found = outputs(split)
        with replacing(file) as part:
            np.save(part, found)
    with naming(file):
        return Split(split.inputs, Taught(split.labels, np.load(file)))


def loss_fn(
    hard: tasks.Loss, task: Task, options: Mapping[str, Any]
) -> Callable[[jax.Array, Taught], jax.Array]:
    """``(1 - weight) * hard + weight * distill_logits``.

    Args:
      hard: the loss of the labels.
      task: with logits: classification or binary.
      options: ``weight``, and ``temperature`` of ``jaxsparse.recipes.distillation``.

    Raises:
      ValueError: a task without logits, or numbers without meaning.
    """
    weight, temperature = options["weight"], options["temperature"]
    if task == "regression":
        raise ValueError("config.distillation.teacher: a regression has no logits to learn from")
    if not 0 <= weight <= 1:
        raise ValueError(f"config.distillation.weight is a share in [0, 1], not {weight}")
    if not temperature > 0:
        raise ValueError(f"config.distillation.temperature = {temperature} must be above 0")

    def loss(outputs, targets: Taught):
        learned = distill_logits(outputs, targets.logits, temperature, binary=task == "binary")
        return (1 - weight) * hard(outputs, targets.labels) + weight * learned

    return loss
