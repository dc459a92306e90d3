"""Writes the cases beside it: tiny models of transformers, and what they compute.

    python tests/cases/huggingface/write.py MINILM

MINILM is the directory of all-MiniLM-L6-v2, of which `minilm.json` holds embeddings. Run with
transformers 4.57.6 and torch 2.4.1. Every parameter of the tiny ones is random, biases and
norms too, and models with heads are among them, whose tensors have a prefix.
"""

import json
import pathlib
import sys

import numpy as np
import torch
import transformers as hf

HERE = pathlib.Path(__file__).parent
VERSIONS = {"transformers": hf.__version__, "torch": torch.__version__.split("+")[0]}
TEXT = {"vocab_size": 40, "max_position_embeddings": 16, "attn_implementation": "eager"}
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 24,
}


def models():
    yield "bert", hf.BertModel(hf.BertConfig(**TEXT, **SIZES))
    config = hf.RobertaConfig(
        **TEXT, **SIZES, type_vocab_size=1, layer_norm_eps=1e-5, hidden_act="gelu_new"
    )
    yield "roberta", hf.RobertaForSequenceClassification(config)
    config = hf.DistilBertConfig(
        **TEXT, dim=16, n_layers=2, n_heads=4, hidden_dim=24, activation="relu"
    )
    yield "distilbert", hf.DistilBertForMaskedLM(config)
    config = hf.ViTConfig(
        **SIZES, attn_implementation="eager", image_size=12, patch_size=4, num_labels=3
    )
    yield "vit", hf.ViTForImageClassification(config)


def inputs_of(name):
    """What the encoder is called with there, and the same as ours takes it."""
    rng = np.random.default_rng(1)
    if name == "vit":
        images = rng.standard_normal((2, 3, 12, 12)).round(3).astype(np.float32)
        return {"pixel_values": torch.tensor(images)}, {
            "images": images.transpose(0, 2, 3, 1).tolist()
        }
    ids, mask = rng.integers(3, 40, (3, 7)), np.ones((3, 7), int)
    mask[1, 4:] = mask[2, 1:] = 0
    ids[mask == 0] = 1 if name == "roberta" else 0
    theirs = {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask)}
    ours = {"ids": ids.tolist(), "mask": mask.tolist()}
    if name == "bert":
        types = np.broadcast_to(np.arange(7) > 2, (3, 7)).astype(int)
        theirs["token_type_ids"], ours["token_types"] = torch.tensor(types), types.tolist()
    return theirs, ours


TEXTS = (
    "Love this dress! It's sooo pretty.",
    "Too small, returned it: the fabric is scratchy and thin; 2 buttons were missing. " * 3,
    "naïve café — 東京",
    "",
)


def minilm(directory):
    """Mean embeddings of texts, cut and padded to 24 tokens."""
    tokens = hf.AutoTokenizer.from_pretrained(directory)(
        list(TEXTS), padding="max_length", max_length=24, truncation=True, return_tensors="pt"
    )
    model = hf.AutoModel.from_pretrained(directory, attn_implementation="eager").eval()
    mask = tokens["attention_mask"]
    hidden = model(**tokens).last_hidden_state * mask[..., None]
    return {
        "texts": TEXTS,
        "ids": tokens["input_ids"].tolist(),
        "mask": mask.tolist(),
        "mean": numbers(hidden.sum(1) / mask.sum(1, keepdim=True)),
    }


def numbers(tensor):
    return np.asarray(tensor.numpy(), np.float64).round(6).tolist()


@torch.no_grad()
def main():
    for name, model in models():
        torch.manual_seed(1)
        model.eval()
        for path, parameter in model.named_parameters():
            scale = "norm" in path.lower() and path.endswith("weight")
            spread = 0.3 if parameter.ndim > 1 else 0.2
            parameter.copy_(torch.randn(parameter.shape) * spread + int(scale))
        theirs, ours = inputs_of(name)
        encoder = getattr(model, model.base_model_prefix, model)
        found = encoder(**theirs, output_hidden_states=True)
        expected = VERSIONS | {
            "inputs": ours,
            "output": numbers(found.last_hidden_state),
            "hidden": [numbers(hidden) for hidden in found.hidden_states],
        }
        if name == "vit":
            expected["logits"] = numbers(model(**theirs).logits)
        model.save_pretrained(HERE / name)
        (HERE / name / "expected.json").write_text(json.dumps(expected) + "\n")
    expected = VERSIONS | minilm(sys.argv[1])
    (HERE / "minilm.json").write_text(json.dumps(expected) + "\n")


if __name__ == "__main__":
    main()
