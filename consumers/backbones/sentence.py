"""``clip_text``, and any other sentence-transformers model; vectors are not normalised here."""

from __future__ import annotations

import itertools
import json
from typing import Any

import torch

from consumers.backbones.protocol import BackboneRequest
from consumers.checkpoints import checkpoints
from consumers.checkpoints.checkpoints import Checkpoint
from consumers.checkpoints.loading import check_rows, dtype_argument, freeze, text_spec
from consumers.checkpoints.weights import PROCESSOR_FILES, is_module_folder
from consumers.preprocessing.library_ids import Own, check_ids
from consumers.preprocessing.masking import prepare_masks
from consumers.preprocessing.padding import (
    attend_to_whole_texts,
    depends_on_padding,
    embed_by_length,
)
from consumers.preprocessing.token_types import read_types
from featurestore.system.torchvision_ops import ensure_importable
from producers.recipes.texts.tokens import TextSpec

ensure_importable()
from sentence_transformers import SentenceTransformer  # noqa: E402

_LIBRARY = "sentence-transformers"
# Modules of the library that are not supported, with the reason.
_REFUSED = {
    "StaticEmbedding": "it has no tokens for the empty text, and its length has no limit",
    "WordEmbeddings": "it has no tokenizer.json",
    "BoW": "it counts words, without a tokenizer.json",
    "Router": "it embeds queries and documents differently",
    "Asym": "it embeds queries and documents differently",
    "CLIPModel": "it embeds images as well; use the CLIP model with transformers-text or -image",
    "MLMTransformer": "it returns sparse vectors",
    "SpladePooling": "it returns sparse vectors",
}
# Has different ids for every combination of stripping and lower-casing, if a tokenizer has.
_PROBE = " \n Probe IN Two cases \n "


