"""How much each block of a deep model gives: distributions that look at where a leaf stands.

A block is what an expression says of a path, such as a layer of a transformer, and all leaves
of a block get one sparsity. What a bound takes from one block goes to the others, so that the
leaves together, counted in weights, end at the sparsity asked for.
"""

import dataclasses
import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import numpy as np

from jaxsparse.patterns.base import check_sparsity
from jaxsparse.patterns.rules import LeafSpec, Rule, check_rules, resolve
from jaxsparse.pruning.distributions import Distribution, known_target
from jaxsparse.trees import Tree, leaves_by_path, near_misses

FIRST_NUMBER = r"(\D*\d+).*"
MAXIMUM = 0.98


@dataclasses.dataclass(frozen=True)
class ByBlock(Distribution):
    """Base: a number for every block says how its sparsity differs from the others'.

    Attributes:
      blocks: regular expression that every path matches; what its groups capture is the block.
      maximum: sparsity that no leaf ends above.
      numbers: (block, number), None for the place of the block in the order of the model.
      how: "add" the numbers to a common sparsity, or "multiply" it by them.
    """

    blocks: str = FIRST_NUMBER
    maximum: float = MAXIMUM
    numbers: tuple[tuple[str, float], ...] | None = None
    how: Literal["add", "multiply"] = "add"

    def __post_init__(self):
        check_sparsity("maximum", self.maximum)

    def relative(self, blocks: Sequence[str]) -> dict[str, float]:
        """The number of each of the blocks that are to be pruned."""
        known = dict(self.numbers or ())
        for block in blocks:
            if block not in known:
                raise ValueError(
                    f"the distribution has not seen block {block!r}; {near_misses(block, known)}"
                )
        return {block: known[block] for block in blocks}

    def fill(self, sparsity: float, specs: Sequence[LeafSpec]) -> dict[str, float]:
        if sparsity > self.maximum:
            raise ValueError(
                f"sparsity {sparsity} is out of reach with every leaf at most at "
                f"maximum={self.maximum}"
            )
        places = blocks_of(self.blocks, [spec.path for spec in specs])
        numbers = self.relative(in_order(set(places.values())))
        sizes = {spec.path: math.prod(spec.view.shape) for spec in specs}
        budget = sparsity * sum(sizes.values())

        def at(level: float) -> dict[str, float]:
            found = {}
            for path, block in places.items():
                number = numbers[block]
                share = level + number if self.how == "add" else level * number
                found[path] = min(max(share, 0.0), self.maximum)
            return found

        # More of the level is more of everything, until all are at the maximum.
        span = max(map(abs, numbers.values()), default=0.0)
        low = -1 - span if self.how == "add" else 0.0
        high = 1 + span if self.how == "add" else 1 / min(numbers.values(), default=1.0)
        for _ in range(100):
            middle = (low + high) / 2
            found = at(middle)
            enough = sum(sizes[path] * share for path, share in found.items()) >= budget
            low, high = (low, middle) if enough else (middle, high)
        return at(high)


@dataclasses.dataclass(frozen=True)
class _Progression(ByBlock):
    step: float = 0.0

    def relative(self, blocks: Sequence[str]) -> dict[str, float]:
        return {block: self.step * place for place, block in enumerate(blocks)}


def arithmetic_progression(
    step: float, *, blocks: str = FIRST_NUMBER, maximum: float = MAXIMUM
) -> Distribution:
    """Later blocks are sparser than earlier ones by so much each; no statistics.

        s_l = s + step (l - (L - 1) / 2)

    for the L blocks of one size; for others the middle moves, so that the weights together end at
    s. From arXiv 2502.14770, whose authors find the step by a few trials.

    Args:
      step: what a block has more than the one before it; 0 is `uniform`.
      blocks: regular expression that the path of every leaf matches, whose groups capture the
        block; numbers in it count as numbers. By default all up to the first number.
      maximum: sparsity that no leaf ends above; others take what it leaves over, as they do of
        what would be below zero.

    Raises:
      ValueError: as `targets` is computed, on a leaf that the expression does not match, on
        leaves that are all in one block, and on a sparsity above the maximum.

    Example:
      >>> import jax, jaxsparse as js
      >>> params = {f"layer{i}": jax.numpy.ones((4, 4)) for i in range(3)}
      >>> rules = [js.Rule(".*", js.Unstructured())]
      >>> found = js.targets(rules, params, 0.5, arithmetic_progression(0.25))
      >>> {path: round(share, 6) for path, share in found.items()}
      {'layer0': 0.25, 'layer1': 0.5, 'layer2': 0.75}
    """
    if not math.isfinite(step):
        raise ValueError(f"arithmetic_progression: step={step} is no number; 0.01 would work")
    return _Progression(blocks, maximum, step=step)


