"""The whole training state on disk, written while training goes on.

A thin layer over orbax: one call saves, one restores, and what a killed process
left half-written is never seen, because orbax commits a step by renaming it. Each
step carries the checksums of its files, so that damage is found when it is restored,
and the step before is taken. Masks (all boolean arrays) take one bit an entry.
"""

import errno
import os
import pathlib
import re
import warnings
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from jaxsparse import checksums
from jaxsparse.checksums import Damaged
from jaxsparse.trees import becomes, names, near_misses

Tree = Any


class Checkpointer:
    """Saves and restores trees of arrays by step.

    Weights, optimizer state (masks, scores and counters in it), PRNG keys: any
    pytree. The data pipeline should be a function of the step, then a resumed run
    is the uninterrupted one bit for bit.

    Args:
      directory: made if missing.
      every: `save` does nothing at steps that this does not divide.
      keep: how many of the latest steps stay; None keeps all. With 2 or more there is
        one to fall back on.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     with Checkpointer(directory) as checkpointer:
    ...         _ = checkpointer.save(3, {"w": jax.numpy.ones(2)})
    ...         checkpointer.wait()
    ...         step, _ = checkpointer.restore_latest({"w": jax.numpy.zeros(2)})
    >>> step
    3
    """

    def __init__(self, directory: str | pathlib.Path, *, every: int = 1, keep: int | None = 2):
        if every < 1 or (keep is not None and keep < 1):
            raise ValueError(f"Checkpointer: every={every} and keep={keep} must be at least 1")
        self._every = every
        self._directory = pathlib.Path(directory).absolute()
        self._saving: int | None = None
        self._damaged: list[int] = []
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            create=True,
            enable_async_checkpointing=True,
            async_options=ocp.AsyncOptions(post_finalization_callback=self._sum_up),
        )
        self._manager = ocp.CheckpointManager(
            self._directory, options=options, item_handlers=ocp.StandardCheckpointHandler()
        )

    def save(self, step: int, state: Tree, *, force: bool = False) -> bool:
        """Copies the state to the host and returns; the disk is written meanwhile.

        Returns whether this step is saved. `force` saves whatever `every` says. Steps
        that `restore_latest` found damaged are renamed first, to `7.damaged` and so on.

        Raises:
          OSError: this step, or the one before, could not be written; the folder is named.
        """
        if not (force or step % self._every == 0):
            return False
        self.wait()
        self._set_aside()
        if step == self._manager.latest_step():
            return False
        self._saving = step
        return self._manager.save(step, args=ocp.args.StandardSave(_with_bits(state)), force=True)

    def restore_latest(self, like: Tree) -> tuple[int, Tree] | None:
        """Returns (step, state) of the latest whole step on disk, None if there is none.

        A damaged step is passed over for the one before it, with a warning that says
        what is wrong with which file.

        Args:
          like: a tree of the same structure, shapes, dtypes and shardings; arrays or
            `jax.ShapeDtypeStruct`. A Python number, such as the step of a new
            `TrainState`, takes the scalar that `jit` made of it, too.

        Raises:
          ValueError: the checkpoint does not fit `like`, the paths are quoted; or every
            step is damaged, the files are named.
        """
        self.wait()
        damage: dict[int, Damaged] = {}
        found = None
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found = step, self._restore(step, like)
                break
            except Damaged as error:
                damage[step] = error
        self._damaged = list(damage)
        empty = [step for step in damage if not any(self._folder(step).iterdir())]
        if damage and found is None and len(empty) < len(damage):
            listed = "\n  ".join(f"step {step}: {error}" for step, error in damage.items())
            raise ValueError(
                f"every checkpoint in {self._directory} is damaged; delete or restore them:\n"
                f"  {listed}"
            )
        for step, error in damage.items():
            instead = f"step {found[0]} is taken" if found else "there is no step before it"
            warnings.warn(f"step {step} is passed over, {instead}: {error}", stacklevel=2)
        return found

    def wait(self) -> None:
        """Blocks until what was saved is on disk.

        Raises:
          OSError: it could not be written; the folder is named.
        """
        try:
            self._manager.wait_until_finished()
        except Exception as error:  # whatever failed in the thread that writes
            number, reason = _reason(error)
            raise OSError(
                number,
                f"the checkpoint could not be written ({reason}); those before it are whole",
                str(self._directory if self._saving is None else self._folder(self._saving)),
            ) from error

    def close(self) -> None:
        """Waits, then lets go of the directory."""
        try:
            self.wait()
        finally:
            self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *error) -> None:
        self.close()

    def _folder(self, step: int) -> pathlib.Path:
        return self._directory / str(step)

    def _sum_up(self) -> None:
        """Adds the checksums while the step still has its temporary name."""
        if jax.process_index() == 0 and self._saving is not None:
            temporary = self._directory.glob(f"{self._saving}.orbax-checkpoint-tmp*")
            for folder in [*temporary] or [self._folder(self._saving)]:
                checksums.write(folder)

    def _set_aside(self) -> None:
        """Renames damaged steps, so that they are neither counted nor in the way."""
        for step in self._damaged:
            target = self._directory / f"{step}.damaged"
            number = 1
            while target.exists():
                number += 1
                target = self._directory / f"{step}.damaged-{number}"
            os.rename(self._folder(step), target)
        if self._damaged:
            self._damaged = []
            self._manager.reload()

    def _restore(self, step: int, like: Tree) -> Tree:
        folder = self._folder(step)
        if not any(folder.iterdir()):
            raise Damaged(f"{folder} is an empty folder")
        verified = checksums.verify(folder)
        try:
            stored = _stored(self._manager.item_metadata(step))
        except Exception as error:  # orbax says in many ways that it cannot read a file
            raise Damaged(f"{folder} cannot be read: {_first_line(error)}") from error
        abstract = _abstract(folder, stored, like)
        try:
            state = self._manager.restore(step, args=ocp.args.StandardRestore(abstract))
        except Exception as error:
            if verified:
                raise
            raise Damaged(f"{folder} cannot be read: {_first_line(error)}") from error
        return jax.tree.map(_without_bits, state, like)