class SentenceText:
    """Sentence embeddings as ``encode(normalize_embeddings=False)``; a ``TextBackbone``."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        max_length: int = 0,
    ) -> None:
        self.feature = checkpoint.feature
        self.model = checkpoint.name
        self.device, self.dtype = device, dtype
        self._network = freeze(_load_network(checkpoint, device, dtype), device, checkpoint)
        if max_length:
            self._network.max_seq_length = max_length
        encoder = self._network[0].auto_model
        with checkpoint.loading(_LIBRARY):
            prepare_masks(encoder)
        if self._network.default_prompt_name:
            raise checkpoint.error("puts a default prompt before each text, which is unsupported")
        with checkpoint.loading(_LIBRARY):
            self.text = _text_spec(checkpoint, self._network)
            check_rows(checkpoint, self.text, encoder.get_input_embeddings())
            self._types = read_types(self._network.tokenizer, encoder.forward)
            self.dim = self._probe_dim()
            self._by_length = depends_on_padding(encoder, self._embed, self.text)
        processors = checkpoint.select(PROCESSOR_FILES)
        files = {*checkpoint.files, *_other_module_files(checkpoint)} - set(processors)
        self.fingerprint = checkpoint.fingerprint(files)

    @torch.inference_mode()
    def embed(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embed int64 ``[B, L]`` with its 0/1 mask ``[B, L]``; returns float32 ``[B, D]``."""
        if self._by_length:
            return embed_by_length(self._embed, input_ids, attention_mask)
        return self._embed(input_ids, attention_mask)

    @torch.inference_mode()
    def _embed(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        features = {"input_ids": ids, "attention_mask": mask.long()}
        if self._types is not None:
            features["token_type_ids"] = self._types(ids, mask)
        vectors: torch.Tensor = self._network(features)["sentence_embedding"]
        return vectors.float()

    def _probe_dim(self) -> int:
        # Modules may change a vector's length without declaring it, so one text is embedded.
        ids = torch.zeros(1, 2, dtype=torch.int64, device=self.device)
        return int(self._embed(ids, torch.ones_like(ids)).shape[1])


def load(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> SentenceText:
    """Load a sentence-transformers checkpoint.

    Args:
        checkpoint: a folder with ``modules.json``.
        device: device to compute on.
        dtype: must be float32, because the published features are.

    Raises:
        ConfigError: the checkpoint is damaged, of another kind, or requires custom code.
        ValueError: ``dtype`` is not float32.
    """
    if dtype != torch.float32:
        raise ValueError(f"clip_text is always float32, not {dtype}")
    _check_modules(checkpoint)
    checkpoint.check_weights()
    return SentenceText(checkpoint, device)


def load_declared(request: BackboneRequest) -> SentenceText:
    """Load any sentence-transformers checkpoint, with its own pooling and further modules.

    Raises:
        ConfigError: the checkpoint is damaged, of another kind, or requires custom code.
    """
    checkpoint = checkpoints.resolve(request.model, request.feature)
    _check_modules(checkpoint)
    checkpoint.check_weights()
    return SentenceText(checkpoint, request.device, request.dtype, request.max_length)


def _check_modules(checkpoint: Checkpoint) -> None:
    """Refuse folders that are no sentence-transformers model, or that need unknown classes."""
    path = checkpoint.folder / "modules.json"
    if not path.is_file():
        kind = checkpoint.config.get("model_type") or "nameless"
        raise checkpoint.error(
            f"is a {kind} checkpoint, expected a sentence-transformers one (no modules.json)"
        )
    try:
        types = [str(module["type"]) for module in json.loads(path.read_text("utf-8"))]
    except (ValueError, LookupError, TypeError) as error:
        raise checkpoint.error("has an unreadable modules.json") from error
    unknown = [t for t in types if not t.startswith("sentence_transformers.")]
    if unknown:
        raise checkpoint.error(f"needs code outside of sentence-transformers: {unknown[0]}")
    names = [t.rpartition(".")[2] for t in types]
    refused = next((name for name in names if name in _REFUSED), None)
    if refused is None and names[:1] != ["Transformer"]:
        refused = names[0] if names else "nothing"
    if refused is not None:
        why = _REFUSED.get(refused, "only models whose first module is a Transformer are supported")
        raise checkpoint.error(f"has the module {refused}, which is unsupported: {why}")


def _other_module_files(checkpoint: Checkpoint) -> list[str]:
    """The files in folders of modules that do not have the library's usual names.

    The library loads a module from any folder that ``modules.json`` names.
    """
    modules = json.loads((checkpoint.folder / "modules.json").read_text("utf-8"))
    paths = [str(module.get("path", "")) for module in modules]
    return [
        f"{path}/{file.relative_to(checkpoint.folder / path).as_posix()}"
        for path in paths
        if path and not is_module_folder(path)
        for file in (checkpoint.folder / path).rglob("*")
        if file.is_file()
    ]


def _load_network(checkpoint: Checkpoint, device: torch.device, dtype: torch.dtype) -> Any:
    with checkpoint.loading(_LIBRARY):
        network = SentenceTransformer(
            str(checkpoint.folder),
            device=str(device),
            trust_remote_code=False,
            local_files_only=True,
            # The kind of attention is not set: transformers uses SDPA for the classes that have it.
            model_kwargs=dtype_argument(dtype),
        )
        attend_to_whole_texts(network[0].auto_model)
    return network.to(dtype)


def _text_spec(checkpoint: Checkpoint, network: Any) -> TextSpec:
    limit = network.max_seq_length
    if not isinstance(limit, int) or limit > 100_000:
        # A tokenizer without a limit reports 10**30; rows of a chunk need a bounded length.
        raise checkpoint.error("sets no max_seq_length")
    strip, lower = _text_treatment(checkpoint, network)
    spec = text_spec(checkpoint, network.tokenizer, limit, strip=strip, lower=lower)
    check_ids(checkpoint, spec, _own_ids(network), _LIBRARY)
    return spec


def _own_ids(network: Any) -> Own:
    """The library's function from texts to their ids, without padding."""
    preprocess = getattr(network, "preprocess", None) or network.tokenize

    def own(texts: list[str]) -> list[list[int]]:
        batch = preprocess(texts)
        if "attention_mask" not in batch:  # the padding cannot be recognised
            return [preprocess([text])["input_ids"][0].tolist() for text in texts]
        rows = zip(batch["input_ids"], batch["attention_mask"], strict=True)
        return [ids[mask == 1].tolist() for ids, mask in rows]

    return own


def _text_treatment(checkpoint: Checkpoint, network: Any) -> tuple[bool, bool]:
    """Whether sentence-transformers strips and lower-cases texts itself: (strip, lower).

    Versions before 6 strip every text; later ones pass it to the tokenizer unchanged. Testing the
    model with an example works for all versions, and detects any other treatment.
    """
    expected = _own_ids(network)([_PROBE])[0]
    for strip, lower in itertools.product((False, True), repeat=2):
        text = _PROBE.strip() if strip else _PROBE
        if network.tokenizer(text.lower() if lower else text)["input_ids"] == expected:
            return strip, lower
    raise checkpoint.error("changes texts before tokenising in an unsupported way")
