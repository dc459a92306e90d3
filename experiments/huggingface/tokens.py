"""tokenizer.json: texts to rows of token ids."""

import pathlib
from collections.abc import Iterable

import numpy as np

from experiments.huggingface.configuration import CONFIG, read_config, sizes_of
from experiments.models.sizes import TextSizes

TOKENIZER = "tokenizer.json"


class Tokenizer:
    """The tokenizer of a Hugging Face directory, checked against the model beside it.

    Args:
      directory: with tokenizer.json and config.json.

    Raises:
      FileNotFoundError: a file is missing.
      ValueError: not the tokenizer of that model: ids past the end of its embeddings, another
        id for padding, or a model of images; names file and key.
    """

    def __init__(self, directory: str | pathlib.Path):
        import tokenizers  # late: models of images need none

        directory = pathlib.Path(directory)
        self.file, config_file = directory / TOKENIZER, directory / CONFIG
        config = read_config(directory)
        sizes = sizes_of(config, config_file)
        if not isinstance(sizes, TextSizes):
            raise ValueError(f"{config_file}: model_type {config['model_type']!r} reads no text")
        if not self.file.is_file():
            raise FileNotFoundError(
                f"{self.file} is not there; AutoTokenizer.from_pretrained(directory)"
                ".save_pretrained(directory) of transformers writes it"
            )
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(self.file))
        except Exception as error:  # the library raises nothing narrower
            raise ValueError(f"{self.file} is no tokenizer: {error}") from error
        self.longest = sizes.longest
        # Rows without room for a token of the text come out in another number.
        self.shortest = self._tokenizer.num_special_tokens_to_add(is_pair=False) + 1
        vocabulary = self._tokenizer.get_vocab().items()
        last, token = max(((i, token) for token, i in vocabulary), default=(-1, ""))
        if last >= sizes.vocabulary:
            raise ValueError(
                f"{self.file}: token {token!r} has id {last}; {config_file} has vocab_size = "
                f"{sizes.vocabulary}, the rows of the embeddings"
            )
        padding = config.get("pad_token_id") or sizes.padding or 0
        known = type(padding) is int and padding >= 0
        self._padding = self._tokenizer.id_to_token(padding) if known else None
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
          texts: strings, of any length.
          length: tokens a row, special ones among them.

        Returns:
          ids (n, length) int32, and mask (n, length) bool, true at tokens.

        Raises:
          ValueError: more tokens than the model has positions, or none beside special ones.
        """
        if not self.shortest <= length <= self.longest:
            raise ValueError(
                f"length = {length} does not fit {self.shortest} to {self.longest} positions"
            )
        self._tokenizer.enable_truncation(length)
        self._tokenizer.enable_padding(
            length=length, pad_id=self._padding_id, pad_token=self._padding
        )
        rows = self._tokenizer.encode_batch(list(texts))
        ids = np.array([row.ids for row in rows], np.int32).reshape(-1, length)
        mask = np.array([row.attention_mask for row in rows], bool).reshape(-1, length)
        return ids, mask
