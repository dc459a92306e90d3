"""What a model starts from: random weights, pretrained ones, or those of a finished run."""

import pathlib
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments import workdir
from experiments.models import Model
from experiments.registry import near_misses
from jaxsparse.files import naming
from jaxsparse.trees import leaves_by_path, replace_by_path

WEIGHTS = "weights.npz"


def trees(model: Model, key: jax.Array, first: Mapping[str, Any]) -> tuple[Any, Any]:
    """The parameters of a model and what else it has, those in ``first`` as they are given."""

    def started(tree):
        known = leaves_by_path(tree)
        return replace_by_path(tree, {p: jnp.asarray(first[p]) for p in known if p in first})

    # Weights that are read are no part of the program.
    params, extra = jax.jit(model.init)(key)
    return started(params), started(extra)


def frozen_of(model: Model) -> dict[str, jax.ShapeDtypeStruct]:
    """The parameters that do not train, for they are beside those that do, and pretrained."""
    _, extra = jax.eval_shape(model.init, jax.random.key(0))
    return {p: leaf for p, leaf in leaves_by_path(extra).items() if p in model.pretrained}


def weights_of(key: str, path: str, model: Model) -> dict[str, np.ndarray]:
    """The weights of a finished run, which must be those of a model, frozen ones too.

    Args:
      key: where the path stands in the config, for errors.
      path: the run's folder.
      model: which they are for.

    Raises:
      ValueError: no finished run there, and weights that are not the model's, which are
        named with both shapes.
    """
    folder = pathlib.Path(path)
    if not workdir.finished(folder):
        raise ValueError(
            f"config.{key} = {path!r} is no folder of a finished run; train one first, with "
            f"--workdir {path}, or name another with --config.{key}="
        )
    file = folder / WEIGHTS
    try:
        with naming(file), np.load(file) as archive:
            found = dict(archive)
    except (zipfile.BadZipFile, ValueError) as error:
        raise ValueError(f"{file} is damaged ({error}); run {path!r} once more") from error
    params, _ = jax.eval_shape(model.init, jax.random.key(0))
    leaves = {**leaves_by_path(params), **frozen_of(model)}
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
