"""A pretrained text encoder with a new head on it."""

from flax import nnx

from experiments.data import Dataset
from experiments.models.base import MODELS, Model, from_nnx
from experiments.models.encoders import Classifier, TextEncoder
from experiments.models.mlp import squeeze_one
from experiments.models.sizes import TextSizes
from experiments.pretrained import directory
from jaxsparse.trees import leaves_by_path

EMBEDDINGS = r"encoder/(word|position|token_type)/.*"


@MODELS.register("bert")
def bert(dataset: Dataset, weights: str = "minilm", frozen: str = EMBEDDINGS) -> Model:
    """The encoder of a Hugging Face directory, its mean over tokens, and a linear head.

    Args:
      dataset: gives the tokens and the outputs.
      weights: the directory, or "minilm", which is downloaded once.
      frozen: expression of the parameters that do not train; "" trains all.

    Raises:
      ValueError: inputs that are no tokens, tokens of another tokenizer, longer inputs than
        the model takes, and a directory that holds no such model.
      FileNotFoundError: a directory that lacks a file.
    """
    from experiments import huggingface  # late: `make demo` installs no tokenizers
    from experiments.huggingface.configuration import read_config, sizes_of

    inputs = dataset.train.inputs
    if not (isinstance(inputs, dict) and inputs.keys() == {"ids", "mask"}):
        raise ValueError("model 'bert' reads ids and masks of tokens; see data 'titled_reviews'")
    folder = directory(weights)
    sizes = sizes_of(read_config(folder), folder / "config.json")
    if not isinstance(sizes, TextSizes):
        raise ValueError(f"model.weights = {weights!r} is no encoder of texts")
    length = inputs["ids"].shape[1]
    if length > sizes.longest:
        raise ValueError(
            f"data.length = {length} tokens; the model of {weights!r} takes {sizes.longest} at most"
        )
    if dataset.sizes["tokens"] > sizes.vocabulary:
        raise ValueError(
            f"data.tokenizer uses {dataset.sizes['tokens']} ids, model.weights = {weights!r} has "
            f"embeddings of {sizes.vocabulary}; the tokenizer of the same directory would fit"
        )

    def build(rngs):
        return Classifier(TextEncoder(sizes, rngs=rngs), dataset.outputs, rngs=rngs)

    def call(module, inputs, rngs):
        del rngs  # it has no dropout
        return squeeze_one(module(inputs["ids"], inputs["mask"]))

    def states(module, inputs):
        logits, hidden = module(inputs["ids"], inputs["mask"], return_hidden=True)
        return squeeze_one(logits), hidden[-1]

    leaves = leaves_by_path(nnx.state(huggingface.load(folder)))
    pretrained = {f"encoder/{path}": leaf for path, leaf in leaves.items()}
    return from_nnx(build, call=call, states=states, frozen=frozen, pretrained=pretrained)
