"""A site: a weight, one way in which products sum over it, and what it meets there."""

import dataclasses
import math
from collections.abc import Callable, Iterable

from jaxtyping import Array, Float

from jaxsparse.products.reading import Reader
from jaxsparse.products.sights import ENDS, Sight


@dataclasses.dataclass(frozen=True, order=True)
class Site:
    """A weight, and one way in which products sum over it.

    Products that sum over the same axes of a weight (a tied kernel, a layer that runs twice)
    are one site.

    Attributes:
      path: of the weight.
      shape: of the weight.
      in_axis: axes of the weight that are summed over, major to minor, as in `Rule`.
      batch_axis: axes along which every slice is a kernel of its own.
      altered: whether a product multiplies something else than the weight: see `observe`.
      mixed: whether the weight meets another weight, or a constant, whose rows data then sum over,
        as w in `x @ (v @ w)`: see `observe`.
    """

    path: str
    shape: tuple[int, ...]
    in_axis: tuple[int, ...]
    batch_axis: tuple[int, ...]
    altered: bool = dataclasses.field(default=False, compare=False)
    mixed: bool = dataclasses.field(default=False, compare=False)

    @property
    def inputs(self) -> int:
        """How many numbers of a value one number of the result is summed over."""
        return math.prod(self.shape[axis] for axis in self.in_axis)

    @property
    def kernels(self) -> tuple[int, ...]:
        """Sizes of `batch_axis`: how many kernels there are."""
        return tuple(self.shape[axis] for axis in self.batch_axis)


@dataclasses.dataclass(frozen=True)
class Met:
    """What one kernel meets in one product.

    Attributes:
      array: the value as the program has it, without axes that number kernels; of a
        convolution the image.
    """

    array: Array
    _rows: Callable[[Array], Array]

    def rows(self) -> Float[Array, "rows inputs"]:
        """The value as a matrix X, so that X @ W is what the product computes.

        Its columns are numbered as the flattened `in_axis` of the site; of a convolution its
        rows are the windows.

        Raises:
          ValueError: of a convolution in groups, each of which has a matrix of its own.
        """
        return self._rows(self.array)


def site_of(equation, sight: Sight, position: int) -> Site:
    """The site of a product in which an array that shows a weight is the operand at a position."""
    name = equation.primitive.name
    product = sight.product(name, *ENDS[name](equation, position))
    axes = product.in_axis, product.batch_axis
    return Site(product.path, product.shape, *axes, altered=sight.altered)


def note(sites: dict[Site, Site], site: Site) -> None:
    """Adds the site of a product to those of the products before it."""
    altered = site.altered or sites.get(site, site).altered
    sites[site] = dataclasses.replace(site, altered=altered)


def with_mixed(sites: Iterable[Site], reader: Reader) -> dict[Site, Site]:
    """Sites, once all products are read: which of them meet rows that data sum over."""
    return {site: dataclasses.replace(site, mixed=site.path in reader.mixed) for site in sites}
