"""How Hugging Face names the sizes and the tensors of the models that we know.

A `Layout` is a table, read in both directions: loading and saving are `reading` and `writing`.
The tables stand beside the modules of `experiments.models`, whose paths they hold, and not in
the library, which ships no models: whoever has a Flax BERT of their own names its paths
in a `Layout` of theirs.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any


@dataclasses.dataclass(frozen=True)
class Layout:
    """One `model_type`.

    Attributes:
      prefix: what stands before every tensor's name in files of models with a head.
      keys: our name for a size -> its key in config.json.
      tensors: path of a module, or of a parameter in no module -> its name in the file, with
        {} for the number of a layer. A module's parameters follow as `.weight` and `.bias`.
      unused: patterns of the tensors that no module of ours takes.
      encoder: transformers' class of the encoder alone; of a decoder, that with its head.
      classifier: its class of encoder, first token and linear head, if it has just that.
      padding: the id of padding where config.json names none.
    """

    prefix: str
    keys: Mapping[str, str]
    tensors: Mapping[str, str]
    unused: tuple[str, ...]
    encoder: str
    classifier: str | None = None
    padding: int = 0

    def name_of(self, path: tuple[Any, ...]) -> str:
        """The tensor of a parameter: ("layers", 0, "output", "kernel") and so on."""
        numbers = [part for part in path if isinstance(part, int)]
        parts = ["{}" if isinstance(part, int) else part for part in path]
        if alone := self.tensors.get("/".join(parts)):
            return alone
        suffix = "bias" if parts[-1] == "bias" else "weight"
        return f"{self.tensors['/'.join(parts[:-1])].format(*numbers)}.{suffix}"

    def ignores(self, name: str) -> bool:
        """Whether a tensor is one of those that our modules have no use for."""
        return any(re.fullmatch(pattern, name) for pattern in self.unused)

    def full_name_of(self, name: str) -> str:
        """A tensor's name in files of models with a head, of which the head has no prefix."""
        return name if name.startswith(f"{self.tensors.get('head')}.") else self.prefix + name


_UNUSED = (
    # They count 0, 1, 2; older versions saved them among the weights.
    r"(.*\.)?position_ids",
    # Heads: theirs and ours.
    *(rf"{head}\..*" for head in ("pooler", "cls", "lm_head", "classifier", "qa_outputs", "head")),
)
_SIZES = {
    "width": "hidden_size",
    "heads": "num_attention_heads",
    "depth": "num_hidden_layers",
    "hidden": "intermediate_size",
    "activation": "hidden_act",
    "epsilon": "layer_norm_eps",
}
_LAYER = {
    "layers/{}/attention/query": "encoder.layer.{}.attention.self.query",
    "layers/{}/attention/key": "encoder.layer.{}.attention.self.key",
    "layers/{}/attention/value": "encoder.layer.{}.attention.self.value",
    "layers/{}/attention/output": "encoder.layer.{}.attention.output.dense",
    "layers/{}/attention_norm": "encoder.layer.{}.attention.output.LayerNorm",
    "layers/{}/intermediate": "encoder.layer.{}.intermediate.dense",
    "layers/{}/output": "encoder.layer.{}.output.dense",
    "layers/{}/output_norm": "encoder.layer.{}.output.LayerNorm",
}
_EMBEDDINGS = {
    "word": "embeddings.word_embeddings",
    "position": "embeddings.position_embeddings",
    "norm": "embeddings.LayerNorm",
}
_BERT = Layout(
    prefix="bert.",
    keys=_SIZES
    | {
        "vocabulary": "vocab_size",
        "positions": "max_position_embeddings",
        "token_types": "type_vocab_size",
    },
    tensors=_EMBEDDINGS | {"token_type": "embeddings.token_type_embeddings"} | _LAYER,
    unused=_UNUSED,
    encoder="BertModel",
)

