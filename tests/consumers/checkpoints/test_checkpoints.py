from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from consumers.backbones import registry
from consumers.checkpoints import checkpoints
from consumers.checkpoints.weights import wanted_files, weight_problem
from consumers.preprocessing.pixels import read_preprocessing
from featurestore.errors import ConfigError
from featurestore.records import FEATURES
from producers.recipes.images.geometry import ImageSpec
from tests.consumers.conftest import KINDS

OTHER = {"clip": "blip2", "sentence": "clip", "blip2": "sentence"}


@pytest.fixture
def copy(tiny_folders: dict[str, Path], tmp_path: Path) -> Any:
    def make(kind: str) -> Path:
        return Path(shutil.copytree(tiny_folders[kind], tmp_path / kind))

    return make


def refused(feature: str, folder: Path | str) -> str:
    with pytest.raises(ConfigError) as error:
        registry.load(feature, str(folder), "cpu", "float32")
    message = str(error.value)
    assert message.count("\n") <= 3
    return message


@pytest.mark.parametrize("feature", FEATURES)
def test_a_checkpoint_of_another_kind(feature: str, tiny_folders: dict[str, Path]) -> None:
    message = refused(feature, tiny_folders[OTHER[KINDS[feature]]])
    assert "checkpoint, expected" in message
    assert f"--model {feature}=" in message


@pytest.mark.parametrize("feature", FEATURES)
@pytest.mark.parametrize("keep", [0, 4, 100, -1])
def test_truncated_weights(feature: str, keep: int, copy: Any) -> None:
    weights = copy(KINDS[feature]) / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    assert "model.safetensors" in refused(feature, weights.parent)


def test_weights_that_are_a_pickle(copy: Any) -> None:
    folder = copy("clip")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'true'\ntR.")
    assert "pytorch_model.bin" in refused("clip_image", folder)


def test_a_zipped_pickle_is_not_run(copy: Any, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    folder = copy("clip")
    (folder / "model.safetensors").unlink()
    torch.save({"vision_model.x": Evil()}, folder / "pytorch_model.bin")
    refused("clip_image", folder)
    assert not (tmp_path / "ran").exists()


def save_legacy(folder: Path) -> Path:
    """Replaces a checkpoint's weights by a file in the format of torch.save before torch 1.6."""
    from safetensors.torch import load_file

    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    path = folder / "pytorch_model.bin"
    torch.save(weights, path, _use_new_zipfile_serialization=False)
    return path


@pytest.mark.parametrize("feature", ["clip_image", "clip_text", "blip2_text"])
def test_weights_from_before_torch_1_6(feature: str, copy: Any, backbone: Any) -> None:
    folder = copy(KINDS[feature])
    save_legacy(folder)
    found = registry.load(feature, str(folder), "cpu", "float32")
    for own, other in zip(
        found._network.parameters(),  # type: ignore[union-attr]
        backbone(feature)._network.parameters(),
        strict=True,
    ):
        assert torch.equal(own, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.int64])
def test_such_weights_that_are_truncated(dtype: torch.dtype, tmp_path: Path) -> None:
    """Truncation is found anywhere, also within the last value, which a view shares."""
    whole = torch.arange(60).to(dtype).view(3, 20)
    named = {"one": whole, "view": whole[1:], "other": torch.ones(7, dtype=torch.bool)}
    path = tmp_path / "pytorch_model.bin"
    torch.save(named, path, _use_new_zipfile_serialization=False)
    content = path.read_bytes()
    assert weight_problem(tmp_path, path.name) == ""
    assert len(torch.load(path, weights_only=True)) == 3
    for length in range(len(content)):
        path.write_bytes(content[:length])
        assert weight_problem(tmp_path, path.name), length


def test_a_legacy_pickle_is_not_run(copy: Any, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "ran",)

    path = save_legacy(copy("clip"))
    torch.save({"vision_model.x": Evil()}, path, _use_new_zipfile_serialization=False)
    refused("clip_image", path.parent)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("feature", FEATURES)
def test_no_weights(feature: str, copy: Any) -> None:
    folder = copy(KINDS[feature])
    for weights in folder.rglob("*.safetensors"):
        weights.unlink()
    assert "no weights" in refused(feature, folder)


