"""``open-clip-image`` and ``open-clip-text``: the two towers of an open_clip model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from consumers.backbones.adapters.torchvision_steps import read_transform
from consumers.backbones.protocol import BackboneRequest
from consumers.checkpoints import checkpoints
from consumers.checkpoints.checkpoints import Checkpoint, read_json
from consumers.checkpoints.loading import check_rows, freeze, text_spec
from consumers.checkpoints.weights import OPEN_CLIP_CONFIG, TOKENIZER_FILES
from consumers.preprocessing.library_ids import check_ids
from consumers.preprocessing.pixels import Normalizer
from featurestore.system.torchvision_ops import ensure_importable
from producers.recipes.texts.cleaning import CLEANINGS
from producers.recipes.texts.tokens import TextSpec

ensure_importable()
import open_clip  # noqa: E402
from open_clip.tokenizer import get_clean_fn  # noqa: E402
from open_clip.transform import PreprocessCfg, image_transform_v2  # noqa: E402
from transformers import AutoTokenizer  # noqa: E402


class OpenClipImage:
    """Projected image features, not normalised; an ``ImageBackbone``."""

    def __init__(self, request: BackboneRequest, checkpoint: Checkpoint) -> None:
        self.feature = request.feature
        self.model = checkpoint.name
        self.device, self.dtype = request.device, request.dtype
        tower = _load_network(checkpoint, request.size).visual
        config = PreprocessCfg(**tower.preprocess_cfg)
        side = _side(checkpoint, config.size)
        if config.resize_mode == "longest":
            raise checkpoint.error("pads its images to a square, which is unsupported")
        self.image, table = read_transform(
            checkpoint,
            image_transform_v2(config, is_train=False),
            side,
            resized=side,
            squash=config.resize_mode == "squash",
            interpolation=config.interpolation,
        )
        self._network = freeze(tower.to(request.dtype), request.device, checkpoint)
        self._normalize = Normalizer(table, request.device, request.dtype)
        with checkpoint.loading("open_clip"), torch.inference_mode():
            pixels = torch.zeros(1, 3, side, side, dtype=self.dtype, device=self.device)
            self.dim = int(self._network(pixels).shape[1])
        self.fingerprint = checkpoint.fingerprint((OPEN_CLIP_CONFIG, *checkpoint.weights()))

    @torch.inference_mode()
    def embed(self, pixels: torch.Tensor) -> torch.Tensor:
        """Embed uint8 ``[B, S, S, 3]`` on the device; returns float32 ``[B, D]`` there."""
        features: torch.Tensor = self._network(self._normalize(pixels))
        return features.float()


class OpenClipText:
    """Projected text features, not normalised; a ``TextBackbone``.

    Every text is padded to the model's context length, as it was in the training of the model.

    Attributes:
        settings: name of the cleaning of texts before tokenization.
    """

    def __init__(self, request: BackboneRequest, checkpoint: Checkpoint) -> None:
        self.feature = request.feature
        self.model = checkpoint.name
        self.device, self.dtype = request.device, request.dtype
        self.text = _text_spec(checkpoint)
        self.settings = {"clean": self.text.clean}
        network = _load_network(checkpoint, 0)
        del network.visual
        check_rows(checkpoint, self.text, _embeddings(network))
        self._network = freeze(network.to(request.dtype), request.device, checkpoint)
        with checkpoint.loading("open_clip"), torch.inference_mode():
            ids = torch.zeros(1, 1, dtype=torch.int64, device=self.device)
            self.dim = int(self.embed(ids, torch.ones_like(ids)).shape[1])
        files = (OPEN_CLIP_CONFIG, *checkpoint.select(TOKENIZER_FILES), *checkpoint.weights())
        self.fingerprint = checkpoint.fingerprint(files)

    @torch.inference_mode()
    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:  # noqa: ARG002  these models take no mask
        """Embed int64 ``[B, L]`` with its 0/1 mask ``[B, L]``; returns float32 ``[B, D]``."""
        missing = self.text.max_length - input_ids.shape[1]
        ids = torch.nn.functional.pad(input_ids, (0, missing), value=self.text.pad_id)
        features: torch.Tensor = self._network.encode_text(ids)
        return features.float()


def load_image(request: BackboneRequest) -> OpenClipImage:
    """Load an open_clip model's image tower.

    Raises:
        ConfigError: the checkpoint is missing, damaged or of another kind, or its preprocessing is
            not reproduced.
    """
    return OpenClipImage(request, _resolve(request))


def load_text(request: BackboneRequest) -> OpenClipText:
    """Load an open_clip model's text tower.

    Raises:
        ConfigError: the checkpoint is missing, damaged or of another kind, or its
            ``tokenizer.json`` gives other ids than open_clip's own tokenizer.
    """
    return OpenClipText(request, _resolve(request))


def _resolve(request: BackboneRequest) -> Checkpoint:
    checkpoint = checkpoints.resolve(request.model, request.feature, open_clip=True)
    if not read_json(checkpoint, OPEN_CLIP_CONFIG).get("model_cfg"):
        raise checkpoint.error(f"is no open_clip checkpoint (no {OPEN_CLIP_CONFIG})")
    checkpoint.check_weights()
    return checkpoint


def _load_network(checkpoint: Checkpoint, size: int) -> Any:
    with checkpoint.loading("open_clip"):
        return open_clip.create_model(
            f"local-dir:{checkpoint.folder}",
            force_image_size=size or None,
            require_pretrained=True,
        )


def _embeddings(network: Any) -> Any:
    """The token embeddings; some models have a separate text tower."""
    tower = getattr(network, "text", network)
    inner = getattr(tower, "transformer", None)
    own = getattr(tower, "token_embedding", None)
    return inner.get_input_embeddings() if own is None else own  # type: ignore[union-attr]


def _side(checkpoint: Checkpoint, size: int | tuple[int, int]) -> int:
    height, width = (size, size) if isinstance(size, int) else size
    if height != width:
        raise checkpoint.error(f"takes images of {height} x {width}, not square ones")
    return height


def _text_spec(checkpoint: Checkpoint) -> TextSpec:
    """The folder's fast tokenizer with the library's cleaning, checked against its ids."""
    if not (checkpoint.folder / "tokenizer.json").is_file():
        raise checkpoint.error("has no tokenizer.json")
    with checkpoint.loading("open_clip"):
        own = open_clip.get_tokenizer(f"local-dir:{checkpoint.folder}")
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.folder, trust_remote_code=False)
        row = own(["a spy"])[0]
    spec = text_spec(checkpoint, tokenizer, len(row))
    # The padding id of open_clip, whose own tokenizer does not use that of the folder.
    spec = replace(spec, pad_id=int(row[-1]), clean=_cleaning(own))
    check_ids(checkpoint, spec, lambda texts: own(texts).tolist(), "open_clip", padded=True)
    return spec


def _cleaning(tokenizer: Any) -> str:
    """The name of the cleaning function of an open_clip tokenizer; ``""`` for none."""
    function = getattr(tokenizer, "clean_fn", None)
    return next((name for name in CLEANINGS if get_clean_fn(name) is function), "")
