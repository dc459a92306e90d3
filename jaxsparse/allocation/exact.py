"""`exact`: the sparsities with the least loss within a budget, by tables of both."""

from jaxsparse.allocation.allocation import Allocation
from jaxsparse.allocation.tables import Costs, Levels, Losses, table


def exact(
    losses: Losses, costs: Costs, budget: float, *, levels: Levels, buckets: int | None = None
) -> Allocation:
    """The best sparsity of every leaf by tables of what they lose and cost.

        min Σ_l loss_l(s_l)   with   Σ_l cost_l(s_l) ≤ budget

    over all choices of a level s_l for each leaf l: a knapsack with a choice in every class. It
    is solved exactly, leaf by leaf, with bounds by which most partial choices go at once
    (`solving`). `about["proved"]` says so. Where more partial choices are left than memory is
    spent on, it is false, and no choice loses less than `about["bound"]`. The budget always holds,
    to the last multiplication or byte.

    An optimum of the table is as good as the table: losses of layers add up only roughly.
    `search` and `evolve` go on with what the whole model loses.

    Args:
      losses: by path what the leaf loses at each of its levels, in any unit; inf forbids one.
      costs: by path what it costs at each; or a cost such as `Flops(fn, params, *inputs)`, which
        is asked for its total with each leaf sparse by itself, and with all of them in the end:
        where that is not the sum, the budget holds, but nothing is proved. It is asked with
        densities 1 - s: for groups, levels that are whole numbers of them keep just that.
      budget: of the costs of all leaves, whose exact sum is rounded once (`math.fsum`); with a
        cost of the whole program, in its unit.
      levels: the sparsities, in [0, 1): for all leaves, or by path.
      buckets: cuts the budget as SPDY does. Costs are rounded up to whole buckets, so
        that the budget holds (the source rounds to the nearest and may pass it), and what is
        found is the best for these. Without them there is nothing to round.

    Returns:
      The allocation, with `loss`, `cost`, `budget` and `proved` in its `about`.

    Raises:
      ValueError: a budget that the cheapest levels pass, tables of different leaves or lengths,
        NaN; path and value are quoted.
      TypeError: a budget that is no number, costs that are neither of both.
      KeyError: a leaf that the cost does not know.

    Example:
      >>> losses = {"up": [0.0, 1.0, 5.0], "down": [0.0, 2.0, 9.0]}
      >>> costs = {"up": [8, 4, 2], "down": [8, 4, 2]}
      >>> found = exact(losses, costs, 8, levels=[0.0, 0.5, 0.75])
      >>> found.sparsities, found.about["loss"], found.about["proved"]
      ({'up': 0.5, 'down': 0.5}, 3.0, True)

    References:
      SPDY: Frantar & Alistarh 2022, arXiv 2201.13096.
    """
    problem = table(losses, costs, budget, levels, buckets)
    found = problem.solve()
    proved = found.proved and (buckets is None or problem.whole.exact)
    proved = proved and problem.adds_up(found.chosen) and problem.adds_up(problem.lowest)
    known = buckets is None and found.bound > float("-inf")
    bound = {"bound": found.bound} if known and not proved else {}
    return problem.allocation(found.chosen, by="exact", proved=proved, **bound)
