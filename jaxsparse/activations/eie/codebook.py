"""The sixteen values that 4-bit codes stand for: zero, and fifteen centroids.

Han et al., 2016, "Deep Compression", https://arxiv.org/abs/1510.00149: k-means over the
weights that pruning left, started from evenly spaced values.
"""

import numpy as np
from jaxtyping import Float, UInt8

CENTROIDS = 15


def kmeans(
    values: Float[np.ndarray, "..."], clusters: int = CENTROIDS, iterations: int = 100
) -> Float[np.ndarray, " clusters"]:
    """Centroids of numbers, in rising order, by Lloyd's iteration.

    c_k <- mean {v : |v - c_k| is least}, from c spread evenly between the least and the
    largest value. Numbers on a line need no distances: clusters are the intervals between
    midpoints of neighbouring centroids, found in the sorted values.

    Args:
      values: finite numbers, at least one.
      clusters: how many centroids; one that no value is nearest to stays where it is.
      iterations: at most so many; it stops when nothing moves.

    Raises:
      ValueError: NaN or infinity, no values, no clusters.

    Example:
      >>> import numpy as np
      >>> from jaxsparse.activations import eie
      >>> eie.kmeans(np.array([0.0, 0.2, 5.0, 5.2]), clusters=2)
      array([0.1, 5.1])
    """
    values = np.sort(np.asarray(values, np.float64), axis=None)
    if not values.size or clusters < 1:
        raise ValueError(f"{clusters} clusters of {values.size} values: needs one or more of both.")
    _refuse_non_finite(values)
    sums = np.concatenate([[0.0], np.cumsum(values)])
    centroids = np.linspace(values[0], values[-1], clusters)
    for _ in range(iterations):
        inner = np.searchsorted(values, (centroids[1:] + centroids[:-1]) / 2, side="right")
        edges = np.concatenate([[0], inner, [len(values)]])
        counts = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(counts, 1)
        moved = np.where(counts > 0, means, centroids)
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    return centroids


def quantize(
    weights: Float[np.ndarray, "..."], codebook: Float[np.ndarray, "16"] | None = None
) -> tuple[UInt8[np.ndarray, "..."], Float[np.ndarray, "16"]]:
    """The nearest code of every weight; zero, and zero alone, has code 0.

    Args:
      weights: of any shape, zero where pruned.
      codebook: code -> value, zero first; None makes one by `kmeans` of the nonzeros.

    Returns:
      The codes, and the code book, so that `codebook[codes]` approximates the weights.

    Raises:
      ValueError: NaN or infinity; a code book of other length, or whose code 0 is not 0.

    Example:
      >>> import numpy as np
      >>> from jaxsparse.activations import eie
      >>> codes, codebook = eie.quantize(np.array([[0.0, -1.0], [3.0, 0.0]]))
      >>> codebook[codes]
      array([[ 0., -1.],
             [ 3.,  0.]])
    """
    weights = np.asarray(weights)
    _refuse_non_finite(weights)
    kept = weights != 0
    if codebook is None:
        centroids = kmeans(weights[kept]) if kept.any() else np.zeros(CENTROIDS)
        codebook = np.concatenate([[0.0], centroids])
    codebook = np.asarray(codebook)
    if codebook.shape != (CENTROIDS + 1,) or codebook[0] != 0:
        raise ValueError(
            f"a code book of shape {codebook.shape} that starts with "
            f"{codebook.flat[0] if codebook.size else 'nothing'}: needs 16 values, zero first."
        )
    order = 1 + np.argsort(codebook[1:], kind="stable")
    middles = (codebook[order][1:] + codebook[order][:-1]) / 2
    codes = np.zeros(weights.shape, np.uint8)
    codes[kept] = order[np.searchsorted(middles, weights[kept])]
    return codes, codebook


def _refuse_non_finite(values: np.ndarray) -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        place = np.unravel_index(int(np.argmax(bad)), values.shape)
        raise ValueError(
            f"{np.count_nonzero(bad)} of {values.size} values are not finite, the first "
            f"{values[place]} at {tuple(int(i) for i in place)}; a code book needs finite weights."
        )
