"""A user's own arrays."""

import pathlib
import typing

import numpy as np

from experiments.data.base import DATASETS, Dataset, Split, Task, hold_out
from experiments.registry import near_misses

_KEYS = ("x_train", "y_train", "x_test", "y_test")


@DATASETS.register("npz")
def npz(path: str, task: str = "", test_fraction: float = 0.2) -> Dataset:
    """Arrays ``x_train (n, ...)`` and ``y_train (n,)``, optionally ``x_test``, ``y_test``.

    Without a test part, ``test_fraction`` of the training part is held out. Float
    inputs are used as they are (float32); integer inputs stay integers, for models
    with embeddings.

    Args:
      path: the .npz file.
      task: "classification", "binary" or "regression"; by default integer labels
        mean classification and float labels regression.
      test_fraction: see above.

    Returns:
      The data set; a classification has ``max(labels) + 1`` outputs.

    Raises:
      ValueError: unknown, missing or pickled arrays, or shapes that do not fit;
        names the array and its shape.
    """
    file = pathlib.Path(path)
    if not file.is_file():
        raise ValueError(f"data.path: no such file: {path!r}")
    with np.load(file, allow_pickle=False) as archive:
        for key in archive.files:
            if key not in _KEYS:
                raise ValueError(f"{path}: unknown array {key!r}{near_misses(key, _KEYS)}")
        arrays = {key: archive[key] for key in archive.files}
    for key in _KEYS[: 4 if {"x_test", "y_test"} & set(arrays) else 2]:
        if key not in arrays:
            raise ValueError(f"{path}: array {key!r} is missing; found {sorted(arrays)}")
    kind = _task(task, arrays["y_train"])
    train = _split(path, arrays, "train", kind)
    if "x_test" not in arrays:
        train, test = hold_out(train, test_fraction, seed=0)
    else:
        test = _split(path, arrays, "test", kind)
        if test.inputs.shape[1:] != train.inputs.shape[1:]:
            raise ValueError(
                f"{path}: x_test examples have shape {test.inputs.shape[1:]}, those of x_train "
                f"{train.inputs.shape[1:]}"
            )
    outputs = 1
    if kind == "classification":
        outputs = int(max(train.labels.max(), test.labels.max())) + 1
    sizes = {}
    if np.issubdtype(train.inputs.dtype, np.integer):
        sizes["tokens"] = int(max(train.inputs.max(), test.inputs.max())) + 1
    return Dataset(kind, train, test, outputs=outputs, source=str(path), sizes=sizes)


def _task(task: str, labels: np.ndarray) -> Task:
    if not task:
        return "classification" if np.issubdtype(labels.dtype, np.integer) else "regression"
    for known in typing.get_args(Task):
        if task == known:
            return known
    raise ValueError(f"unknown task {task!r}{near_misses(task, typing.get_args(Task))}")


def _split(path: str, arrays: dict[str, np.ndarray], part: str, task: Task) -> Split:
    x, y = arrays[f"x_{part}"], arrays[f"y_{part}"]
    if y.ndim != 1:
        raise ValueError(f"{path}: y_{part} must have shape (n,), found {y.shape}")
    if x.ndim < 2 or len(x) != len(y) or not len(x):
        raise ValueError(
            f"{path}: x_{part} must have shape (n, ...) with n = {len(y)} as y_{part}, "
            f"found {x.shape}"
        )
    if task == "classification":
        if not np.issubdtype(y.dtype, np.integer) or y.min() < 0:
            raise ValueError(f"{path}: y_{part} must hold classes 0, 1, ...; found {y.dtype}")
        y = y.astype(np.int32)
    elif task == "binary" and not np.isin(y, (0, 1)).all():
        raise ValueError(f"{path}: y_{part} of a binary task holds only 0 and 1")
    else:
        y = y.astype(np.float32)
    return Split(x.astype(np.int32 if np.issubdtype(x.dtype, np.integer) else np.float32), y)