LAYOUTS: dict[str, Layout] = {
    "bert": _BERT,
    "roberta": dataclasses.replace(
        _BERT,
        prefix="roberta.",
        keys={**_BERT.keys, "padding": "pad_token_id"},
        encoder="RobertaModel",
        padding=1,
    ),
    "distilbert": Layout(
        prefix="distilbert.",
        keys={
            "width": "dim",
            "heads": "n_heads",
            "depth": "n_layers",
            "hidden": "hidden_dim",
            "activation": "activation",
            "vocabulary": "vocab_size",
            "positions": "max_position_embeddings",
        },
        tensors=_EMBEDDINGS
        | {
            "layers/{}/attention/query": "transformer.layer.{}.attention.q_lin",
            "layers/{}/attention/key": "transformer.layer.{}.attention.k_lin",
            "layers/{}/attention/value": "transformer.layer.{}.attention.v_lin",
            "layers/{}/attention/output": "transformer.layer.{}.attention.out_lin",
            "layers/{}/attention_norm": "transformer.layer.{}.sa_layer_norm",
            "layers/{}/intermediate": "transformer.layer.{}.ffn.lin1",
            "layers/{}/output": "transformer.layer.{}.ffn.lin2",
            "layers/{}/output_norm": "transformer.layer.{}.output_layer_norm",
        },
        unused=(*_UNUSED, r"vocab_.*", r"pre_classifier\..*"),
        encoder="DistilBertModel",
    ),
    "vit": Layout(
        prefix="vit.",
        keys=_SIZES
        | {
            "image": "image_size",
            "patch": "patch_size",
            "channels": "num_channels",
            "qkv_bias": "qkv_bias",
        },
        tensors={
            "patch": "embeddings.patch_embeddings.projection",
            "class_token": "embeddings.cls_token",
            "position": "embeddings.position_embeddings",
            "norm": "layernorm",
            "layers/{}/attention/query": "encoder.layer.{}.attention.attention.query",
            "layers/{}/attention/key": "encoder.layer.{}.attention.attention.key",
            "layers/{}/attention/value": "encoder.layer.{}.attention.attention.value",
            "layers/{}/attention/output": "encoder.layer.{}.attention.output.dense",
            "layers/{}/attention_norm": "encoder.layer.{}.layernorm_before",
            "layers/{}/intermediate": "encoder.layer.{}.intermediate.dense",
            "layers/{}/output": "encoder.layer.{}.output.dense",
            "layers/{}/output_norm": "encoder.layer.{}.layernorm_after",
        },
        unused=(*_UNUSED, r"embeddings\.mask_token", r"decoder\..*"),
        encoder="ViTModel",
        classifier="ViTForImageClassification",
    ),
    "llama": Layout(
        prefix="model.",
        keys=_SIZES
        | {
            "epsilon": "rms_norm_eps",
            "vocabulary": "vocab_size",
            "longest": "max_position_embeddings",
            "key_heads": "num_key_value_heads",
            "head_dim": "head_dim",
            "theta": "rope_theta",
            "tied": "tie_word_embeddings",
            "attention_bias": "attention_bias",
            "mlp_bias": "mlp_bias",
        },
        tensors={
            "embedding": "embed_tokens",
            "norm": "norm",
            "head": "lm_head",
            "layers/{}/attention/query": "layers.{}.self_attn.q_proj",
            "layers/{}/attention/key": "layers.{}.self_attn.k_proj",
            "layers/{}/attention/value": "layers.{}.self_attn.v_proj",
            "layers/{}/attention/output": "layers.{}.self_attn.o_proj",
            "layers/{}/attention_norm": "layers.{}.input_layernorm",
            "layers/{}/feed_forward/gate": "layers.{}.mlp.gate_proj",
            "layers/{}/feed_forward/up": "layers.{}.mlp.up_proj",
            "layers/{}/feed_forward/down": "layers.{}.mlp.down_proj",
            "layers/{}/feed_forward_norm": "layers.{}.post_attention_layernorm",
        },
        # The second is there again beside tied embeddings, in some files.
        unused=(r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq", r"lm_head\.weight"),
        encoder="LlamaForCausalLM",
    ),
}
