"""EvoPress's search: levels of a whole assignment are switched, and what loses less survives."""

import os

import numpy as np

from jaxsparse.allocation.allocation import Allocation
from jaxsparse.allocation.evaluations import Evaluate, Evaluations, Searched
from jaxsparse.allocation.tables import Costs, Levels, Losses, Table, table
from jaxsparse.trees import near_misses


def evolve(
    losses: Losses,
    costs: Costs,
    budget: float,
    evaluate: Evaluate,
    *,
    levels: Levels,
    start: Allocation | None = None,
    generations: int = 50,
    offspring: int = 8,
    switches: int = 3,
    seed: int = 0,
    file: str | os.PathLike[str] | None = None,
) -> Searched:
    """A (1 + λ) evolution of whole assignments, from the exact answer of the table.

    Each child of the best assignment so far has the levels of some pairs of leaves switched: one
    gets a level denser, another a level sparser. How many is the smaller of two draws from 1 to
    `switches`. Where that passes the budget others get sparser until it does not, and what is
    left of it makes others denser. All children are measured as a whole; the best replaces its
    parent if it loses no more.

    Args:
      losses, costs, budget, levels, evaluate, file: as in `search`.
      start: an allocation of these leaves and levels within the budget; None is `exact`.
      generations: how many.
      offspring: λ, children in a generation.
      switches: at most, in a child.
      seed: of the draws.

    Returns:
      The last parent, with the history.

    Raises:
      ValueError: as `search`; a start that is none.
      TypeError: as `search`.

    Example:
      >>> def evaluate(allocation):
      ...     return 10 * allocation.sparsities["up"] + allocation.sparsities["down"]
      >>> losses, costs = {"up": [0, 1], "down": [0, 2]}, {"up": [2, 1], "down": [2, 1]}
      >>> evolve(losses, costs, 3, evaluate, levels=[0.0, 0.5], generations=2).measured
      0.5

    References:
      EvoPress: Sieberling et al. 2024, arXiv 2410.14649; its steps of selection on growing data
      are not here.
    """
    if generations < 0 or offspring < 1 or switches < 1:
        raise ValueError(
            f"evolve: generations={generations}, offspring={offspring}, switches={switches}: 50, 8 "
            "and 3 would work, and anything from 0, 1 and 1"
        )
    problem = table(losses, costs, budget, levels)
    parent = problem.solve().chosen if start is None else _chosen(problem, start)
    tried = Evaluations(problem, evaluate, file)
    least, draws = tried(parent, "start"), np.random.default_rng(seed)
    switcher = _Switcher(problem)
    for number in range(generations):
        children = [switcher.child(parent, switches, draws) for _ in range(offspring)]
        children = list(dict.fromkeys(child for child in children if child is not None))
        for child in children:
            measured = tried(child, f"generation {number + 1}")
            if measured <= least:
                parent, least = child, measured
    return tried.result(parent, "evolve")


def _chosen(problem: Table, start: Allocation) -> tuple[int, ...]:
    for path in start.sparsities:
        if path not in problem.paths:
            raise ValueError(
                f"evolve: start names {path!r}, which has no losses; "
                f"{near_misses(path, problem.paths)}"
            )
    chosen = []
    for path, shares in zip(problem.paths, problem.levels, strict=True):
        share = start.sparsities.get(path)
        if share not in shares:
            raise ValueError(f"evolve: start has sparsity {share} of {path!r}; levels are {shares}")
        chosen.append(shares.index(share))
    if problem.paid(chosen) > problem.budget:
        raise ValueError(
            f"evolve: start costs {problem.paid(chosen)}, over budget={problem.budget}"
        )
    return tuple(chosen)


class _Switcher:
    """Moves between the levels of leaves, ordered by what they cost."""

    def __init__(self, problem: Table):
        self._problem = problem
        # By leaf its options from the cheapest on; of those that cost the same the best.
        self._ranks = []
        for paid, lost in zip(problem.whole.costs, problem.losses, strict=True):
            order = np.lexsort((lost, paid))
            first = np.append(True, np.diff(paid[order]) > 0)
            self._ranks.append([int(k) for k in order[first]])

    def child(
        self, parent: tuple[int, ...], switches: int, draws: np.random.Generator
    ) -> tuple[int, ...] | None:
        """Another assignment within the budget; None where the draw leads to none."""
        child, denser, sparser = list(parent), set[int](), set[int]()
        for _ in range(int(draws.integers(1, switches + 1, 2).min())):
            self._move(child, 1, draws, denser, sparser)
            self._move(child, -1, draws, sparser, denser)
        while self._problem.over(child):
            if not self._move(child, -1, draws, sparser, denser):
                return None
        for leaf in draws.permutation(len(child)).tolist():  # what is left pays for others
            before = child[leaf]
            if leaf not in sparser and self._step(child, leaf, 1) and self._problem.over(child):
                child[leaf] = before
        return tuple(child) if tuple(child) != parent else None

    def _move(
        self,
        child: list[int],
        step: int,
        draws: np.random.Generator,
        moved: set[int],
        without: set[int],
    ) -> bool:
        """Moves a leaf by a level, none that went the other way; whether there was one."""
        for leaf in draws.permutation(len(child)).tolist():
            if leaf not in without and self._step(child, leaf, step):
                moved.add(leaf)
                return True
        return False

    def _step(self, child: list[int], leaf: int, step: int) -> bool:
        rank = self._rank(leaf, child[leaf]) + step
        if not 0 <= rank < len(self._ranks[leaf]):
            return False
        child[leaf] = self._ranks[leaf][rank]
        return True

    def _rank(self, leaf: int, option: int) -> int:
        costs = self._problem.whole.costs[leaf]
        return next(i for i, k in enumerate(self._ranks[leaf]) if costs[k] >= costs[option])