def _reason(error: Exception) -> tuple[int, str]:
    """The system's number of an error and its words; orbax has both in a long message."""
    number = getattr(error, "errno", None)
    if number is None and (code := re.search(r"os_error_code='(\d+)'", str(error))):
        number = int(code[1])
    return (errno.EIO, _first_line(error)) if number is None else (number, os.strerror(number))


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"


def _with_bits(state: Tree) -> Tree:
    """Boolean arrays as bits, eight of them in a byte."""

    def pack(leaf):
        if not _is_mask(leaf) or not getattr(leaf, "is_fully_addressable", True):
            return leaf
        return np.packbits(np.asarray(leaf).reshape(-1))

    return jax.tree.map(pack, state)


def _is_mask(leaf: Any) -> bool:
    return hasattr(leaf, "shape") and len(leaf.shape) > 0 and leaf.dtype == bool


def _bits(like: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((-(-int(np.prod(like.shape)) // 8),), np.uint8)


def _without_bits(leaf: Any, like: Any) -> Any:
    if isinstance(like, bool | int | float) and isinstance(leaf, np.ndarray):
        return jax.numpy.asarray(leaf)
    if not _is_mask(like) or leaf.dtype == bool:
        return leaf
    count = int(np.prod(np.shape(like)))
    mask = np.unpackbits(np.asarray(leaf), count=count).reshape(np.shape(like)).astype(bool)
    if isinstance(like, np.ndarray):
        return mask
    sharding = getattr(like, "sharding", None)
    return jax.device_put(mask) if sharding is None else jax.device_put(mask, sharding)


def _stored(metadata: Any) -> dict[str, Any]:
    """What a checkpoint holds, by orbax's path."""
    flat, _ = jax.tree_util.tree_flatten_with_path(
        metadata.tree, is_leaf=lambda node: hasattr(node, "dtype")
    )
    return {"/".join(names(path)): leaf for path, leaf in flat}


def _abstract(folder: pathlib.Path, stored: dict[str, Any], like: Tree) -> Tree:
    """What to ask orbax for, once it is known to be there.

    Orbax casts to another dtype and cuts to another shape without a word.
    """
    flat, structure = jax.tree_util.tree_flatten_with_path(like)
    wanted = {"/".join(names(path)): leaf for path, leaf in flat}
    wrong = [
        f"{path!r} is not in the checkpoint; {near_misses(path, stored)}"
        for path in wanted
        if path not in stored
    ]
    wrong += [
        f"{path!r} is in the checkpoint only; {near_misses(path, wanted)}"
        for path in stored
        if path not in wanted
    ]
    asked = []
    for path, leaf in wanted.items():
        here, there = _kind(stored.get(path)), _kind(leaf)
        if _is_mask(leaf) and here == _kind(_bits(leaf)):
            asked.append(np.empty(here[0], np.uint8))
            continue
        if isinstance(here, tuple) and becomes(leaf, *here):
            asked.append(np.empty((), here[1]))
            continue
        asked.append(ocp.utils.to_shape_dtype_struct(leaf))
        if path in stored and here != there and None not in (here, there):
            wrong.append(f"{path!r} is {_words(here)} in the checkpoint, {_words(there)} asked for")
    if wrong:
        listed = "\n  ".join(wrong[:5] + [f"and {len(wrong) - 5} more"] * (len(wrong) > 5))
        raise ValueError(f"the checkpoint {folder} does not fit what is asked for:\n  {listed}")
    return jax.tree.unflatten(structure, asked)


def _kind(leaf: Any) -> Any:
    """(shape, dtype) of an array, stored or wanted, the type of a number; None: any."""
    if isinstance(leaf, bool | int | float):
        return np.result_type(type(leaf)).kind
    if leaf is None or not hasattr(leaf, "shape") or leaf.dtype is None:
        return None
    if type(leaf).__name__ == "ScalarMetadata":
        return np.dtype(leaf.dtype).kind
    if jax.numpy.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.eval_shape(jax.random.key_data, leaf)
    return tuple(leaf.shape), np.dtype(leaf.dtype)


def _words(kind: Any) -> str:
    return f"{kind[1].name}{list(kind[0])}" if isinstance(kind, tuple) else _NUMBERS[kind]


_NUMBERS = {"b": "a Python bool", "i": "a Python int", "f": "a Python float", "u": "a Python int"}
