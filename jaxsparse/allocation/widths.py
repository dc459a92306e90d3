"""`exact_widths`: how many units each group keeps, where costs depend on neighbours, too."""

import itertools
import math
import numbers
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from jaxsparse.allocation.allocation import Allocation
from jaxsparse.allocation.costs.flops import Cost
from jaxsparse.allocation.rounding import slack_of, whole_numbers
from jaxsparse.allocation.solving import Solution, cheapest, solve
from jaxsparse.allocation.tables import check_budget
from jaxsparse.trees import near_misses

# So many choices of the groups that are held are tried, all of them, before it is a descent.
MOST = 512

Edge = tuple[int, int]


def exact_widths(
    losses: Mapping[str, Mapping[int, float]], cost: Cost, budget: float
) -> Allocation:
    """The widths with the least sum of losses within a budget of the whole program.

        min Σ_g loss_g(w_g)   with   cost(w) ≤ budget,
        cost(w) = c + Σ_g cost_g(w_g) + Σ_gh cost_gh(w_g, w_h)

    A layer between two groups costs by both of their widths. Which groups meet so is found by
    asking the cost for pairs. Where they form chains, as in networks without branches, the
    optimum is found along them, by partial choices of (group, its width, cost so far). Else some
    groups are held, so that the rest are chains: the optimum again where there are at most 512
    choices of these. With more the held ones are improved one by one, each time with the best
    widths of all others, until none improves: within the budget, but `about["proved"]` is false.
    `about["graph"]` says which of the three it was. Nothing is proved either where the cost is
    not of this form: then widths are lowered until the whole is within the budget.

    Args:
      losses: by unit group how much is lost at each width that it may have, inf forbids one.
        Groups that are not named are whole.
      cost: such as `Flops(fn, params, *inputs)`.
      budget: of `cost.total(widths)`, in its unit.

    Returns:
      The allocation: `widths` for `narrow`, and in `about` loss, cost, budget, `proved`, `graph`.

    Raises:
      ValueError: a group that the cost does not know (streams and pinned groups are none), widths
        outside of 1 to its units, NaN, and a budget that the narrowest widths pass.
      TypeError: widths that are no whole numbers, a budget that is no number.

    Example:
      >>> import jax.numpy as jnp, jaxsparse as js
      >>> def mlp(params, x):
      ...     return jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]) @ params["c"]
      >>> params = {"a": jnp.ones((2, 8)), "b": jnp.ones((8, 8)), "c": jnp.ones((8, 3))}
      >>> flops = js.allocation.Flops(mlp, params, jnp.ones((1, 2)))
      >>> losses = {"a, b": {8: 0.0, 4: 1.0, 2: 3.0}, "b, c": {8: 0.0, 4: 2.0, 2: 9.0}}
      >>> found = exact_widths(losses, flops, 64)
      >>> found.widths, found.about["cost"], found.about["proved"]
      ({'a, b': 4, 'b, c': 8}, 64, True)
    """
    widths, lost = _checked(losses, cost)
    check_budget(budget)
    program = _Program(cost, widths, lost, budget)
    lowered = 0
    while (found := program.solve(lowered)) is not None:
        over = Fraction(program.paid(found.chosen)) - Fraction(budget)
        if over <= 0:
            break
        lowered += math.ceil(over / program.unit)
    chosen = program.narrowest if found is None else found.chosen
    if found is None and (least := program.paid(chosen)) > budget:
        raise ValueError(
            f"budget={budget} is out of reach: with every group at the least of its widths "
            f"{least} is left; a little more than that would work"
        )
    loss = float(sum(values[k] for values, k in zip(lost.values(), chosen, strict=True)))
    proved = found is not None and found.proved
    proved = proved and lowered * program.unit <= program.slack
    proved = proved and program.adds_up(chosen) and program.adds_up(program.narrowest)
    return Allocation(
        widths=dict(zip(widths, map(int, program.widths(chosen)), strict=True)),
        about={"by": "exact_widths", "loss": loss, "cost": program.paid(chosen), "budget": budget,
               "unit": cost.unit, "proved": proved, "graph": program.graph},
    )  # fmt: skip


