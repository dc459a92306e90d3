"""Writes the case `llama`: tiny Llamas of transformers, and the logits that they compute.

    python tests/cases/huggingface/write_llama.py

Run with transformers 4.57.6, whose Flax class needs no torch. Every parameter is random, norms
too; the first has biases in attention and a head of its own, the second is tied and stored in
two files with an index. Two things that transformers' torch class reads off the config, its Flax
class does not, and they are done here: it ties no head, and its positions are of base 10000.
"""

import functools
import json
import pathlib

import flax
import jax
import numpy as np
import safetensors.numpy
import transformers as hf
from transformers.models.llama import modeling_flax_llama

HERE = pathlib.Path(__file__).parent
SIZES = {
    "vocab_size": 40,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
}
NAMES = {"kernel": "weight", "embedding": "weight"}


def main():
    for name, changes in (
        ("llama", {"attention_bias": True, "rms_norm_eps": 1e-5}),
        ("llama_tied", {"tie_word_embeddings": True, "rope_theta": 500.0}),
    ):
        config = hf.LlamaConfig(**SIZES, **changes)
        modeling_flax_llama.create_sinusoidal_positions = functools.partial(
            sines, theta=config.rope_theta
        )
        model = modeling_flax_llama.FlaxLlamaForCausalLM(config)
        rng = np.random.default_rng(1)

        def shaken(x, rng=rng):
            return np.asarray(x + 0.3 * rng.standard_normal(x.shape), np.float32)

        params = jax.tree.map(shaken, flax.core.unfreeze(model.params))
        if config.tie_word_embeddings:
            params["lm_head"]["kernel"] = params["model"]["embed_tokens"]["embedding"].T
        tokens = rng.integers(0, 40, (3, 9))
        logits = model(tokens, params=params).logits
        tensors = {}
        for path, x in flax.traverse_util.flatten_dict(params).items():
            # Their Flax kernels are (in, out), their files (out, in).
            x = x.T if path[-1] == "kernel" else x
            tensors[".".join((*path[:-1], NAMES.get(path[-1], path[-1])))] = np.ascontiguousarray(x)
        if config.tie_word_embeddings:
            del tensors["lm_head.weight"]
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        config.architectures = ["LlamaForCausalLM"]
        config.save_pretrained(folder)
        write(folder, tensors, parts=2 if config.tie_word_embeddings else 1)
        expected = {
            "transformers": hf.__version__,
            "tokens": tokens.tolist(),
            "logits": np.asarray(logits, np.float64).round(6).tolist(),
        }
        (folder / "expected.json").write_text(json.dumps(expected) + "\n")


def sines(count, head_dim, theta):
    """sin and cos (count, 1, 2 head_dim) of position * theta ** (-2 i / head_dim), each i twice."""
    angles = np.arange(count)[:, None] * theta ** (-np.arange(0, head_dim, 2) / head_dim)
    twice = np.concatenate([angles, angles], axis=-1)[:, None]
    return np.concatenate([np.sin(twice), np.cos(twice)], axis=-1).astype(np.float32)


def write(folder, tensors, parts):
    if parts == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return
    places = {}
    for part in range(parts):
        file = f"model-{part + 1:05}-of-{parts:05}.safetensors"
        names = sorted(tensors)[part::parts]
        safetensors.numpy.save_file(
            {name: tensors[name] for name in names}, folder / file, {"format": "pt"}
        )
        places |= dict.fromkeys(names, file)
    index = {"metadata": {}, "weight_map": dict(sorted(places.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n")


if __name__ == "__main__":
    main()
