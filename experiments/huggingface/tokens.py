"""tokenizer.json: texts to rows of token ids."""

import pathlib
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np

from experiments.huggingface.configuration import CONFIG, padding_of, read_config, sizes_of
from experiments.models.sizes import LlamaSizes, TextSizes
from experiments.tokenizer import Tokenizer as DecoderTokenizer
from jaxsparse.text import shorten

TOKENIZER = "tokenizer.json"


class Tokenizer:
    """The tokenizer of a Hugging Face directory, checked against the model beside it.

    Args:
      directory: with tokenizer.json and config.json.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: not the tokenizer of that model: ids past the end of its embeddings, another
        id for padding, or a model of images; names file and key. Also where the package
        tokenizers is not installed.
    """

    def __init__(self, directory: str | pathlib.Path):
        directory = pathlib.Path(directory)
        self.file, config_file = directory / TOKENIZER, directory / CONFIG
        config = read_config(directory)
        sizes = sizes_of(config, config_file)
        if not isinstance(sizes, TextSizes):
            others = "read_tokenizer" if isinstance(sizes, LlamaSizes) else "none"
            raise ValueError(
                f"{config_file}: model_type {config['model_type']!r} is no encoder of texts; its "
                f"tokenizer: {others}"
            )
        self._tokenizer = _opened(self.file)
        self.longest = sizes.longest
        # Rows without room for a token of the text come out in another number.
        self.shortest = self._tokenizer.num_special_tokens_to_add(is_pair=False) + 1
        self._config_file, self._vocabulary = config_file, sizes.vocabulary
        _check_ids(self._tokenizer, self.file, sizes.vocabulary, config_file)
        padding = padding_of(config, config_file)
        self._padding = self._tokenizer.id_to_token(padding)
        found = (self._tokenizer.padding or {}).get("pad_id", padding)
        if self._padding is None or found != padding:
            raise ValueError(
                f"{config_file}: pad_token_id = {padding}; {self.file} "
                + ("has no such id" if found == padding else f"pads with {found}")
            )
        self._padding_id = padding

    def encode(self, texts: Iterable[str], length: int) -> tuple[np.ndarray, np.ndarray]:
        """Token ids and the mask of texts: cut at `length`, padded behind.

        Args:
          texts: strings, of any length, in a list or another iterable.
          length: tokens a row, special ones among them.

        Returns:
          ids (n, length) int32, and mask (n, length) bool, true at tokens. A text in which the
          tokenizer finds none, and to which it adds none, is a row of padding, all false.

        Raises:
          TypeError: a single string, or a row that is none.
          ValueError: more tokens than the model has positions, or none beside special ones; a
            string with half of a surrogate pair; an id past the end of the embeddings.
        """
        if isinstance(texts, str | bytes):
            raise TypeError(f"texts = {shorten(texts)} is one text; [texts] would work")
        texts = list(texts)
        for row, text in enumerate(texts):
            if not isinstance(text, str):
                raise TypeError(f"texts[{row}] = {shorten(text)} is no string")
            try:
                text.encode()
            except UnicodeEncodeError as error:
                raise ValueError(f"texts[{row}] = {shorten(text)} is no text: {error}") from error
        if not self.shortest <= length <= self.longest:
            raise ValueError(
                f"length = {length} does not fit {self.shortest} to {self.longest} positions"
            )
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(
            length=length, pad_id=self._padding_id, pad_token=self._padding
        )
        rows = self._tokenizer.encode_batch(texts)
        ids = np.array([row.ids for row in rows], np.int32).reshape(-1, length)
        # Ids that a template adds are in no vocabulary.
        if ids.size and ids.max() >= self._vocabulary:
            raise ValueError(
                f"{self.file} gives the id {ids.max()}; {self._config_file} has vocab_size = "
                f"{self._vocabulary}, the rows of the embeddings"
            )
        mask = np.array([row.attention_mask for row in rows], bool).reshape(-1, length)
        return ids, mask


def read_tokenizer(directory: str | pathlib.Path) -> DecoderTokenizer:
    """The tokenizer of a decoder; what ends a text is its config.json's `eos_token_id`.

    Args:
      directory: with tokenizer.json and config.json.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: not the tokenizer of that model, a model that is no decoder, or an id of the end
        that is none; names file and key. Also where the package tokenizers is not installed.
    """
    directory = pathlib.Path(directory)
    file, config_file = directory / TOKENIZER, directory / CONFIG
    config = read_config(directory)
    sizes = sizes_of(config, config_file)
    if not isinstance(sizes, LlamaSizes):
        raise ValueError(f"{config_file}: model_type {config['model_type']!r} is no decoder")
    tokenizer = _opened(file)
    _check_ids(tokenizer, file, sizes.vocabulary, config_file)
    stop = config.get("eos_token_id")
    ids = tuple(stop) if isinstance(stop, list) else () if stop is None else (stop,)
    if not all(type(each) is int and 0 <= each < sizes.vocabulary for each in ids):
        raise ValueError(
            f"{config_file}: eos_token_id = {shorten(stop)} must be ids from 0 to "
            f"{sizes.vocabulary - 1}"
        )
    return DecoderTokenizer(tokenizer, ids)


def _opened(file: pathlib.Path) -> Any:
    try:
        import tokenizers  # late: models of images need none
    except ImportError:
        raise ValueError(
            f"{TOKENIZER} is read by tokenizers: {sys.executable} -m pip install tokenizers"
        ) from None
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is not there; AutoTokenizer.from_pretrained(directory)"
            ".save_pretrained(directory) of transformers writes it"
        )
    try:
        return tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises nothing narrower
        raise ValueError(f"{file} is no tokenizer: {error}") from error


def _check_ids(tokenizer: Any, file: pathlib.Path, rows: int, config_file: pathlib.Path) -> None:
    """Raises ValueError unless every id is a row of the embeddings."""
    vocabulary = tokenizer.get_vocab()
    if not vocabulary:
        raise ValueError(f"{file} has an empty vocabulary")
    last, token = max((i, token) for token, i in vocabulary.items())
    if last >= rows:
        raise ValueError(
            f"{file}: token {token!r} has id {last}; {config_file} has vocab_size = {rows}, the "
            "rows of the embeddings"
        )
