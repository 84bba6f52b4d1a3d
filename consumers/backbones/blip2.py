"""``blip2_image`` and ``blip2_text``: two parts of one BLIP-2 checkpoint, loaded separately.

Neither part contains the language model's decoder, which is most of the checkpoint.
"""

from __future__ import annotations

from typing import Any

import torch

from consumers.checkpoints.checkpoints import Checkpoint
from consumers.checkpoints.loading import check_rows, dtype_argument, freeze
from consumers.checkpoints.weights import PROCESSOR_FILES, TOKENIZER_FILES
from consumers.preprocessing.library_ids import checked_spec
from consumers.preprocessing.masking import prepare_masks
from consumers.preprocessing.pixels import Normalizer, read_preprocessing
from featurestore.system.torchvision_ops import ensure_importable

ensure_importable()
from transformers import (  # noqa: E402
    AutoTokenizer,
    Blip2Config,
    Blip2PreTrainedModel,
    Blip2QFormerModel,
    Blip2VisionModel,
    T5EncoderModel,
)

MAX_TEXT_LENGTH = 512
"""The paper's limit in tokens; T5's relative positions have no limit."""


class _QueryEncoder(Blip2PreTrainedModel):  # type: ignore[misc]  # transformers is untyped
    """Vision tower, queries and Q-Former, with their names in a complete BLIP-2."""

    _keep_in_fp32_modules = ("query_tokens", "qformer")
    _keys_to_ignore_on_load_unexpected = (r"^language_model\.", r"^language_projection\.")

    def __init__(self, config: Blip2Config) -> None:
        super().__init__(config)
        width = config.qformer_config.hidden_size
        self.vision_model = Blip2VisionModel._from_config(config.vision_config)
        self.query_tokens = torch.nn.Parameter(torch.zeros(1, config.num_query_tokens, width))
        self.qformer = Blip2QFormerModel._from_config(config.qformer_config)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """The Q-Former's last hidden state, ``[B, queries, D]``, for ``[B, 3, S, S]``."""
        image = self.vision_model(pixel_values=pixel_values).last_hidden_state
        # No mask: all patches are attended to. For a mask of ones, transformers would inspect its
        # values and so wait for the GPU.
        states: torch.Tensor = self.qformer(
            query_embeds=self.query_tokens.expand(len(image), -1, -1),
            encoder_hidden_states=image,
        ).last_hidden_state
        return states


class Blip2Image:
    """Q-Former features, averaged over the queries in float32; an ``ImageBackbone``."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self.feature = checkpoint.feature
        self.model = checkpoint.name
        self.device, self.dtype = device, dtype
        self._network = freeze(_load_query_encoder(checkpoint, dtype), device, checkpoint)
        config = self._network.config
        spec = read_preprocessing(checkpoint, config.vision_config.image_size)
        self.image = spec.image
        self.dim = int(config.qformer_config.hidden_size)
        self._normalize = Normalizer(spec, device, dtype)
        files = ("config.json", *checkpoint.select(PROCESSOR_FILES), *checkpoint.weights())
        self.fingerprint = checkpoint.fingerprint(files)

    @torch.inference_mode()
    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed uint8 ``[B, S, S, 3]`` on the device; returns float32 ``[B, D]`` there."""
        states: torch.Tensor = self._network(self._normalize(pixels))
        return states.float().mean(dim=1)


class Blip2Text:
    """T5 encoder features, averaged over a text's tokens in float32; a ``TextBackbone``."""

    def __init__(self, checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> None:
        self.feature = checkpoint.feature
        self.model = checkpoint.name
        self.device, self.dtype = device, dtype
        self._network = freeze(_load_text_encoder(checkpoint, dtype), device, checkpoint)
        self.dim = int(self._network.config.d_model)
        with checkpoint.loading():
            prepare_masks(self._network)
            tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
        self.text = checked_spec(checkpoint, tokenizer, MAX_TEXT_LENGTH)
        check_rows(checkpoint, self.text, self._network.get_input_embeddings())
        files = ("config.json", *checkpoint.select(TOKENIZER_FILES), *checkpoint.weights())
        self.fingerprint = checkpoint.fingerprint(files)

    @torch.inference_mode()
    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embed int64 ``[B, L]`` with its 0/1 mask ``[B, L]``; returns float32 ``[B, D]``."""
        mask = attention_mask.long()
        states = self._network(input_ids=input_ids, attention_mask=mask).last_hidden_state
        weights = mask.to(torch.float32).unsqueeze(-1)  # [B, L, 1]
        total: torch.Tensor = (states.float() * weights).sum(dim=1)
        return total / weights.sum(dim=1)


def load_image(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Blip2Image:
    """Load a BLIP-2 checkpoint's vision tower and Q-Former.

    Raises:
        ConfigError: the checkpoint is damaged or of another kind.
    """
    checkpoint.require_type({"blip-2"}, "BLIP-2")
    checkpoint.check_weights()
    return Blip2Image(checkpoint, device, dtype)


def load_text(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Blip2Text:
    """Load a BLIP-2 checkpoint's T5 encoder and tokenizer.

    Raises:
        ConfigError: the checkpoint is damaged or of another kind, or its language model has no
            encoder.
    """
    checkpoint.require_type({"blip-2"}, "BLIP-2")
    language = checkpoint.config.get("text_config", {}).get("model_type")
    if language != "t5":
        raise checkpoint.error(f"has a {language} language model, expected T5 (an encoder)")
    checkpoint.check_weights()
    return Blip2Text(checkpoint, device, dtype)


def _load_query_encoder(checkpoint: Checkpoint, dtype: torch.dtype) -> _QueryEncoder:
    with checkpoint.loading():
        loaded: tuple[_QueryEncoder, dict[str, Any]] = _QueryEncoder.from_pretrained(
            checkpoint.folder,
            attn_implementation="sdpa",
            output_loading_info=True,
            **dtype_argument(dtype),
        )
    network, report = loaded
    checkpoint.check_loaded(report)
    return network


def _load_text_encoder(checkpoint: Checkpoint, dtype: torch.dtype) -> Any:
    with checkpoint.loading():
        # The encoder's weights are those of a stand-alone T5 with a prefix; the rest is not loaded.
        network, report = T5EncoderModel.from_pretrained(
            checkpoint.folder,
            config=Blip2Config.from_pretrained(checkpoint.folder).text_config,
            key_mapping={r"^language_model\.": ""},
            output_loading_info=True,
            **dtype_argument(dtype),
        )
    checkpoint.check_loaded(report)
    return network
