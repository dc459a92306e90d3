"""What a data set is, and the order in which training sees it."""

import dataclasses
import functools
from typing import Any, Literal

import jax
import numpy as np

from experiments.registry import Registry

Task = Literal["classification", "binary", "regression"]


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples: every leaf of ``inputs``, and ``labels``, has the same leading size.

    ``labels`` are int32 classes, or float32 numbers (0/1 for a binary task).
    """

    inputs: Any
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray | slice) -> "Split":
        """The examples at ``rows``, in that order."""
        return Split(jax.tree.map(lambda leaf: leaf[rows], self.inputs), self.labels[rows])


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A training split, a held-out split and what a model must know to fit them.

    Attributes:
      task: decides the loss and the metrics, see ``experiments.tasks``.
      outputs: how many numbers the model returns per example (classes, or 1).
      sizes: vocabulary sizes of integer inputs, by input name.
      source: one line on where the data came from, for the report.
    """

    task: Task
    train: Split
    test: Split
    outputs: int
    source: str
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)


DATASETS: Registry[Dataset] = Registry("data set")


def load(name: str, *, validation: float = 0.0, **options: Any) -> Dataset:
    """Loads a registered data set.

    Args:
      name: its name.
      validation: with a fraction above 0, the test split stays untouched: that
        much of the training split is held out in its place. For tuning.
      **options: handed to the loader.

    Raises:
      ValueError: unknown name or option (with near misses), bad fraction.
    """
    if not 0.0 <= validation < 1.0:
        raise ValueError(f"validation is a fraction in [0, 1), not {validation}")
    dataset = DATASETS.create(name, **options)
    if not validation:
        return dataset
    train, test = hold_out(dataset.train, validation, seed=1)
    return dataclasses.replace(dataset, train=train, test=test)


def hold_out(split: Split, fraction: float, seed: int) -> tuple[Split, Split]:
    """Splits at random into ``(1 - fraction, fraction)``; classes keep their shares.

    A stable sort by label after the shuffle puts every class in one run; taking
    every ``1/fraction``-th example then takes the same share of each.

    Args:
      split: what to divide.
      fraction: the held-out part, in (0, 1).
      seed: of the shuffle.
    """
    rows = np.random.default_rng([seed, 0xDA7A]).permutation(len(split))
    rows = rows[np.argsort(split.labels[rows], kind="stable")]
    position = np.arange(len(rows))
    held = np.floor((position + 1) * fraction) > np.floor(position * fraction)
    return split.take(np.sort(rows[~held])), split.take(np.sort(rows[held]))


class Batches:
    """The batch of a step: a pure function of ``(seed, step)``, so a run can resume.

    Every epoch is a fresh permutation; the examples that do not fill a last batch
    sit out that epoch.

    Args:
      split: the training examples.
      batch_size: examples per batch.
      seed: of the permutations.

    Raises:
      ValueError: fewer examples than one batch.
    """

    def __init__(self, split: Split, batch_size: int, seed: int):
        if not 1 <= batch_size <= len(split):
            raise ValueError(f"batch_size {batch_size} does not fit 1 to {len(split)} examples")
        self._split, self._size, self._seed = split, batch_size, seed
        self.steps_per_epoch = len(split) // batch_size
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        return np.random.default_rng([self._seed, epoch]).permutation(len(self._split))

    def __call__(self, step: int) -> tuple[Any, np.ndarray]:
        """``(inputs, labels)`` of the 0-based ``step``."""
        epoch, index = divmod(step, self.steps_per_epoch)
        batch = self._split.take(self._order(epoch)[index * self._size :][: self._size])
        return batch.inputs, batch.labels
