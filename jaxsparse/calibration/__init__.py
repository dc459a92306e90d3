"""What value meets which weight: statistics of activations, and pruning by them."""

from jaxsparse.calibration.criteria import (
    Criterion,
    alps,
    given,
    magnitude,
    optimal_brain_damage,
    reconstructed,
    sparsegpt,
    swapped,
    wanda,
)
from jaxsparse.calibration.fisher import fisher
from jaxsparse.calibration.fitting import Fitted, Part, fit, fit_parts
from jaxsparse.calibration.layer_loss import Quadratic, quadratic, reconstruct
from jaxsparse.calibration.observe import observe, sites
from jaxsparse.calibration.oneshot import OneShot, prune_oneshot
from jaxsparse.calibration.outliers import owl
from jaxsparse.calibration.progress import Pruned
from jaxsparse.calibration.ranges import minmax, moving_average, percentile
from jaxsparse.calibration.reducers import Reducer, gram, largest, square_norms, zeros
from jaxsparse.calibration.site import Met, Site
from jaxsparse.calibration.targets import Target

__all__ = [
    "Criterion",
    "Fitted",
    "Met",
    "OneShot",
    "Part",
    "Pruned",
    "Quadratic",
    "Reducer",
    "Site",
    "Target",
    "alps",
    "fisher",
    "fit",
    "fit_parts",
    "given",
    "gram",
    "largest",
    "magnitude",
    "minmax",
    "moving_average",
    "observe",
    "optimal_brain_damage",
    "owl",
    "percentile",
    "prune_oneshot",
    "quadratic",
    "reconstruct",
    "reconstructed",
    "sites",
    "sparsegpt",
    "square_norms",
    "swapped",
    "wanda",
    "zeros",
]
