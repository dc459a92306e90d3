"""How many units each group keeps under a budget: enumeration, and a dynamic program."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float

Importance = Mapping[str, Float[np.ndarray, " units"]]
Kept = dict[str, Bool[np.ndarray, " units"]]

# The budget that is left is counted in so many steps, where costs have no coarser unit.
STEPS = 10_000


def search_costs(importance: Importance, costs: Mapping[str, float], budget: float) -> Kept:
    """The units with the largest sum of importance whose costs stay within a budget.

    Groups whose units cost the same are of one kind, and within a kind the most important ones
    are kept wherever they are. With one or two kinds every number of the first is tried, with
    as many of the second as the rest pays for: exact. With more it is `knapsack` over kinds.
    Every group keeps one unit at least, as the channel graph has it.

    Args:
      importance: of the units of every group.
      costs: of one unit of every group; units that cost nothing are kept.
      budget: of all units together.

    Raises:
      ValueError: importance that is not finite, a cost that is negative or not finite; where one
        unit of every group costs more than the budget.

    Example:
      >>> importance = {"a": np.array([9.0, 1.0]), "b": np.array([4.0, 5.0, 0.1])}
      >>> kept = search_costs(importance, {"a": 2, "b": 1}, 4)
      >>> {name: units.tolist() for name, units in kept.items()}
      {'a': [True, False], 'b': [True, True, False]}
    """
    _check_importance("search_costs", importance)
    for name in importance:
        _check_cost("search_costs", f"a unit of {name!r}", costs[name])
    kept = {name: np.zeros(len(values), bool) for name, values in importance.items()}
    kinds: dict[float, list[tuple[float, str, int]]] = {}
    left = budget
    for name, values in importance.items():
        first = int(np.argmax(values))
        kept[name][first], left = True, left - costs[name]
        rest = [(values[u], name, u) for u in range(len(values)) if u != first]
        kinds.setdefault(costs[name], []).extend(rest)
    slack = 1e-9 * max(abs(budget), 1)
    if not left >= -slack:
        raise ValueError(f"one unit of every group costs {budget - left:g}, over {budget:g}")
    for free in [cost for cost in kinds if cost == 0]:
        for _, name, unit in kinds.pop(free):
            kept[name][unit] = True
    # From the dearest kind on, of which there are the fewest numbers to try.
    order = sorted(kinds, reverse=True)
    units = [sorted(kinds[cost], key=lambda unit: -unit[0]) for cost in order]
    sums = [np.cumsum([0.0, *(value for value, _, _ in kind)]) for kind in units]
    if len(order) > 2:
        paid = [cost * np.arange(len(total)) for cost, total in zip(order, sums, strict=True)]
        counts = knapsack(paid, sums, left)
    else:
        counts = _enumerated(order, sums, max(left, 0.0), slack)
    for kind, count in zip(units, counts, strict=True):
        for _, name, unit in kind[:count]:
            kept[name][unit] = True
    return kept


def _enumerated(costs: Sequence[float], sums: Sequence[np.ndarray], left: float, slack: float):
    """How many of each of at most two kinds."""
    if not costs:
        return []
    first = np.arange(len(sums[0]))
    first = first[first * costs[0] <= left + slack]
    if len(costs) == 1:
        return [int(first[np.argmax(sums[0][first])])]
    second = np.floor((left + slack - first * costs[0]) / costs[1])
    second = np.clip(second, 0, len(sums[1]) - 1).astype(int)
    best = int(np.argmax(sums[0][first] + sums[1][second]))
    return [int(first[best]), int(second[best])]


def search_table(
    importance: Importance, table: Mapping[tuple[str, int], float], budget: float
) -> Kept:
    """The units with the largest sum of importance whose measured costs stay within a budget.

    Args:
      importance: of the units of every group.
      table: (group, how many units it keeps) to its cost; numbers that are not there are not
        chosen. It need be neither convex nor monotone.
      budget: of all groups together.

    Raises:
      ValueError: importance that is not finite, a cost that is negative or not finite; where the
        cheapest numbers cost more than the budget.

    Example:
      >>> table = {("a", 1): 2.0, ("a", 2): 2.5, ("a", 4): 4.0}
      >>> search_table({"a": np.array([1.0, 3.0, 2.0, 1.0])}, table, 3.0)["a"].tolist()
      [False, True, True, False]
    """
    _check_importance("search_table", importance)
    for (name, count), cost in table.items():
        _check_cost("search_table", f"{name!r} with {count} units", cost)
    costs, values, counts = [], [], []
    for name, found in importance.items():
        counts.append(sorted(count for group, count in table if group == name))
        costs.append(np.array([table[name, count] for count in counts[-1]]))
        total = np.cumsum([0.0, *sorted(found, reverse=True)])
        values.append(total[counts[-1]])
    chosen = knapsack(costs, values, budget)
    kept = {}
    for (name, found), numbers, at in zip(importance.items(), counts, chosen, strict=True):
        kept[name] = np.zeros(len(found), bool)
        kept[name][np.argsort(-found, kind="stable")[: numbers[at]]] = True
    return kept


def _check_importance(caller: str, importance: Importance) -> None:
    for name, values in importance.items():
        if not np.isfinite(values).all():
            units = np.flatnonzero(~np.isfinite(values)).tolist()
            raise ValueError(
                f"{caller}: the importance of units {units[:8]} of {name!r} is "
                f"{np.asarray(values)[units[:8]].tolist()}; finite numbers would work"
            )


def _check_cost(caller: str, what: str, cost: float) -> None:
    if not 0 <= cost < math.inf:
        raise ValueError(f"{caller}: {what} costs {cost!r}; a finite cost from 0 on would work")


def knapsack(
    costs: Sequence[Float[np.ndarray, "_"]],
    values: Sequence[Float[np.ndarray, "_"]],
    budget: float,
    steps: int = STEPS,
) -> list[int]:
    """One option of every list, with the largest sum of values within a budget.

    The best of every list where all of these are paid for. Else a dynamic program over what the
    budget leaves above the cheapest options. Whole costs with a
    common divisor by which that is at most `steps` are exact; others are rounded up to the
    next of `steps` parts of it, so that the budget always holds.

    Args:
      costs, values: of the options of every list.
      budget: of the options that are chosen.
      steps: into which the rest is cut.

    Returns:
      Which option of every list.

    Raises:
      ValueError: where the cheapest options cost more, and a budget that is NaN.

    Example:
      >>> knapsack([np.array([1, 5]), np.array([2, 4])], [np.array([0, 9]), np.array([0, 3])], 8)
      [1, 0]
    """
    least = [float(np.min(paid)) for paid in costs]
    left = budget - sum(least)
    slack = 1e-9 * max(abs(budget), 1)
    if not left >= -slack:
        raise ValueError(f"the cheapest options cost {sum(least):g}, over {budget:g}")
    best_of_all = [int(np.argmax(value)) for value in values]
    if sum(paid[at] for paid, at in zip(costs, best_of_all, strict=True)) <= budget:
        return best_of_all
    above = [np.asarray(paid) - low for paid, low in zip(costs, least, strict=True)]
    step = _step(above, max(left, 0.0), steps)
    # Without a rest only the cheapest are paid for.
    sizes = [
        np.ceil(paid / step - 1e-9) if step else np.where(paid > slack, 1, 0) for paid in above
    ]
    room = int((left + slack) / step) if step else 0
    best, choices = np.zeros(room + 1), []
    for size, value in zip(sizes, values, strict=True):
        new, choice = np.full(room + 1, -np.inf), np.zeros(room + 1, int)
        for option in range(len(value)):
            if size[option] > room:
                continue
            at = int(size[option])
            found = best[: room + 1 - at] + value[option]
            better = found > new[at:]
            new[at:][better], choice[at:][better] = found[better], option
        best = new
        choices.append(choice)
    chosen, at = [], int(np.argmax(best))
    for size, choice in zip(reversed(sizes), reversed(choices), strict=True):
        chosen.append(int(choice[at]))
        at -= int(size[chosen[-1]])
    return chosen[::-1]


def _step(above: Sequence[np.ndarray], left: float, steps: int) -> float:
    """What the costs are counted in."""
    numbers = np.concatenate([*above, [0.0]])
    numbers = numbers[numbers <= left]
    if np.all(numbers == np.round(numbers)) and np.all(numbers < 2**53):
        common = math.gcd(*(int(number) for number in numbers))
        if common and left / common <= steps:
            return common
    return left / steps
