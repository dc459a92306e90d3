"""SPDY's search: how much each layer's loss weighs is varied until the whole model loses least."""

import os

import numpy as np

from jaxsparse.allocation.evaluations import Evaluate, Evaluations, Searched
from jaxsparse.allocation.tables import Costs, Levels, Losses, table


def search(
    losses: Losses,
    costs: Costs,
    budget: float,
    evaluate: Evaluate,
    *,
    levels: Levels,
    random: int = 100,
    patience: int = 100,
    share: float = 0.1,
    seed: int = 0,
    file: str | os.PathLike[str] | None = None,
) -> Searched:
    """Exact allocations for loss_l c_l, with the coefficients c under which the model loses least.

    Losses of layers add up only roughly. So c is searched, and each candidate is the optimum of
    its table within the budget. First come all c_l = 1 (`exact`) and `random` draws of
    c_l ~ U(0, 1); of the best so far round(share L) coefficients are then drawn again until
    `patience` draws in a row were no better, then one fewer, down to one.

    Args:
      losses, costs, budget, levels: as in `exact`.
      evaluate: called with an `Allocation`: what the model then loses, as a float, less is
        better: prune by it, run the model on some batches. Always the same for the same one.
      random: how many first draws.
      patience: how many draws in a row may be no better.
      share: of coefficients that are drawn again, in (0, 1].
      seed: of the draws.
      file: where what is measured is kept, as lines of JSON. The same call after a kill goes on
        from it, and so does one with other losses, another budget or more draws, but not
        one of other leaves or levels, which is refused. Of another `evaluate` it knows nothing.

    Returns:
      The best allocation of all that were measured, with its history.

    Raises:
      ValueError: as `exact`; options out of range, an `evaluate` that returns NaN, a file of
        another search.
      TypeError: as `exact`; an `evaluate` that returns no number.

    Example:
      >>> def evaluate(allocation):  # in truth the first layer is what matters
      ...     return 10 * allocation.sparsities["up"] + allocation.sparsities["down"]
      >>> losses, costs = {"up": [0, 1], "down": [0, 2]}, {"up": [2, 1], "down": [2, 1]}
      >>> search(losses, costs, 3, evaluate, levels=[0.0, 0.5]).allocation.sparsities
      {'up': 0.0, 'down': 0.5}

    References:
      SPDY: Frantar & Alistarh 2022, arXiv 2201.13096, section 3.3.
    """
    if random < 0 or patience < 1 or not 0 < share <= 1:
        raise ValueError(
            f"search: random={random}, patience={patience}, share={share}: 100, 100 and 0.1 would "
            "work, and anything from 0, from 1 and in (0, 1]"
        )
    problem = table(losses, costs, budget, levels)
    size = len(problem.paths)
    chosen, factors = problem.solve().chosen, np.ones(size)
    tried = Evaluations(problem, evaluate, file)
    least, draws = tried(chosen, "exact"), np.random.default_rng(seed)

    def better(candidate: np.ndarray, stage: str) -> bool:
        nonlocal chosen, factors, least
        found = problem.solve(candidate).chosen
        measured = tried(found, stage)
        if not measured < least:
            return False
        chosen, factors, least = found, candidate, measured
        return True

    for _ in range(random):
        better(draws.random(size), "random")
    again = max(round(share * size), 1)
    while again:
        for _ in range(patience):
            candidate = factors.copy()
            candidate[draws.choice(size, again, replace=False)] = draws.random(again)
            if better(candidate, f"{again} again"):
                break
        else:
            again -= 1
    return tried.result(chosen, "search")
