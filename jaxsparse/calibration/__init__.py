"""What value meets which weight: statistics of activations at the products of a model."""

from jaxsparse.calibration.observe import Met, Site, observe, sites
from jaxsparse.calibration.reducers import Reducer, gram, largest, square_norms, zeros

__all__ = [
    "Met",
    "Reducer",
    "Site",
    "gram",
    "largest",
    "observe",
    "sites",
    "square_norms",
    "zeros",
]
