"""A folder that NetAdapt goes on from: every candidate, and the parameters of the best so far."""

import contextlib
import json
import math
import pathlib
import zipfile
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool

from jaxsparse.allocation.jsons import parsed
from jaxsparse.allocation.netadapt.rules import Candidate
from jaxsparse.files import replacing
from jaxsparse.graph.hosts import placed_as, whole
from jaxsparse.text import finite, shorten
from jaxsparse.text import whole as whole_number
from jaxsparse.trees import Tree, leaves_by_path, replace_by_path

FORMAT = 1
NAME = "netadapt.json"
# An evaluation that sums in another order is the same one.
_SAME = 1e-3
_UNREADABLE = (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile)


class Network(NamedTuple):
    """A network that is searched on from.

    Attributes:
      params: +0 in the units that are gone.
      kept: whether each unit is there, by group.
    """

    params: Tree
    kept: dict[str, Bool[np.ndarray, " units"]]


class Progress:
    """What a run has tried.

    Args:
      folder: that is held. None keeps nothing.
      run: fingerprints of what the result follows from, by what they are of.
      accuracy: of the whole network.
      dense: the whole network.

    Attributes:
      final: accuracy after the long tuning, once there is one.

    Raises:
      ValueError: the folder holds another run, or what is no run; parameters that are keys.
    """

    def __init__(
        self,
        folder: str | pathlib.Path | None,
        run: Mapping[str, Any],
        accuracy: float,
        dense: Network,
    ):
        self.final: float | None = None
        self._rows: dict[tuple[int, str], Candidate] = {}
        self._head = {"format": FORMAT, **run, "accuracy": accuracy}
        self._dense, self._folder = dense, None
        if folder is None:
            return
        for path, leaf in leaves_by_path(dense.params).items():
            if hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jax.dtypes.extended):
                raise ValueError(
                    f"netadapt: {path!r} is of {leaf.dtype}, which folder= cannot keep; parameters "
                    "without random state would work"
                )
        self._folder = pathlib.Path(folder)
        self._open()

    def _open(self) -> None:
        assert self._folder is not None
        path = self._folder / NAME
        try:
            held = parsed(path.read_bytes())
            rows = [_candidate(row) for row in held.pop("candidates")]
            self.final = held.pop("final")
            if self.final is not None:
                finite("final", self.final)
        except FileNotFoundError:
            if any(self._folder.glob("*.npz")):
                raise ValueError(
                    f"netadapt: {self._folder} has arrays, but no {NAME}: an empty folder would "
                    "work"
                ) from None
            self._write()
            return
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"netadapt: {path} cannot be read: {error}") from error
        if other := [name for name in self._head if not _alike(held.get(name), self._head[name])]:
            raise ValueError(
                f"netadapt: {self._folder} holds another run, with another "
                f"{' and another '.join(other)}; an empty folder would work"
            )
        self._rows = {(row.iteration, row.group): row for row in rows}

    def tried(self, candidate: Candidate) -> float | None:
        """The accuracy of a candidate that an earlier call tuned; None of others.

        Raises:
          ValueError: what was tried then is another one.
        """
        row = self._rows.get((candidate.iteration, candidate.group))
        if row is None:
            return None
        if (row.width, row.cost, row.target) != (candidate.width, candidate.cost, candidate.target):
            raise ValueError(
                f"netadapt: {self._folder} holds another run: in iteration {row.iteration} it took "
                f"{row.group!r} to width {row.width} and cost {row.cost}, here it is "
                f"{candidate.width} and {candidate.cost}; an empty folder would work"
            )
        return row.accuracy

    def add(self, candidate: Candidate, network: Network | None) -> None:
        """Keeps what a candidate came to; its network, if it is the best of its iteration."""
        self._rows[candidate.iteration, candidate.group] = candidate
        if self._folder is None:
            return
        if network is not None:
            self._save(self._path(candidate), network)
        self._write()

    def finish(self, accuracy: float, network: Network) -> None:
        """Keeps what the long tuning came to."""
        self.final = accuracy
        if self._folder is not None:
            self._save(self._folder / "final.npz", network)
            self._write()

    def forget_but(self, candidates: Sequence[Candidate | None]) -> None:
        """Removes the networks of all other candidates."""
        if self._folder is not None:
            stay = {self._path(each) for each in candidates if each is not None}
            for path in self._folder.glob("candidate-*.npz"):
                if path not in stay:
                    path.unlink()

    def network(self, candidate: Candidate | None) -> Network:
        """The network of a candidate that was kept; of none, the one after the long tuning."""
        assert self._folder is not None
        path = self._folder / "final.npz" if candidate is None else self._path(candidate)
        try:
            with np.load(path) as file:
                held = {name: file[name] for name in file.files}
            kept = {name: held[f"kept/{name}"] for name in self._dense.kept}
            leaves = {}
            for at, leaf in leaves_by_path(self._dense.params).items():
                if hasattr(leaf, "dtype"):
                    found = held[f"leaf/{at}"].view(leaf.dtype).reshape(leaf.shape)
                    leaves[at] = placed_as(jnp.asarray(found), leaf)
        except _UNREADABLE as error:
            raise ValueError(
                f"netadapt: {path} cannot be read ({error}); an empty folder would work"
            ) from error
        return Network(replace_by_path(self._dense.params, leaves), kept)

    def _path(self, candidate: Candidate) -> pathlib.Path:
        assert self._folder is not None
        number = list(self._dense.kept).index(candidate.group)
        return self._folder / f"candidate-{candidate.iteration}-{number}.npz"

    def _save(self, path: pathlib.Path, network: Network) -> None:
        arrays: dict[str, Any] = {f"kept/{name}": kept for name, kept in network.kept.items()}
        for at, leaf in leaves_by_path(network.params).items():
            if hasattr(leaf, "dtype"):
                # As bytes: the file knows no bfloat16.
                arrays[f"leaf/{at}"] = np.ascontiguousarray(whole(leaf)).reshape(-1).view(np.uint8)
        with replacing(path) as file:
            np.savez(file, allow_pickle=False, **arrays)

    def _write(self) -> None:
        assert self._folder is not None
        rows = [row.to_dict() for row in self._rows.values()]
        held = self._head | {"candidates": rows, "final": self.final}
        with replacing(self._folder / NAME) as file:
            file.write(json.dumps(held, indent=1).encode())


def _candidate(row: Any) -> Candidate:
    """A row of the file; ValueError or TypeError for what is none."""
    found = Candidate(**row)
    for name in ("iteration", "width"):
        whole_number(f"candidates: {name}", getattr(found, name), 1, 2**63 - 1)
    for name in ("cost", "target", "accuracy"):
        finite(f"candidates: {name}", getattr(found, name))
    if not isinstance(found.group, str):
        raise ValueError(f"field 'candidates: group': {shorten(found.group)} is no name")
    return found


def _alike(held: Any, mine: Any) -> bool:
    if isinstance(mine, float) and isinstance(held, int | float):
        return math.isclose(held, mine, rel_tol=_SAME)
    with contextlib.suppress(TypeError, ValueError):
        return held == json.loads(json.dumps(mine))
    return False
