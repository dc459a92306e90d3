"""Models in Hugging Face's directories: config.json, model.safetensors, tokenizer.json."""

from experiments.huggingface.reading import load, load_classifier
from experiments.huggingface.tokens import Tokenizer, read_tokenizer
from experiments.huggingface.writing import save

__all__ = ["Tokenizer", "load", "load_classifier", "read_tokenizer", "save"]
