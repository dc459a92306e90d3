"""One iteration of NetAdapt: proposals are narrowed, tuned and compared, and one goes on."""

import dataclasses
import math
import numbers
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxsparse.allocation.narrowing import Score, keep_largest, unit_masks, unit_scores
from jaxsparse.allocation.netadapt.progress import Network, Progress
from jaxsparse.allocation.netadapt.rules import Candidate, Choice, choose, in_question
from jaxsparse.allocation.netadapt.tuning import Tune
from jaxsparse.graph import Structure
from jaxsparse.pruning.masking import mask_params
from jaxsparse.trees import Tree


@dataclasses.dataclass(frozen=True)
class State:
    """Where a search is.

    Attributes:
      widths: of all groups.
      cost, accuracy: of the network.
      last: the candidate that it was, None of the whole one.
      network: None where the folder alone has it.
    """

    widths: Mapping[str, int]
    cost: float
    accuracy: float
    last: Candidate | None
    network: Network | None


class Search:
    """Tries candidates, each once, whatever was killed between.

    Args:
      structure: the units.
      evaluate, tune, score, choice, on_candidate: as in `netadapt`.
    """

    def __init__(
        self,
        structure: Structure,
        evaluate: Callable[[Tree], float],
        tune: Tune | None,
        score: Score,
        choice: Choice,
        on_candidate: Callable[[Candidate], Any] | None,
    ):
        self._structure, self._evaluate, self._tune = structure, evaluate, tune
        self._score: Score = score
        self._choice: Choice = choice
        self._tell = on_candidate

    def accuracy(self, params: Tree, of: str) -> float:
        """What `evaluate` says; a ValueError names what it is of, if it is no number."""
        given = self._evaluate(params)
        if np.shape(given) or not isinstance(given, numbers.Real | np.ndarray | jax.Array):
            shown = f"an array of shape {np.shape(given)}" if np.shape(given) else repr(given)
            raise TypeError(f"netadapt: evaluate gives {shown} for {of}; one number would work")
        if not math.isfinite(found := float(given)):
            raise ValueError(
                f"netadapt: evaluate gives {found} for {of}; a finite number would work"
            )
        return found

    def tuned(self, network: Network, steps: range, of: str) -> tuple[Network, float]:
        """A network after some steps of training, and its accuracy."""
        masks = unit_masks(self._structure, network.params, network.kept)
        params = mask_params(network.params, masks)
        if steps and self._tune is not None:
            params = mask_params(self._tune(params, masks, steps), masks)
        return Network(params, network.kept), self.accuracy(params, of)

    def finished(self, state: State, steps: range, progress: Progress) -> tuple[Network, float]:
        """The last network after the long tuning, and its accuracy."""
        if progress.final is not None:
            return progress.network(None), progress.final
        network = state.network or progress.network(state.last)
        if state.last is None or not steps:
            return network, state.accuracy
        network, accuracy = self.tuned(network, steps, "the network after the long tuning")
        progress.finish(accuracy, network)
        return network, accuracy

    def iterate(
        self, proposals: Sequence[Candidate], state: State, steps: range, progress: Progress
    ) -> tuple[list[Candidate], State]:
        """Tunes what can be chosen of an iteration's proposals, and chooses.

        Returns:
          All proposals with what became of them, and the state that the next iteration begins
          with.

        Raises:
          RuntimeError: none makes the network cheaper.
        """
        begun, best, network = state.network, None, None
        done: dict[str, Candidate] = {}
        for each in in_question(proposals, self._choice, state.cost):
            found, accuracy = None, progress.tried(each)
            if new := accuracy is None:
                begun = begun or progress.network(state.last)
                of = f"{each.group!r} at width {each.width} in iteration {each.iteration}"
                found, accuracy = self.tuned(self._narrowed(begun, each), steps, of)
            each = done[each.group] = dataclasses.replace(each, accuracy=accuracy)
            if choose([*done.values()], self._choice, state.cost, state.accuracy) is each:
                best, network = each, found
            if new:
                progress.add(each, found if best is each else None)
                progress.forget_but([state.last, best])
                if self._tell is not None:
                    self._tell(each)
        if best is None:
            raise RuntimeError(
                f"netadapt: no group alone makes the network cheaper than {state.cost:g}, which "
                f"is over the budget; with widths {dict(state.widths)} a smaller divisor= or "
                "lowest=, or a larger budget, would work"
            )
        rows = [done.get(each.group, each) for each in proposals]
        rows = [dataclasses.replace(each, chosen=each is best) for each in rows]
        widths = {**state.widths, best.group: best.width}
        accuracy = state.accuracy if best.accuracy is None else best.accuracy
        return rows, State(widths, best.cost, accuracy, best, network)

    def _narrowed(self, network: Network, candidate: Candidate) -> Network:
        name = candidate.group
        group = tuple(group for group in self._structure.groups if group.name == name)
        scores = unit_scores(Structure(group), network.params, self._score)
        # Units that are gone are zero, but so may be some that are there.
        scores[name] = np.where(network.kept[name], scores[name], -np.inf)
        return Network(network.params, network.kept | keep_largest(scores, {name: candidate.width}))