def alpha_pruning(
    rules: Sequence[Rule],
    params: Tree,
    *,
    spread: float = 0.3,
    blocks: str = FIRST_NUMBER,
    maximum: float = MAXIMUM,
) -> Distribution:
    """Blocks whose spectra have heavy tails keep more: Lu et al. 2024, arXiv 2410.10912.

    The n larger half of the eigenvalues of WᵀW, e_0 the least of them, has the exponent
    (Hill's estimate)

        alpha = 1 + n / sum_i ln(e_i / e_0)

    The mean over the leaves of a block maps linearly to [1 - spread, 1 + spread], which the
    sparsities are proportional to. A stack of kernels counts by the mean of its exponents.

    Args:
      rules, params: what is to be pruned; weights are looked at once, as they are here.
      spread: 0 to 1, without 1; 0 is `uniform`.
      blocks: as in `arithmetic_progression`; r"(.*)" makes every leaf a block of its own.
      maximum: sparsity that no leaf ends above, where the source has none.

    Raises:
      ValueError: on weights without enough eigenvalues above zero, or that are not finite; and
        as `arithmetic_progression`.

    Example:
      >>> import jax, jaxsparse as js
      >>> keys = jax.random.split(jax.random.key(0), 2)
      >>> params = {f"layer{i}": jax.random.normal(key, (8, 8)) for i, key in enumerate(keys)}
      >>> rules = [js.Rule(".*", js.Unstructured())]
      >>> found = js.targets(rules, params, 0.5, alpha_pruning(rules, params))
      >>> sorted(round(share, 6) for share in found.values())
      [0.35, 0.65]
    """
    if not 0 <= spread < 1:
        raise ValueError(f"alpha_pruning: spread={spread} is not in [0, 1); 0.3 would work")
    specs = resolve(check_rules(rules), params)
    leaves, exponents = leaves_by_path(params), {}
    for path, spec in specs.items():
        if known_target(spec) is None:
            weight = np.asarray(leaves[path])
            kernels = spec.view.matrix(weight).reshape(-1, *spec.view.matrix_shape)
            exponents[path] = float(np.mean([_exponent(path, kernel) for kernel in kernels]))
    return from_exponents(exponents, spread=spread, blocks=blocks, maximum=maximum)


def from_exponents(
    exponents: Mapping[str, float], *, spread: float, blocks: str, maximum: float
) -> ByBlock:
    """`alpha_pruning` for exponents by path that are there already."""
    groups: dict[str, list[float]] = {}
    for path, block in blocks_of(blocks, list(exponents)).items():
        groups.setdefault(block, []).append(exponents[path])
    means = {block: float(np.mean(found)) for block, found in groups.items()}
    least, most = min(means.values(), default=0.0), max(means.values(), default=0.0)
    width = most - least or 1.0
    middle = 1 if most == least else 1 - spread
    numbers = {b: middle + 2 * spread * (mean - least) / width for b, mean in means.items()}
    return ByBlock(blocks, maximum, tuple(numbers.items()), "multiply")


def blocks_of(expression: str, paths: Sequence[str]) -> dict[str, str]:
    """The block of every path.

    Raises:
      ValueError: as `arithmetic_progression`.
    """
    try:
        matches = {path: re.fullmatch(expression, path) for path in paths}
    except re.error as error:
        raise ValueError(f"blocks={expression!r}: {error}") from error
    for path, match in matches.items():
        if match is None or not any(match.groups()):
            raise ValueError(
                f"blocks={expression!r} does not say in which block {path!r} is: it has to match, "
                "and to capture a part such as r'(layers/\\d+)/.*'; a rule with a sparsity of its "
                "own for that leaf would work, too. Layers that are stacked in one leaf have one "
                "sparsity: uniform() would work"
            )
    found = {path: "/".join(g or "" for g in m.groups()) for path, m in matches.items() if m}
    if len(found) > 1 and len(set(found.values())) == 1:
        raise ValueError(
            f"blocks={expression!r} puts all {len(found)} leaves in one block, "
            f"{next(iter(found.values()))!r}, so that nothing is shared out; an expression that "
            "captures more, or uniform(), would work"
        )
    return found


def in_order(blocks: set[str]) -> list[str]:
    """Blocks as a model has them: layer 2 comes before layer 10."""
    split = {block: re.split(r"(\d+)", block) for block in blocks}
    keys = {b: [(int(p), "") if p.isdigit() else (-1, p) for p in s] for b, s in split.items()}
    return sorted(blocks, key=keys.__getitem__)


def _exponent(path: str, kernel: np.ndarray) -> float:
    if not np.isfinite(kernel.astype(np.float32)).all():
        raise ValueError(f"alpha_pruning: {path!r} of shape {kernel.shape} is not finite")
    values = np.sort(np.linalg.svd(kernel.astype(np.float64), compute_uv=False)) ** 2
    upper = values[len(values) // 2 :]
    if len(upper) < 2 or not upper[0] > 1e-12 * upper[-1] or upper[0] == upper[-1]:
        raise ValueError(
            f"alpha_pruning: the kernel of {path!r}, {kernel.shape}, has too few different "
            "eigenvalues above zero for an exponent; a rule with a sparsity of its own would work"
        )
    return 1 + len(upper) / float(np.sum(np.log(upper / upper[0])))
