"""What a run starts from: a finished run's weights, in place of random ones."""

import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np

from experiments import workdir
from experiments.registry import near_misses
from jaxsparse.files import naming

WEIGHTS = "weights.npz"


def weights_of(key: str, path: str, leaves: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The weights of a finished run, which must fit a model.

    Args:
      key: where the path stands in the config, for errors.
      path: the run's folder.
      leaves: slash path -> parameter of the model, or its shape.

    Raises:
      ValueError: no finished run there, and weights that are not the model's, which are
        named with both shapes.
    """
    folder = pathlib.Path(path)
    if not workdir.finished(folder):
        raise ValueError(
            f"config.{key} = {path!r} is no folder of a finished run; train one first, with "
            f"--workdir {path}"
        )
    file = folder / WEIGHTS
    try:
        with naming(file), np.load(file) as archive:
            found = dict(archive)
    except (zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}); run {path!r} once more") from error
    cure = "a run of the same model and data would fit"
    for name, weight in found.items():
        if name not in leaves:
            raise ValueError(
                f"config.{key}: the model has no weight {name!r} of {file}"
                f"{near_misses(name, leaves)}; {cure}"
            )
        if weight.shape != leaves[name].shape:
            raise ValueError(
                f"config.{key}: {name!r} has shape {weight.shape} in {file}, in this model "
                f"{leaves[name].shape}; {cure}"
            )
    if missing := sorted(set(leaves) - set(found)):
        raise ValueError(f"config.{key}: {file} lacks {missing[0]!r} of the model; {cure}")
    return found