def _checked(
    losses: Mapping[str, Mapping[int, float]], cost: Cost
) -> tuple[dict[str, tuple[int, ...]], dict[str, np.ndarray]]:
    if not losses:
        raise ValueError("losses is empty; by group a loss for each of its widths would work")
    widths, lost = {}, {}
    for name, given in losses.items():
        if name not in cost.units:
            raise ValueError(
                f"losses of {name!r}, which is no group of units (a residual stream, or one that "
                f"is pinned, is none); {near_misses(name, cost.units)}"
            )
        for width, loss in given.items():
            if isinstance(width, bool) or not isinstance(width, numbers.Integral):
                raise TypeError(f"losses[{name!r}]: the width {width!r} is no whole number")
            if not 1 <= width <= cost.units[name]:
                raise ValueError(f"losses[{name!r}]: width {width} is not in 1 to its units, "
                                 f"{cost.units[name]}")  # fmt: skip
            if not isinstance(loss, numbers.Real) or math.isnan(loss) or loss == -math.inf:
                raise ValueError(f"losses[{name!r}][{width}] is {loss!r}; a number would work")
        free = {int(width): float(loss) for width, loss in given.items() if loss < math.inf}
        if not free:
            raise ValueError(f"losses[{name!r}] is {dict(given)}; a width and its loss would work")
        widths[name], lost[name] = tuple(free), np.array(list(free.values()))
    return widths, lost