@pytest.mark.parametrize(
    ("feature", "lost"),
    [
        ("clip_image", "visual_projection.weight"),
        ("blip2_image", "qformer.layernorm.weight"),
        ("blip2_image", "query_tokens"),
        ("blip2_text", "language_model.encoder.final_layer_norm.weight"),
        ("blip2_text", "language_model.shared.weight"),
    ],
)
def test_a_missing_weight_is_never_random(feature: str, lost: str, copy: Any) -> None:
    from safetensors.torch import load_file, save_file

    weights = copy(KINDS[feature]) / "model.safetensors"
    tensors = load_file(weights)
    del tensors[lost]
    save_file(tensors, weights, {"format": "pt"})
    message = refused(feature, weights.parent)
    assert "lacks weights" in message
    assert lost.rsplit(".", 2)[-2 if "." in lost else -1] in message


def test_missing_folders_and_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "is not a folder" in refused("clip_image", tmp_path / "nowhere")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    message = refused("blip2_text", "nobody/nothing-of-this-name")
    assert "nobody/nothing-of-this-name" in message
    assert "--model blip2_text=DIR" in message
    assert "could be neither fetched from the hub nor found" in refused("clip_text", "not a name")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"model_type": "bert"}'])
def test_damaged_config(content: str, copy: Any) -> None:
    folder = copy("clip")
    (folder / "config.json").write_text(content)
    assert "clip" in refused("clip_image", folder)


def test_unknown_sentence_modules(copy: Any) -> None:
    folder = copy("sentence")
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["type"] = "custom_st.Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    assert "custom_st.Transformer" in refused("clip_text", folder)


def test_default_prompts_are_refused(copy: Any) -> None:
    path = copy("sentence") / "config_sentence_transformers.json"
    config = json.loads(path.read_text())
    config |= {"prompts": {"query": "query: "}, "default_prompt_name": "query"}
    path.write_text(json.dumps(config))
    assert "default prompt" in refused("clip_text", path.parent)


def test_lower_casing_and_length_come_from_the_checkpoint(copy: Any) -> None:
    path = copy("sentence") / "sentence_bert_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps(config | {"do_lower_case": True, "max_seq_length": 77}))
    spec = registry.load("clip_text", str(path.parent), "cpu", "auto").text  # type: ignore[union-attr]
    assert spec.max_length == 77
    # sentence-transformers 6 lower-cases inside the tokenizer, earlier ones before it.
    assert spec.lower or "Lowercase" in spec.tokenizer_json


def test_the_decoder_is_not_loaded(backbone: Any, tiny_folders: dict[str, Path]) -> None:
    from safetensors import safe_open

    with safe_open(tiny_folders["blip2"] / "model.safetensors", "pt") as file:
        sizes = {key: file.get_tensor(key).numel() for key in file.keys()}  # noqa: SIM118
    image = {k: n for k, n in sizes.items() if not k.startswith("language_")}
    encoder = ("language_model.encoder.", "language_model.shared.")
    text = {k: n for k, n in sizes.items() if k.startswith(encoder)}
    held = {f: list(backbone(f)._network.parameters()) for f in ("blip2_image", "blip2_text")}
    assert sum(p.numel() for p in held["blip2_image"]) == sum(image.values())
    assert sum(p.numel() for p in held["blip2_text"]) == sum(text.values())
    assert sum(image.values()) + sum(text.values()) < sum(sizes.values())


# --- fingerprints ---------------------------------------------------------------------------------


def test_fingerprints_do_not_depend_on_the_path(copy: Any, tiny_folders: dict[str, Path]) -> None:
    moved = checkpoints.resolve(str(copy("clip")))
    first = checkpoints.resolve(str(tiny_folders["clip"]))
    assert moved.name == first.name == "clip"
    assert moved.fingerprint(moved.files) == first.fingerprint(reversed(first.files))


@pytest.mark.parametrize(
    "name", ["config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"]
)
def test_fingerprints_follow_the_files_that_matter(name: str, copy: Any) -> None:
    feature, kind = (
        ("clip_text", "sentence") if name == "tokenizer.json" else ("clip_image", "clip")
    )
    folder = copy(kind)
    (folder / "README.md").write_text("changes nothing")
    before = registry.load(feature, str(folder), "cpu", "auto").fingerprint
    (folder / "README.md").write_text("nor does this")
    assert registry.load(feature, str(folder), "cpu", "auto").fingerprint == before
    if name == "model.safetensors":
        from safetensors.torch import load_file, save_file

        tensors = load_file(folder / name)
        tensors["visual_projection.weight"] += 1
        save_file(tensors, folder / name, {"format": "pt"})
    else:
        (folder / name).write_text((folder / name).read_text() + "\n")
    assert registry.load(feature, str(folder), "cpu", "auto").fingerprint != before


