"""A tiny BERT in Hugging Face's layout with a tokenizer of seven words, and 61 reviews."""

import pathlib
import shutil

import pyarrow
import pyarrow.parquet
import tokenizers

from experiments.data import tables

CASE = pathlib.Path("tests/cases/huggingface/bert")
WORDS = ("[PAD]", "[UNK]", "love", "it", "no", "dress", ".")


def write(folder: pathlib.Path) -> dict[str, str]:
    """Writes both into a folder; returns config keys with which a run reads them."""
    for name in ("config.json", "model.safetensors"):
        shutil.copy(CASE / name, folder / name)
    model = tokenizers.models.WordLevel(dict(zip(WORDS, range(7), strict=True)), unk_token="[UNK]")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(folder / "tokenizer.json"))
    texts = [f"love {'it ' * (i % 5)}{i}" for i in range(60)]
    columns = {
        "Title": ["no dress" if i % 2 else None for i in range(62)],
        "Review Text": [*texts, None, texts[0]],
        "Recommended IND": [int(i % 4 > 0) for i in range(62)],
        "Rating": [1 + i % 5 for i in range(62)],
    }
    pyarrow.parquet.write_table(pyarrow.table(columns), folder / tables.REVIEWS)
    return {"data.path": str(folder), "data.tokenizer": str(folder), "model.weights": str(folder)}
