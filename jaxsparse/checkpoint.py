"""The whole training state on disk, written while training goes on.

A thin layer over orbax: one call saves, one restores, and what a killed process
left half-written is never seen, because orbax commits a step by renaming it.
"""

import pathlib
from typing import Any

import jax
import orbax.checkpoint as ocp

Tree = Any


class Checkpointer:
    """Saves and restores trees of arrays by step.

    Weights, optimizer state (masks, scores and counters in it), PRNG keys: any
    pytree. The data pipeline should be a function of the step, then a resumed run
    is the uninterrupted one bit for bit.

    Args:
      directory: made if missing.
      every: `save` does nothing at steps that this does not divide.
      keep: how many of the latest steps stay; None keeps all.

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
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(pathlib.Path(directory).absolute(), options=options)

    def save(self, step: int, state: Tree, *, force: bool = False) -> bool:
        """Copies the state to the host and returns; the disk is written meanwhile.

        Returns whether this step is saved. `force` saves whatever `every` says.
        """
        due = force or step % self._every == 0
        if not due or step == self._manager.latest_step():
            return False
        return self._manager.save(step, args=ocp.args.StandardSave(state), force=True)

    def restore_latest(self, like: Tree) -> tuple[int, Tree] | None:
        """Returns (step, state) of the latest step on disk, None if there is none.

        Args:
          like: a tree of the same structure, shapes, dtypes and shardings; arrays or
            `jax.ShapeDtypeStruct`.

        Raises:
          ValueError: if the checkpoint does not fit `like`.
        """
        self.wait()
        step = self._manager.latest_step()
        if step is None:
            return None
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return step, self._manager.restore(step, args=ocp.args.StandardRestore(abstract))

    def wait(self) -> None:
        """Blocks until what was saved is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Waits, then lets go of the directory."""
        self._manager.close()

    def __enter__(self) -> "Checkpointer":
        return self

    def __exit__(self, *error) -> None:
        self.close()
