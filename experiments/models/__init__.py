"""Models by name: ``create(name, dataset, **options)`` gives a :class:`Model`."""

from experiments.models import bert, cnn, dlrm, linen_mlp, mlp, mobilenet, transformer
from experiments.models.base import MODELS, Model, create, from_linen, from_nnx

__all__ = [
    "MODELS",
    "Model",
    "bert",
    "cnn",
    "create",
    "dlrm",
    "from_linen",
    "from_nnx",
    "linen_mlp",
    "mlp",
    "mobilenet",
    "transformer",
]
