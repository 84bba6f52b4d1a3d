"""``transformers-text``: any text encoder that ``AutoModel`` loads, and the encoder of others."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from consumers import checkpoints
from consumers.adapters.auto import load_auto, required, vector_of
from consumers.adapters.pooling import last_of_text, mean_of_text
from consumers.backbones import BackboneRequest
from consumers.checkpoints import Checkpoint
from consumers.library_ids import checked_spec
from consumers.loading import freeze
from consumers.masking import prepare_masks
from consumers.weights import TOKENIZER_FILES
from featurestore.torchvision_ops import ensure_importable
from producers.tokens import TokenEncoder

ensure_importable()
from transformers import AutoTokenizer  # noqa: E402

# A tokenizer without a limit of its own says 10**30.
_LONGEST = 100_000
# Trained on texts that all had the full length: their features depend on the padding.
_FULL_LENGTH = ("siglip", "siglip2", "siglip_text_model", "siglip2_text_model")
# A text padded by this many tokens must give the same features, up to rounding.
_PADDING = 5
_TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.02}


class TransformersText:
    """Features of a text encoder; a ``TextBackbone``.

    Attributes:
        settings: the pooling that is used.
    """

    def __init__(self, request: BackboneRequest, checkpoint: Checkpoint) -> None:
        self.feature = request.feature
        self.model = checkpoint.name
        self.device, self.dtype = request.device, request.dtype
        with checkpoint.loading():
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
        self.text = checked_spec(checkpoint, tokenizer, _length(checkpoint, tokenizer, request))
        self._masks = "attention_mask" in tokenizer.model_input_names
        self._full = not self._masks or checkpoint.config.get("model_type") in _FULL_LENGTH
        whole, missing = load_auto(checkpoint, request.dtype, "vision_model")
        self._project = getattr(whole.eval(), "get_text_features", None)
        self._encoder = _encoder_of(whole)
        pooling, self.dim = self._choose(checkpoint, request.pooling, missing)
        self.settings = {"pooling": pooling}
        if pooling != "projection":
            self._project = None  # nor what else is beside the encoder
        freeze(whole if self._project else self._encoder, request.device, checkpoint)
        with checkpoint.loading():
            prepare_masks(self._encoder)
            self._check_padding(checkpoint)
        files = ("config.json", *checkpoint.select(TOKENIZER_FILES), *checkpoint.weights())
        self.fingerprint = checkpoint.fingerprint(files)

    @torch.inference_mode()
    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embed int64 ``[B, L]`` with its 0/1 mask ``[B, L]``; returns float32 ``[B, D]``."""
        return self._vectors(input_ids, attention_mask.long(), self.settings["pooling"])

    def _vectors(self, ids: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
        """The vectors of a batch; raises ValueError where the model has no such pooling."""
        if self._full:
            missing = self.text.max_length - ids.shape[1]
            ids = torch.nn.functional.pad(ids, (0, missing), value=self.text.pad_id)
            mask = torch.nn.functional.pad(mask, (0, missing))
        inputs = {"input_ids": ids}
        if self._masks:
            inputs["attention_mask"] = mask
        if pooling == "projection":
            return vector_of(required(self._project, "projection")(**inputs))
        output = self._encoder(**inputs)
        if pooling == "pooler":
            pooled: torch.Tensor = required(getattr(output, "pooler_output", None), "pooler")
            return pooled.float()
        states: torch.Tensor = output.last_hidden_state
        if pooling == "cls":
            return states[:, 0].float()
        return (mean_of_text if pooling == "mean" else last_of_text)(states, mask)

    def _choose(
        self, checkpoint: Checkpoint, asked: str, missing: tuple[str, ...]
    ) -> tuple[str, int]:
        """The pooling, as asked for or the model's own, and the length of its vectors.

        A text of the full length is tried while the weights are still in main memory: positions
        that the model does not have end a GPU's context.
        """
        pooling = asked or ("projection" if self._project else "mean")
        ids, mask = self._encode("a " * self.text.max_length)
        try:
            with torch.inference_mode():
                dim = self._vectors(ids, mask, pooling).shape[1]
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            problem = " ".join(str(error).split())[:200]
            raise checkpoint.error(
                f"gives no vectors for {self.text.max_length} tokens with pooling = {pooling!r}: "
                f"{problem.rstrip('.')}",
                f"Name another pooling or max_length in [backbones.{self.feature}], "
                "or another model",
            ) from error
        absent = [
            name for name in missing if pooling == "pooler" or "pooler" not in name.split(".")
        ]
        if absent:
            raise checkpoint.error(f"lacks weights of this model: {', '.join(absent[:3])}")
        return pooling, int(dim)

    def _check_padding(self, checkpoint: Checkpoint) -> None:
        """Refuses a model whose features of a text depend on how long the others are."""
        ids, mask = (t.to(self.device) for t in self._encode("a secret life"))
        room = min(_PADDING, self.text.max_length - ids.shape[1])
        padded = torch.nn.functional.pad(ids, (0, room), value=self.text.pad_id)
        near = self.embed(padded, torch.nn.functional.pad(mask, (0, room)))
        alone = self.embed(ids, mask)
        error = float((near - alone).abs().max() / alone.abs().max().clamp_min(1e-30))
        if error > _TOLERANCE[self.dtype]:
            raise checkpoint.error(
                f"gives other features when a text is padded (by {error:.0%}), which is unsupported"
            )

    def _encode(self, text: str) -> tuple[torch.Tensor, torch.Tensor]:
        ids = np.empty((1, self.text.max_length), np.int32)
        lengths = np.empty(1, np.int32)
        TokenEncoder(self.text).encode([text], ids, lengths)
        row = torch.from_numpy(ids[:, : lengths[0]]).long()
        return row, torch.ones_like(row)


def load(request: BackboneRequest) -> TransformersText:
    """Load a text encoder, the text side of a model of images and texts, or an encoder.

    Raises:
        ConfigError: the checkpoint is missing, damaged or of another kind, it has no fast
            tokenizer, no such pooling or length, or its features depend on the padding.
    """
    checkpoint = checkpoints.resolve(request.model, request.feature)
    checkpoint.check_weights()
    return TransformersText(request, checkpoint)


def _encoder_of(whole: Any) -> Any:
    """The part that reads texts: a tower, the encoder before a decoder, or the whole."""
    if hasattr(whole, "get_text_features") and hasattr(whole, "text_model"):
        return whole.text_model
    return whole.get_encoder() if whole.config.is_encoder_decoder else whole


def _length(checkpoint: Checkpoint, tokenizer: Any, request: BackboneRequest) -> int:
    limit = request.max_length or int(tokenizer.model_max_length)
    if limit > _LONGEST:
        raise checkpoint.error(
            "sets no length for its texts", f"Name max_length in [backbones.{request.feature}]"
        )
    return limit
