"""Language models in GGUF files, as llama.cpp reads them: weights and tokenizer in one file."""

from experiments.gguf.reading import load, load_gguf

__all__ = ["load", "load_gguf"]