class _Program:
    """What widths lose and cost, alone and in pairs, and which groups meet."""

    def __init__(
        self,
        cost: Cost,
        widths: Mapping[str, Sequence[int]],
        lost: Mapping[str, np.ndarray],
        budget: Any,
    ):
        self._cost, self._names, self._widths = cost, list(widths), list(widths.values())
        self._lost = list(lost.values())
        whole = cost.total()
        single = [
            [cost.total({name: w}) - whole for w in options]
            for name, options in zip(self._names, self._widths, strict=True)
        ]
        pairs: dict[Edge, list[list[Any]]] = {}
        for edge in itertools.combinations(range(len(self._names)), 2):
            if self._meet(edge, single, whole):
                rows, columns = map(self._options, edge)
                pairs[edge] = [
                    [self._both(edge, (i, j), single, whole) for j in columns] for i in rows
                ]
        self.slack = slack_of(whole)
        left = Fraction(budget) - Fraction(whole) + self.slack
        numbers_ = whole_numbers([*single, *pairs.values()], left)
        self.unit, self._budget = numbers_.unit, numbers_.budget
        self._single = numbers_.costs[: len(single)]
        self._pairs = dict(zip(pairs, numbers_.costs[len(single) :], strict=True))
        self._exact = [whole, single, pairs]
        self._held = _held(len(self._names), list(pairs))
        self._tries = math.prod(len(self._widths[g]) for g in self._held)
        self.graph = "chains"
        if self._held:
            names = ", ".join(self._names[g] for g in self._held)
            how = "every choice" if self._tries <= MOST else "a descent"
            self.graph = f"no chains: {how} of {names}"

    @property
    def narrowest(self) -> tuple[int, ...]:
        """Every group at the least of its widths."""
        return tuple(int(np.argmin(options)) for options in self._widths)

    def widths(self, chosen: Sequence[int]) -> list[int]:
        """Of every group."""
        return [options[k] for options, k in zip(self._widths, chosen, strict=True)]

    def paid(self, chosen: Sequence[int]) -> int | float:
        """What a choice costs in truth."""
        return self._cost.total(dict(zip(self._names, self.widths(chosen), strict=True)))

    def adds_up(self, chosen: Sequence[int]) -> bool:
        """Whether a choice costs what its parts cost together."""
        whole, single, pairs = self._exact
        parts = [whole, *(paid[k] for paid, k in zip(single, chosen, strict=True))]
        parts += [paid[chosen[a]][chosen[b]] for (a, b), paid in pairs.items()]
        return math.isclose(sum(parts), self.paid(chosen), rel_tol=1e-9)

    def solve(self, lowered: int) -> Solution | None:
        """The best choice by the parts, within a lower budget; None where there is none."""
        if self._tries <= MOST:
            return self._best(itertools.product(*map(self._options, self._held)), lowered)
        # From widths that are all much alike to better ones, group by group.
        levels = [tuple(self._near(g, share) for g in self._held) for share in np.linspace(0, 1, 9)]
        best = self._best(iter(levels), lowered)
        while best is not None:
            before = best
            for at, g in enumerate(self._held):
                now = [best.chosen[h] for h in self._held]
                others = ((*now[:at], k, *now[at + 1 :]) for k in self._options(g))
                best = min(best, self._best(others, lowered) or best, key=_order)
            if _order(best) == _order(before):
                return best._replace(bound=-np.inf)
        return None

    def _options(self, group: int) -> range:
        return range(len(self._widths[group]))

    def _near(self, group: int, share: float) -> int:
        widths = np.array(self._widths[group])
        low, high = widths.min(), widths.max()
        return int(np.argmin(np.abs(widths - (low + share * (high - low)))))

    def _best(self, tries: Iterator[tuple[int, ...]], lowered: int) -> Solution | None:
        found = [self._rest(dict(zip(self._held, each, strict=True)), lowered) for each in tries]
        within = [each for each in found if each is not None]
        if not within:
            return None
        best = min(within, key=_order)
        return best._replace(bound=min(each.bound for each in within))

    def _rest(self, held: Mapping[int, int], lowered: int) -> Solution | None:
        """The best choice with some groups held; None where that is over the budget."""
        single = {g: paid.copy() for g, paid in enumerate(self._single)}
        fixed = sum(int(single[g][k]) for g, k in held.items())
        edges: dict[Edge, np.ndarray] = {}
        for (a, b), paid in self._pairs.items():
            if a in held and b in held:
                fixed += int(paid[held[a], held[b]])
            elif a in held:
                single[b] += paid[held[a]]
            elif b in held:
                single[a] += paid[:, held[b]]
            else:
                edges[a, b] = paid
                edges[b, a] = paid.T
        lost = float(sum(self._lost[g][k] for g, k in held.items()))
        order = _along([g for g in single if g not in held], edges)
        steps = [None, *(edges.get(ends) for ends in itertools.pairwise(order))]
        budget, costs = self._budget - lowered - fixed, [single[g] for g in order]
        if not order:
            whole = tuple(held[g] for g in range(len(held)))
            return Solution(whole, lost, fixed, lost) if budget >= 0 else None
        if cheapest(costs, steps) > budget:
            return None
        found = solve([self._lost[g] for g in order], costs, budget, steps)
        chosen = dict(held) | dict(zip(order, found.chosen, strict=True))
        return Solution(
            tuple(chosen[g] for g in range(len(chosen))),
            found.loss + lost,
            found.cost + fixed,
            found.bound + lost,
        )

    def _meet(self, edge: Edge, single: list[list[Any]], whole: Any) -> bool:
        """Whether what two groups cost together is not what they cost one by one."""
        ends = []
        for g in edge:
            order = np.argsort(self._widths[g])
            ends.append((int(order[0]), int(order[len(order) // 2])))
        return any(
            abs(self._both(edge, (i, j), single, whole)) > 1e-9 * abs(whole)
            for i, j in {(ends[0][0], ends[1][0]), (ends[0][1], ends[1][0]),
                         (ends[0][0], ends[1][1])}
        )  # fmt: skip

    def _both(self, edge: Edge, ends: tuple[int, int], single: list[list[Any]], whole: Any) -> Any:
        (a, b), (i, j) = edge, ends
        widths = {self._names[a]: self._widths[a][i], self._names[b]: self._widths[b][j]}
        return self._cost.total(widths) - whole - single[a][i] - single[b][j]


def _order(found: Solution) -> tuple[float, int]:
    return found.loss, found.cost


def _held(groups: int, edges: Sequence[Edge]) -> list[int]:
    """Groups without which the others form chains: always the one with the most neighbours."""
    held: list[int] = []
    while True:
        left = [edge for edge in edges if not set(edge) & set(held)]
        near = {g: sum(g in edge for edge in left) for g in range(groups) if g not in held}
        many = max(near.values(), default=0)
        if many <= 2:
            ring = _ring(left)
            if ring is None:
                return held
            held.append(ring)
        else:
            held.append(next(g for g, n in near.items() if n == many))


def _ring(edges: Sequence[Edge]) -> int | None:
    """A group on a ring of edges, None where there is none."""
    parts: dict[int, int] = {}

    def part(g: int) -> int:
        while parts.setdefault(g, g) != g:
            g = parts[g]
        return g

    for a, b in edges:
        if part(a) == part(b):
            return a
        parts[part(a)] = part(b)
    return None


def _along(groups: Sequence[int], edges: Mapping[Edge, Any]) -> list[int]:
    """Groups so that those that meet are next to each other."""
    near = {g: [b for a, b in edges if a == g] for g in groups}
    found: list[int] = []
    for end in sorted(groups, key=lambda g: (len(near[g]), g)):
        g: int | None = end
        while g is not None and g not in found:
            found.append(g)
            g = next((b for b in near[g] if b not in found), None)
    return found
