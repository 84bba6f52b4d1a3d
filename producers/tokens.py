"""Text views to token ids, with the tokenizers library alone.

Rows are encoded one by one: this is called in each of many producer processes, which set
``TOKENIZERS_PARALLELISM=false`` so that the library does not start threads of its own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

TokenArray = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class TextSpec:
    """How one text backbone's tokenizer is called; read from its checkpoint.

    Attributes:
        tokenizer_json: the whole ``tokenizer.json``.
        max_length: the most ids of a text, the special ones included; longer texts are cut.
        pad_id: fills the rows behind a text's ids.
        strip: remove white space around the text first, as sentence-transformers does.
        lower: make the text lower case first.
    """

    tokenizer_json: str
    max_length: int
    pad_id: int = 0
    strip: bool = False
    lower: bool = False

    def __post_init__(self) -> None:
        """Check what the tokenizer itself would accept and silently misunderstand."""
        if self.max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {self.max_length}")


class TokenEncoder:
    """Encodes texts exactly as the checkpoint's own tokenizer does.

    Attributes:
        spec: what the encoder was made from.
    """

    def __init__(self, spec: TextSpec) -> None:
        self.spec = spec
        self._tokenizer = Tokenizer.from_str(spec.tokenizer_json)
        # Whatever the file says: a checkpoint may have been saved with other settings in force.
        self._tokenizer.enable_truncation(
            spec.max_length, stride=0, strategy="longest_first", direction="right"
        )
        self._tokenizer.no_padding()

    def encode_views(self, texts: Sequence[str], ids: TokenArray, lengths: TokenArray) -> int:
        """Encode the views of one sample in place.

        Args:
            texts: V texts, without lone surrogates.
            ids: int32 [V, max_length], overwritten; rows are filled up with ``pad_id``.
            lengths: int32 [V], overwritten with the number of ids of each row.

        Returns:
            How many texts were cut.

        Raises:
            ValueError: an array is not of this shape and dtype.
        """
        _check(ids, (len(texts), self.spec.max_length), "ids")
        _check(lengths, (len(texts),), "lengths")
        encodings = self._tokenizer.encode_batch_fast(self._prepare(texts))
        ids.fill(self.spec.pad_id)
        cut = 0
        for row, encoding in enumerate(encodings):
            tokens = encoding.ids
            ids[row, : len(tokens)] = tokens
            lengths[row] = len(tokens)
            cut += bool(encoding.overflowing)
        return cut

    def _prepare(self, texts: Sequence[str]) -> list[str]:
        """The texts as the tokenizer is to see them."""
        prepared = [text.strip() for text in texts] if self.spec.strip else list(texts)
        return [text.lower() for text in prepared] if self.spec.lower else prepared


def _check(array: TokenArray, shape: tuple[int, ...], name: str) -> None:
    """Refuse an array of another shape or dtype: NumPy would broadcast or cast it."""
    if array.shape != shape or array.dtype != np.int32:
        raise ValueError(f"{name} must be int32 {shape}, got {array.dtype} {array.shape}")
