"""``transformers-text``: any text encoder that ``AutoModel`` loads, and the encoder of others."""

from __future__ import annotations

from typing import Any

import torch

from consumers.backbones.adapters.auto import load_auto, required, vector_of
from consumers.backbones.adapters.pooling import last_of_text, mean_of_text
from consumers.backbones.protocol import BackboneRequest
from consumers.checkpoints import checkpoints
from consumers.checkpoints.checkpoints import Checkpoint
from consumers.checkpoints.loading import check_rows, freeze
from consumers.checkpoints.weights import TOKENIZER_FILES
from consumers.preprocessing.library_ids import checked_spec
from consumers.preprocessing.masking import prepare_masks
from consumers.preprocessing.padding import (
    attend_to_whole_texts,
    depends_on_padding,
    embed_by_length,
    encode_text,
)
from consumers.preprocessing.token_types import read_types
from featurestore.system.torchvision_ops import ensure_importable
from featurestore.wording import one_line

ensure_importable()
from transformers import AutoTokenizer  # noqa: E402

# A tokenizer without a limit reports 10**30.
_LONGEST = 100_000
# Models trained on texts padded to the full length: their features depend on the padding.
_FULL_LENGTH = ("siglip", "siglip2", "siglip_text_model", "siglip2_text_model")


class TransformersText:
    """Features of a text encoder; a ``TextBackbone``.

    Attributes:
        settings: name of the pooling.
    """

    def __init__(self, request: BackboneRequest, checkpoint: Checkpoint) -> None:
        self.feature = request.feature
        self.model = checkpoint.name
        self.device, self.dtype = request.device, request.dtype
        with checkpoint.loading():
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
        self.text = checked_spec(checkpoint, tokenizer, _length(checkpoint, tokenizer, request))
        self._masks = "attention_mask" in tokenizer.model_input_names
        self._full = checkpoint.config.get("model_type") in _FULL_LENGTH
        whole, missing = load_auto(checkpoint, request.dtype, "vision_model")
        self._project = getattr(whole.eval(), "get_text_features", None)
        self._encoder = _encoder_of(whole)
        check_rows(checkpoint, self.text, self._encoder.get_input_embeddings())
        with checkpoint.loading():
            attend_to_whole_texts(self._encoder)
            projects = request.pooling in ("", "projection")
            call = self._project if projects and self._project else self._encoder.forward
            self._types = read_types(tokenizer, call)
        with checkpoint.loading():
            pooling, self.dim = self._choose(checkpoint, request.pooling, missing)
        self.settings = {"pooling": pooling}
        if pooling != "projection":
            self._project = None  # frees the parts beside the encoder
        freeze(whole if self._project else self._encoder, request.device, checkpoint)
        with checkpoint.loading():
            prepare_masks(self._encoder)
            self._by_length = depends_on_padding(self._encoder, self._embed, self.text)
        files = ("config.json", *checkpoint.select(TOKENIZER_FILES), *checkpoint.weights())
        self.fingerprint = checkpoint.fingerprint(files)

    @torch.inference_mode()
    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embed int64 ``[B, L]`` with its 0/1 mask ``[B, L]``; returns float32 ``[B, D]``."""
        if self._by_length:
            return embed_by_length(self._embed, input_ids, attention_mask)
        return self._embed(input_ids, attention_mask)

    @torch.inference_mode()
    def _embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        return self._vectors(ids, mask.long(), self.settings["pooling"])

    def _vectors(self, ids: torch.Tensor, mask: torch.Tensor, pooling: str) -> torch.Tensor:
        """The vectors of a batch; raises ValueError if the model has no such pooling."""
        if self._full:
            missing = self.text.max_length - ids.shape[1]
            ids = torch.nn.functional.pad(ids, (0, missing), value=self.text.pad_id)
            mask = torch.nn.functional.pad(mask, (0, missing))
        inputs = {"input_ids": ids}
        if self._masks:
            inputs["attention_mask"] = mask
        if self._types is not None:
            inputs["token_type_ids"] = self._types(ids, mask)
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
        """The requested pooling, or that of the model, and the dimension of its vectors.

        A text of the full length is embedded while the weights are still in main memory: on a GPU,
        positions that the model does not have would end the CUDA context.
        """
        pooling = asked or ("projection" if self._project else "mean")
        ids, mask = encode_text(self.text, "a " * self.text.max_length)
        try:
            with torch.inference_mode():
                dim = self._vectors(ids, mask, pooling).shape[1]
        except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            problem = one_line(error)
            raise checkpoint.error(
                f"gives no vectors for {self.text.max_length} tokens with pooling = {pooling!r}: "
                f"transformers says {problem.rstrip('.')}",
                f"Name another pooling or max_length in [backbones.{self.feature}], "
                "or another model",
            ) from error
        absent = [
            name for name in missing if pooling == "pooler" or "pooler" not in name.split(".")
        ]
        if absent:
            raise checkpoint.error(f"lacks weights of this model: {', '.join(absent[:3])}")
        return pooling, int(dim)


def load(request: BackboneRequest) -> TransformersText:
    """Load a text encoder, the text side of a model of images and texts, or an encoder.

    Raises:
        ConfigError: the checkpoint is missing, damaged or of another kind, it has no fast
            tokenizer, no such pooling or length, or more tokens than the model has rows.
    """
    checkpoint = checkpoints.resolve(request.model, request.feature)
    checkpoint.check_weights()
    return TransformersText(request, checkpoint)


def _encoder_of(whole: Any) -> Any:
    """The part that embeds texts: a tower, the encoder before a decoder, or the whole model."""
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
