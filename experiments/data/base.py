"""What a data set is, and the order in which training sees it."""

import dataclasses
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np

from experiments.registry import Registry

Task = Literal["classification", "binary", "regression"]

# Batches whose examples are told apart by length: so few are mixed that they stay random.
_WINDOW = 16
# Examples a batch where nothing is trained; of sequences, which take much more room, fewer.
_EXAMPLES, _SEQUENCES = 1024, 128


@dataclasses.dataclass(frozen=True)
class Split:
    """Examples: every leaf of ``inputs``, and ``labels``, has the same leading size.

    ``labels`` are int32 classes, or float32 numbers (0/1 for a binary task); with a
    teacher, a tree that holds them and what the teacher says.
    """

    inputs: Any
    labels: Any

    def __len__(self) -> int:
        return len(jax.tree.leaves(self.labels)[0])

    def take(self, rows: np.ndarray | slice) -> "Split":
        """The examples at ``rows``, in that order."""
        inputs, labels = jax.tree.map(lambda leaf: leaf[rows], (self.inputs, self.labels))
        return Split(inputs, labels)


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A training split, a held-out split and what a model must know to fit them.

    Attributes:
      task: decides the loss and the metrics, see ``experiments.tasks``.
      outputs: how many numbers the model returns per example (classes, or 1).
      sizes: vocabulary sizes of integer inputs, by input name.
      source: one line on where the data came from, for the report.
      validation: where thresholds are chosen; None where there are none to choose.
      class_weights: of each class in the loss; empty weighs all alike.
      buckets: ascending lengths to which batches of padded sequences are cut, the last
        the length of all; empty where inputs are no sequences. Inputs are then a dict of
        (n, length) with ``mask`` in it.
    """

    task: Task
    train: Split
    test: Split
    outputs: int
    source: str
    sizes: dict[str, Any] = dataclasses.field(default_factory=dict)
    validation: Split | None = None
    class_weights: tuple[float, ...] = ()
    buckets: tuple[int, ...] = ()


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
    sit out that epoch. With buckets the examples of 16 batches at a time are sorted by
    bucket, and the batches shuffled again: most examples are padded as little as they can.

    Args:
      split: the training examples.
      batch_size: examples per batch.
      seed: of the permutations.
      buckets: see ``Dataset``.

    Raises:
      ValueError: fewer examples than one batch.
    """

    def __init__(self, split: Split, batch_size: int, seed: int, buckets: Sequence[int] = ()):
        if not 1 <= batch_size <= len(split):
            raise ValueError(f"batch_size {batch_size} does not fit 1 to {len(split)} examples")
        self._split, self._size, self._seed = split, batch_size, seed
        self._buckets, self._bucket_of = buckets, _buckets_of(split, buckets)
        self.steps_per_epoch = len(split) // batch_size
        self._order = functools.lru_cache(maxsize=2)(self._permutation)

    def _permutation(self, epoch: int) -> np.ndarray:
        rng = np.random.default_rng([self._seed, epoch])
        order = rng.permutation(len(self._split))
        if not self._buckets:
            return order
        batches = []
        window = _WINDOW * self._size
        for begin in range(0, self.steps_per_epoch * self._size, window):
            rows = order[begin : min(begin + window, self.steps_per_epoch * self._size)]
            rows = rows[np.argsort(self._bucket_of[rows], kind="stable")]
            batches.append(rng.permutation(rows.reshape(-1, self._size)))
        return np.concatenate(batches).ravel()

    def __call__(self, step: int) -> tuple[Any, Any]:
        """``(inputs, labels)`` of the 0-based ``step``."""
        epoch, index = divmod(step, self.steps_per_epoch)
        rows = self._order(epoch)[index * self._size :][: self._size]
        batch = self._split.take(rows)
        if self._buckets:
            return _cut(batch.inputs, self._buckets[self._bucket_of[rows].max()]), batch.labels
        return batch.inputs, batch.labels


def in_order(
    split: Split, size: int, buckets: Sequence[int] = ()
) -> Iterator[tuple[np.ndarray, Any]]:
    """Yields (rows, inputs) of batches that cover a split once.

    The last batch of a shape is filled up with repetitions, one compilation for all, so
    there may be fewer rows than inputs. With buckets short examples come first.
    """
    if not len(split):
        return
    bucket_of = _buckets_of(split, buckets)
    for bucket in range(max(1, len(buckets))):
        rows = np.flatnonzero(bucket_of == bucket)
        for begin in range(0, len(rows), size):
            part = rows[begin : begin + size]
            inputs = split.take(np.resize(part, min(size, len(split)))).inputs
            yield part, _cut(inputs, buckets[bucket]) if buckets else inputs


def predict_all(predict: Callable[[Any], Any], split: Split, buckets: Sequence[int] = ()) -> Any:
    """What a function of a batch of inputs returns for all examples of a split, in order.

    Returns:
      NumPy arrays: one, or a tree of them, as the function returns.
    """
    rows, outputs = [], []
    for part, inputs in in_order(split, _SEQUENCES if buckets else _EXAMPLES, buckets):
        found = predict(inputs)
        rows.append(part)
        outputs.append([np.asarray(leaf)[: len(part)] for leaf in jax.tree.leaves(found)])
    order = np.argsort(np.concatenate(rows))
    leaves = [np.concatenate(parts)[order] for parts in zip(*outputs, strict=True)]
    return jax.tree.unflatten(jax.tree.structure(found), leaves)


def _buckets_of(split: Split, buckets: Sequence[int]) -> np.ndarray:
    """The index of the least bucket that holds each example."""
    if not buckets:
        return np.zeros(len(split), np.int64)
    return np.searchsorted(np.asarray(buckets), split.inputs["mask"].sum(axis=1))


def _cut(inputs: Any, length: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[:, :length], inputs)
