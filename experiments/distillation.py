"""More targets than labels: what a finished run says of the training examples."""

import functools
import hashlib
import logging
import pathlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import starting, tasks
from experiments.data import Dataset, Split, predict_all
from experiments.data.base import Task
from experiments.models import Model
from jaxsparse.files import naming, replacing
from jaxsparse.recipes.distillation import distill_hidden, distill_logits

_LOG = logging.getLogger(__name__)


class Said(NamedTuple):
    """What a model says of a batch: its outputs and, of sequences, its last hidden states."""

    outputs: Any
    states: Any = None


class Taught(NamedTuple):
    """The labels of examples, and what a teacher says of them."""

    labels: Any
    teacher: Said


def labels_of(targets: Any) -> Any:
    """The labels, with or without a teacher."""
    return targets.labels if isinstance(targets, Taught) else targets


class Objective(NamedTuple):
    """What is minimised.

    Attributes:
      train: the training examples; with a teacher their labels are ``Taught``.
      say: (params, extra, inputs, key) -> (``Said``, extra).
      loss: (said, targets, inputs) -> the mean loss of a batch.
    """

    train: Split
    say: Callable[..., tuple[Said, Any]]
    loss: Callable[[Said, Any, Any], jax.Array]


def objective(
    options: Mapping[str, Any], model: Model, dataset: Dataset, hard: tasks.Loss, key: jax.Array
) -> Objective:
    """The loss of the labels, or with a teacher that of all targets.

    Args:
      options: ``config.distillation``.
      model: the student; the teacher is another of the same.
      dataset: to train on.
      hard: the loss of the labels.
      key: of the initial weights of what is neither pretrained nor the teacher's.

    Raises:
      ValueError: options without meaning, a teacher that does not fit, or a model without
        hidden states where they are wanted.
    """

    def say(params, extra, inputs, key):
        outputs, extra = model.apply(params, extra, inputs, key)
        return Said(outputs), extra

    if not options["teacher"]:
        return Objective(dataset.train, say, lambda said, y, inputs: hard(said.outputs, y))
    soft = loss_fn(hard, dataset.task, options)
    first = {
        **model.pretrained,
        **starting.weights_of("distillation.teacher", options["teacher"], model),
    }

    def taught_by(answer, buckets, with_states) -> Split:
        def ask(split):
            predict = functools.partial(jax.jit(answer), *starting.trees(model, key, first))
            return predict_all(predict, split, buckets)

        return taught(dataset.train, ask, with_states, options["teacher"])

    def outputs_of(params, extra, inputs):
        return Said(model.apply(params, extra, inputs, None)[0])

    if not options["states"]:
        train = taught_by(outputs_of, dataset.buckets, False)
        return Objective(train, say, lambda said, y, inputs: soft(said, y, None))
    if (states := model.states) is None:
        raise ValueError(
            "config.distillation.states: this model shows no hidden states; 0 would do"
        )

    def say_all(params, extra, inputs, key):
        del key
        return Said(*states(params, extra, inputs)), extra

    def states_of(params, extra, inputs):
        outputs, hidden = states(params, extra, inputs)
        return Said(outputs, hidden.astype(jnp.float16))

    # All examples at their full length: one array holds them.
    train = taught_by(states_of, dataset.buckets[-1:], True)
    return Objective(train, say_all, lambda said, y, inputs: soft(said, y, inputs["mask"]))


def taught(split: Split, ask: Callable[[Split], Said], states: bool, folder: str) -> Split:
    """A split with what a teacher says beside its labels.

    It is worked out once for all runs that have this teacher, and kept in its folder.

    Args:
      split: the training examples.
      ask: what the teacher says of a split; called where nothing is kept.
      states: whether hidden states are wanted, too.
      folder: of the teacher's run.
    """
    whole = hashlib.sha256()
    for leaf in jax.tree.leaves(split.inputs):
        whole.update(np.ascontiguousarray(leaf).tobytes())
    name = f"{whole.hexdigest()[:16]}.npy"
    kinds = ("outputs", "states") if states else ("outputs",)
    files = {kind: pathlib.Path(folder) / f"{kind}-{name}" for kind in kinds}
    if not all(file.exists() for file in files.values()):
        _LOG.info("asking the teacher in %s about %d examples", folder, len(split))
        said = ask(split)
        for kind, file in files.items():
            with replacing(file) as part:
                np.save(part, getattr(said, kind))
    found = {}
    for kind, file in files.items():
        # States of all examples may be larger than the memory.
        with naming(file):
            found[kind] = np.load(file, mmap_mode="r")
    return Split(split.inputs, Taught(split.labels, Said(**found)))


def loss_fn(
    hard: tasks.Loss, task: Task, options: Mapping[str, Any]
) -> Callable[[Said, Taught, Any], jax.Array]:
    """``(1 - weight) * hard + weight * distill_logits + states * distill_hidden / mean(t^2)``.

    The last is the squared difference of hidden states relative to the teacher's t, over
    tokens that are no padding.

    Args:
      hard: the loss of the labels.
      task: with logits: classification or binary.
      options: ``weight``, ``states`` and the ``temperature`` of the logits.

    Returns:
      (what the student says, targets, mask of tokens) -> loss. The mask is looked at with
      ``states`` above 0 alone.

    Raises:
      ValueError: a task without logits, or numbers without meaning.
    """
    weight, temperature, states = (options[key] for key in ("weight", "temperature", "states"))
    if task == "regression":
        raise ValueError("config.distillation.teacher: a regression has no logits to learn from")
    if not 0 <= weight <= 1:
        raise ValueError(f"config.distillation.weight is a share in [0, 1], not {weight}")
    if not temperature > 0:
        raise ValueError(f"config.distillation.temperature = {temperature} must be above 0")
    if states < 0:
        raise ValueError(f"config.distillation.states = {states} must be at least 0")

    def loss(said: Said, targets: Taught, mask: Any) -> jax.Array:
        student, teacher = said.outputs, targets.teacher.outputs
        logits = distill_logits(student, teacher, temperature, binary=task == "binary")
        value = (1 - weight) * hard(student, targets.labels) + weight * logits
        if not states:
            return value
        # The batch is cut to its longest example, what the teacher said is not.
        ours = said.states
        theirs = targets.teacher.states[:, : ours.shape[1]].astype(ours.dtype)
        size = distill_hidden([jnp.zeros_like(theirs)], [theirs], mask)
        return value + states * distill_hidden([ours], [theirs], mask) / size

    return loss