def test_modules_in_folders_of_any_name_are_hashed(copy: Any) -> None:
    """sentence-transformers loads what modules.json names, wherever it is."""
    from safetensors.torch import load_file, save_file

    folder = copy("sentence")
    modules = json.loads((folder / "modules.json").read_text())
    (dense,) = (module for module in modules if module["path"].endswith("_Dense"))
    (folder / "parts").mkdir()
    (folder / dense["path"]).rename(folder / "parts/dense")
    dense["path"] = "parts/dense"
    (folder / "modules.json").write_text(json.dumps(modules))
    before = registry.load("clip_text", str(folder), "cpu", "auto").fingerprint
    weights = folder / "parts/dense/model.safetensors"
    tensors = load_file(weights)
    tensors["linear.weight"] += 1
    save_file(tensors, weights, {"format": "pt"})
    assert registry.load("clip_text", str(folder), "cpu", "auto").fingerprint != before


def test_wanted_files_are_one_format_of_the_weights() -> None:
    shards = [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)]
    names = [
        *shards,
        "model.safetensors.index.json",
        "pytorch_model.bin.index.json",
        "pytorch_model-00001-of-00002.bin",
        "tf_model.h5",
        "flax_model.msgpack",
        "README.md",
        "config.json",
        "tokenizer.json",
        "onnx/model.onnx",
        "openvino/config.json",
        "2_Dense/config.json",
        "2_Dense/pytorch_model.bin",
        "../config.json",
    ]
    assert wanted_files(names) == (
        "2_Dense/config.json",
        "2_Dense/pytorch_model.bin",
        "config.json",
        *shards,
        "model.safetensors.index.json",
        "tokenizer.json",
    )


def test_sharded_weights(tiny_folders: dict[str, Path], tmp_path: Path) -> None:
    from transformers import CLIPModel

    model = CLIPModel.from_pretrained(tiny_folders["clip"])
    folder = Path(shutil.copytree(tiny_folders["clip"], tmp_path / "clip"))
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="300KB")
    shards = sorted(folder.glob("model-*.safetensors"))
    assert len(shards) > 1
    pixels = torch.arange(224 * 224 * 3).to(torch.uint8).view(1, 224, 224, 3)
    whole, parts = (
        registry.load("clip_image", str(f), "cpu", "auto") for f in (tiny_folders["clip"], folder)
    )
    assert torch.equal(whole.embed(pixels), parts.embed(pixels))  # type: ignore[call-arg]
    assert whole.fingerprint != parts.fingerprint
    shards[-1].unlink()
    assert f"names {shards[-1].name}, which is missing" in refused("clip_image", folder)


# --- image processors -----------------------------------------------------------------------------

CLIP = {"image_processor_type": "CLIPImageProcessor"}
BLIP = {"image_processor_type": "BlipImageProcessor"}


@pytest.mark.parametrize(
    ("config", "spec"),
    [
        (CLIP, ImageSpec(224, 224, 3)),
        (
            {"feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224},
            ImageSpec(224, 224, 3),
        ),
        (CLIP | {"size": {"shortest_edge": 256}, "resample": 2}, ImageSpec(224, 256, 2)),
        (CLIP | {"size": {"height": 224, "width": 224}}, ImageSpec(224, None, 3)),
        (BLIP | {"size": 224}, ImageSpec(224, None, 3)),
        (BLIP | {"size": {"height": 224, "width": 224}}, ImageSpec(224, None, 3)),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_processors_in_every_layout(
    config: dict[str, Any], spec: ImageSpec, nested: bool, tmp_path: Path
) -> None:
    name = "processor_config.json" if nested else "preprocessor_config.json"
    content = {"image_processor": config} if nested else config
    (tmp_path / name).write_text(json.dumps(content))
    assert read_preprocessing(checkpoints.resolve(str(tmp_path)), 224).image == spec


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        ({"image_processor_type": "ViTImageProcessor"}, "ViTImageProcessor"),
        (CLIP | {"do_resize": False}, "without do_resize"),
        (CLIP | {"do_rescale": False}, "without do_rescale"),
        (CLIP | {"do_center_crop": False}, "centre crop None"),
        (CLIP | {"crop_size": {"height": 224, "width": 200}}, "not a square"),
        (CLIP | {"size": {"shortest_edge": 200}}, "shortest edge 200"),
        (CLIP | {"image_mean": [0.5]}, "1 channels"),
        (CLIP | {"size": {"longest_edge": 224}}, "not a square"),
        (BLIP, "384 pixels, but a model of 224"),
        ({}, "no preprocessor_config.json"),
    ],
)
def test_processors_that_are_not_reproduced(
    config: dict[str, Any], problem: str, tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=problem):
        read_preprocessing(checkpoints.resolve(str(tmp_path)), 224)
