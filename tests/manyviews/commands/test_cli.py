"""The command line: help, precedence of options, exit codes, and output streams."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest

from consumers.config import BuildConfig
from featurestore.errors import ConfigError, InputError
from featurestore.imdb.genres import CLASS_NAMES
from featurestore.records import FEATURES
from manyviews import main
from manyviews.commands.build import build_config
from manyviews.operations.check import libraries
from tests import warm
from tests.conftest import ROOT, tree_digest

COMMANDS = sorted(main.cli.commands)
VARIABLES = ("CLIP_MODEL_ID_IMG", "CLIP_MODEL_ID_TXT", "BLIP2_MODEL_ID")
PREFIX = "mm_imdb1_globals_aug70"

Output = tuple[int, str, str]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Any:
    """Runs a command in this process through ``main``, as a shell would."""

    def call(*arguments: object) -> Output:
        with pytest.raises(SystemExit) as ended:
            main.main([str(a) for a in arguments])
        output, errors = capfd.readouterr()
        assert isinstance(ended.value.code, int)
        return ended.value.code, output, errors

    return call


@pytest.fixture
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


def shell(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


def forked(*arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "cli.py"), *map(str, arguments)]
    return warm.run(command, capture_output=True, text=True, **options)


# Help -------------------------------------------------------------------------------------------

HELP = """
import contextlib, io, json, sys
from manyviews import main
from manyviews.commands.build import build_config
answers = {}
for command in ("", *json.loads(sys.argv[1])):
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        try:
            main.main([*command.split(), "-h"])
        except SystemExit as ended:
            assert ended.code == 0, command
    loaded = sorted({name.partition(".")[0] for name in sys.modules})
    answers[command] = printed.getvalue(), loaded
print(json.dumps(answers))
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, tuple[str, list[str]]]:
    """The help text of every command, and the modules that are loaded after it was printed."""
    done = subprocess.run(
        [sys.executable, "-c", HELP, json.dumps(COMMANDS)],
        capture_output=True,
        text=True,
        check=True,
        cwd=ROOT,
    )
    assert done.stderr == ""
    found: dict[str, tuple[str, list[str]]] = json.loads(done.stdout)
    return found


def test_the_commands() -> None:
    assert {"build", "demo", "labels", "materialize"} <= set(COMMANDS)


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_answers_without_the_heavy_libraries(
    answers: dict[str, tuple[str, list[str]]], command: str
) -> None:
    text, modules = answers[command]
    assert set(modules).isdisjoint({"torch", "transformers", "zarr", "numpy", "PIL"})
    assert text.startswith("Usage: manyviews")
    if command:
        assert f"Example:\n    python cli.py {command}" in text
        assert "--debug" in text
    else:
        assert all(name in text for name in COMMANDS)


def test_defaults_that_a_store_replaces_are_named(run: Any) -> None:
    for command in ("build", "check"):
        text = " ".join(run(command, "--help")[1].split())
        assert "[default: 70 for MM-IMDb, else 8; or the store's]" in text
        assert "[default: about 4,480 rows, at least 64 samples; or the store's]" in text


def test_every_option_has_a_help_text() -> None:
    for name, command in main.cli.commands.items():
        for option in command.params:
            if isinstance(option, click.Option) and option.name != "prefix":
                assert option.help, f"{name} {option.opts}"


# Precedence -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_variables")
def test_defaults_then_file_then_environment_then_options(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    toml = tmp_path / "build.toml"
    toml.write_text(
        'data_dir = "from-file"\nstore = "s"\nviews = 5\nseed = 6\nfeatures = ["clip_text"]\n'
        "resume = true\nsample_timeout_s = 7\n"
        '[models]\nclip_image = "f1"\nclip_text = "f2"\nblip2 = "f3"\n'
        "[batch_sizes]\nclip_text = 8\nclip_image = 9\n"
    )
    plain = build_config(None, {"data_dir": Path("d"), "store": Path("s")})
    assert plain == BuildConfig(data_dir=Path("d"), store=Path("s"))
    assert (plain.views, plain.features, plain.seed, plain.models) == (None, None, 123, {})

    filed = build_config(toml, {"views": None, "models": (), "batch_sizes": ()})
    assert (filed.data_dir, filed.views, filed.seed) == (tmp_path / "from-file", 5, 6)
    assert (filed.resume, filed.features, filed.sample_timeout_s) == (True, ("clip_text",), 7)
    models = {"clip_image": "f1", "clip_text": "f2", "blip2_image": "f3", "blip2_text": "f3"}
    assert filed.models == models

    monkeypatch.setenv("BLIP2_MODEL_ID", " e3 ")
    monkeypatch.setenv("CLIP_MODEL_ID_TXT", "e2")
    monkeypatch.setenv("CLIP_MODEL_ID_IMG", " ")
    models |= {"clip_text": "e2", "blip2_image": "e3", "blip2_text": "e3"}
    assert build_config(toml, {}).models == models

    options = {
        "data_dir": Path("from-option"),
        "views": 9,
        "features": "clip_image, blip2_text",
        "models": (("blip2_text", "o4"), ("clip_text", "o2")),
        "batch_sizes": (("clip_text", "11"),),
    }
    config = build_config(toml, options)
    assert (config.data_dir, config.views) == (Path("from-option"), 9)
    assert config.store == tmp_path / "s"
    assert config.features == ("clip_image", "blip2_text")
    assert config.models == models | {"blip2_text": "o4", "clip_text": "o2"}
    assert config.batch_sizes == {"clip_text": 11, "clip_image": 9}


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("veiws = 3", "veiws"),
        ('views = "3"', "views has the wrong type"),
        ("views = true", "views has the wrong type"),
        ("views = ", "not a readable TOML"),
        ("[models]\nclip = 'x'", "clip"),
        ("[models]\nclip_text = 3", "clip_text"),
        ("features = [3]", "3"),
        ("[batch_sizes]\nclip_text = 'x'", "clip_text"),
    ],
)
@pytest.mark.usefixtures("no_variables")
def test_an_invalid_config_file_is_refused(tmp_path: Path, content: str, expected: str) -> None:
    toml = tmp_path / "bad.toml"
    toml.write_text(content)
    with pytest.raises(ConfigError, match=expected):
        build_config(toml, {"data_dir": Path("d"), "store": Path("s")})


# Exit codes and streams -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nosuch"], "No such command"),
        (["build", "--nosuch"], "No such option"),
        (["build"], "The inputs are missing: give --data-dir DIR"),
        (["build", "--data-dir", "d"], "--store is missing"),
        (["build", "--views", "x"], "not a valid integer"),
        (["build", "--data-dir", "d", "--store", "s", "--views", "0"], "--views is at least 1"),
        (
            ["build", "--data-dir", "d", "--store", "s", "--producers", "-1"],
            "--producers is at least",
        ),
        (["build", "--data-dir", "d", "--store", "s", "--seed", "-1"], "--seed is at least 0"),
        (["build", "--data-dir", "d", "--store", "s", "--dtype", "int8"], "--dtype is one of"),
        (["build", "--data-dir", "d", "--store", "s", "--features", "x"], "--features is one of"),
        (["build", "--data-dir", "d", "--store", "s", "--features", ""], "--features"),
        (["build", "--data-dir", "d", "--store", "s", "--resume", "--overwrite"], "exclude"),
        (["build", "--model", "clip_text"], "expected NAME=VALUE"),
        (["build", "--data-dir", "d", "--store", "s", "--model", "clip=x"], "found 'clip'"),
        (["build", "--batch-size", "clip_text=x", "--data-dir", "d", "--store", "s"], "FEATURE=N"),
        (["build", "--batch-size", "clip_text=0", "--data-dir", "d", "--store", "s"], "at least 1"),
        (["build", "--bad-sample", "ignore"], "ignore"),
        (["build", "--config", "none.toml"], "none.toml"),
        (["build", "--data-dir", "none", "--store", "s"], "does not exist"),
        (["materialize", "--store", "none", "--out-dir", "o"], "no feature store"),
        (["labels", "--data-dir", "none", "--out-dir", "o"], "does not exist"),
        (["labels", "--data-dir", "d", "--out-dir", "o", "--augment"], "--embeddings-dir"),
    ],
    ids=" ".join,
)
def test_usage_errors(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], expected: str
) -> None:
    monkeypatch.chdir(tmp_path)
    code, output, errors = run(*arguments)
    assert (code, output) == (2, "")
    assert expected in errors
    assert "Traceback" not in errors
    assert not list(tmp_path.iterdir())


def test_an_unexpected_exception_is_a_defect_with_a_hint(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("never thought of")

    monkeypatch.setattr("producers.sources.pairs.scan", broken)
    arguments = ("labels", "--data-dir", "d", "--out-dir", "o")
    code, output, errors = run(*arguments)
    assert (code, output) == (1, "")
    assert errors.splitlines() == [
        "Error: ZeroDivisionError: never thought of",
        "This is a defect; --debug shows where it happened.",
    ]
    code, _, errors = run(*arguments, "--debug")
    assert code == 1
    assert "Traceback (most recent call last)" in errors
    assert "in broken" in errors


def test_debug_shows_the_traceback_of_a_manyviews_error(run: Any) -> None:
    code, _, errors = run("labels", "--data-dir", "none", "--out-dir", "o", "--debug")
    assert code == 2
    assert "Traceback (most recent call last)" in errors
    assert "Error: The data folder none does not exist." in errors


def test_ctrl_c_exits_with_130_and_says_how_to_continue(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("producers.sources.pairs.scan", interrupted)
    code, _, errors = run("labels", "--data-dir", "d", "--out-dir", "o")
    assert (code, errors.strip()) == (130, "Interrupted: run the same command again.")
    monkeypatch.setattr("consumers.build.scan_collection", interrupted)
    code, _, errors = run("build", "--data-dir", "d", "--store", "s")
    assert code == 130
    assert "Stopped by SIGINT before anything was built: run the same command again." in errors
    assert "--resume" not in errors
    assert not Path("s").exists()


def test_a_closed_pipe_prints_no_error(demo_data: Path, tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, str(ROOT / "cli.py"), "labels", "--json"]
    command += ["--data-dir", str(demo_data / "dataset"), "--out-dir", str(tmp_path / "o")]
    done = warm.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "Error" not in done.stderr
    assert "BrokenPipe" not in done.stderr


def test_names_that_a_terminal_cannot_encode_are_escaped(tmp_path: Path) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    stem = os.fsdecode(b"caf\xc3\xa9 \xff")
    (folder / f"{stem}.jpg").write_bytes(b"")
    (folder / f"{stem}.json").write_bytes(b'{"genres": ["Drama", "Caf\\u00e9 \\udcff"]}')
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "LC_ALL": "C"}
    done = shell("labels", "--data-dir", folder, "--out-dir", tmp_path / "o", env=environment)
    assert done.returncode == 0
    assert "'caf\\xe9 \\\\udcff'" in done.stderr
    assert (tmp_path / "o" / "ids_all.txt").read_bytes() == b"caf\xc3\xa9 \xff"


# Commands from end to end -----------------------------------------------------------------------


def test_build_prints_only_json_on_standard_output(
    demo_data: Path, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    store = tmp_path / "store"
    arguments = ["build", "--data-dir", demo_data / "dataset", "--store", store, "--json"]
    arguments += ["--features", "blip2_text", "--model", f"blip2_text={checkpoints['blip2_text']}"]
    arguments += ["--views", 2, "--producers", 1, "--device", "cpu", "--chunk", 16]
    command = [sys.executable, ROOT / "cli.py", *map(str, arguments)]
    done = warm.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 1
    facts = json.loads(done.stdout)
    assert facts["store"] == str(store)
    assert (facts["samples"], facts["views"], facts["built"], facts["bad"]) == (48, 2, 48, [])
    assert facts["unmatched_images"] == ["9999999.jpg"]
    assert "images without a synopsis (1): '9999999.jpg'" in done.stderr
    assert "\x1b" not in done.stderr  # no colours in a pipe
    (log,) = (store / "records" / "runs").glob("*.log")
    events = [json.loads(line)["event"] for line in log.read_text().splitlines()]
    assert events == ["scanned", "loading", "started", "chunk", "chunk", "chunk", "finished"]


def test_a_build_with_bad_samples_exits_with_3_and_lists_them(
    run: Any, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for stem in "ab":
        (data / f"{stem}.jpg").write_bytes(b"")
        (data / f"{stem}.json").write_text("{}" if stem == "a" else "[1]")
    arguments = ["build", "--data-dir", data, "--store", tmp_path / "s", "--views", 8]
    arguments += ["--features", "clip_text", "--model", f"clip_text={checkpoints['clip_text']}"]
    code, output, errors = run(*arguments, "--chunk", 4, "--device", "cpu", "--producers", 1)
    assert (code, output) == (3, "")
    assert "bad inputs, each with a placeholder (1):\n  'b': text not-an-object" in errors
    # The exit code is the same when the store is already complete.
    code, output, errors = run(*arguments, "--resume", "--json", "--chunk", 4, "--device", "cpu")
    assert code == 3
    assert json.loads(output)["built"] == 0
    assert "nothing to do" in errors


def test_labels_from_end_to_end(run: Any, demo_data: Path, tmp_path: Path) -> None:
    data, out, beside = demo_data / "dataset", tmp_path / "labels", tmp_path / "embeddings"
    beside.mkdir()
    common = ("labels", "--data-dir", data, "--out-dir", out)
    code, output, errors = run(
        *common, "--augment", "--views", 3, "--embeddings-dir", beside, "--json"
    )
    assert code == 0
    assert json.loads(output)["samples"] == 48
    assert "48 samples, 23 classes" in errors
    assert "'reality-tv' x 1" in errors.lower()

    stems = sorted(p.stem for p in data.glob("*.json"))
    assert (out / "ids_all.txt").read_text("utf-8") == "\n".join(stems)
    assert json.loads((out / "class_names_23.json").read_bytes()) == list(CLASS_NAMES)
    labels = np.load(out / "labels_all_23.npy")
    assert (labels.shape, labels.dtype) == ((48, 23), np.float32)
    for stem, row in zip(stems, labels, strict=True):
        genres = json.loads((data / f"{stem}.json").read_bytes())["genres"]
        found = {CLASS_NAMES[i] for i in np.flatnonzero(row)}
        assert found == set(genres) & set(CLASS_NAMES)
        assert set(row) <= {0.0, 1.0}

    noisy = np.load(beside / f"{PREFIX}_labels.npy").reshape(48, 3, 23)
    np.testing.assert_array_equal(noisy[:, 0], labels)
    assert 0 < np.abs(noisy[:, 1:] - labels[:, None]).max() <= 0.2 + 1e-6
    assert noisy.min() >= 0 <= 1 - noisy.max()
    manifest = json.loads((beside / f"{PREFIX}_labels_manifest.json").read_bytes())
    assert (manifest["total_rows"], manifest["views_per_sample"]) == (144, 3)

    before = tree_digest(tmp_path)
    assert run(*common, "--augment", "--views", 3, "--embeddings-dir", beside)[0] == 0
    assert tree_digest(tmp_path) == before


def test_augmented_labels_use_views_and_seed_of_the_embeddings(
    run: Any, demo_data: Path, tmp_path: Path
) -> None:
    beside, out = tmp_path / "embeddings", tmp_path / "labels"
    beside.mkdir()
    facts = {"views_per_sample": 3, "seed": 5, "original_rows": 48}
    (beside / f"{PREFIX}_manifest.json").write_text(json.dumps(facts))
    common: tuple[str | Path, ...]
    common = ("labels", "--data-dir", demo_data / "dataset", "--out-dir", out, "--augment")
    common = (*common, "--embeddings-dir", beside)
    for option in ("--views", "--seed"):
        code, _, errors = run(*common, option, 4)
        assert code == 2
        assert f"Leave {option} out" in errors
        assert not out.exists()
    assert run(*common)[0] == 0
    manifest = json.loads((beside / f"{PREFIX}_labels_manifest.json").read_bytes())
    assert (manifest["views_per_sample"], manifest["seed"]) == (3, 5)


def test_labels_of_a_data_set_without_genres(run: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    (data / "a.jpg").write_bytes(b"")
    (data / "a.json").write_text('{"plot": "x", "genres": ["Reality"]}')
    code, output, errors = run("labels", "--data-dir", data, "--out-dir", tmp_path / "o", "--json")
    assert (code, output) == (2, "")
    assert "None of 1 synopses names one of the 23 genres" in errors
    assert not (tmp_path / "o").exists()


def test_labels_of_synopses_that_cannot_be_read(run: Any, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for stem, content in {"a": '{"genres": ["Drama"]}', "b": "{", "c": "{}"}.items():
        (data / f"{stem}.jpg").write_bytes(b"")
        (data / f"{stem}.json").write_text(content)
    code, _, errors = run("labels", "--data-dir", data, "--out-dir", tmp_path / "o")
    assert code == 0
    assert "synopses that could not be read (1): 'b'" in errors
    assert "samples without a known genre (1): 'c'" in errors
    assert np.load(tmp_path / "o" / "labels_all_23.npy").sum() == 1


def test_the_demo_empties_only_folders_that_it_created(run: Any, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    before = tree_digest(tmp_path)
    code, _, errors = run("demo", "--out-dir", tmp_path)
    assert code == InputError.exit_code == 2
    assert "was not created by the demo" in errors
    assert tree_digest(tmp_path) == before


def test_options_without_effect_are_refused(run: Any, tmp_path: Path) -> None:
    common = ("--store", tmp_path, "--out-dir", tmp_path / "o", "--split-json", tmp_path / "s.json")
    for command in (("materialize",), ("export", "--format", "npy")):
        code, _, errors = run(*command, *common)
        assert code == 2
        assert "--split-json requires --zscore train" in errors
    for option, value in (("--embeddings-dir", tmp_path), ("--views", 3), ("--seed", 1)):
        code, _, errors = run(
            "labels", "--data-dir", tmp_path, "--out-dir", tmp_path, option, value
        )
        assert code == 2
        assert f"{option} requires --augment" in errors


def test_a_file_instead_of_a_folder_is_refused(run: Any, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    code, _, errors = run("demo", "--out-dir", file)
    assert code == 2
    assert "is not a folder" in errors


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_an_unwritable_standard_output_is_reported(demo_store: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = warm.run(
            [sys.executable, str(ROOT / "cli.py"), "status", "--store", str(demo_store)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    assert done.returncode != 0
    assert "Could not write to standard output: No space left on device" in done.stderr
    assert "defect" not in done.stderr


@pytest.mark.parametrize("closed", ["2>&-", ">&- 2>&-"])
def test_closed_streams_do_not_make_a_command_fail(
    demo_store: Path, tmp_path: Path, closed: str
) -> None:
    python = f"{sys.executable} {ROOT / 'cli.py'}"
    command = f"{python} verify --store {demo_store} --json {closed}"
    done = subprocess.run(["sh", "-c", command], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == 0
    assert ">" not in closed[0] or not done.stdout
    assert closed[0] == ">" or json.loads(done.stdout)["findings"] == []


def test_no_opened_file_gets_the_descriptor_of_a_closed_stream(
    demo_store: Path, tmp_path: Path
) -> None:
    """Otherwise a library's output would be written into that file."""
    script = (
        "import os\n"
        "from featurestore.system import durable\n"
        "from manyviews import main\n"
        "def meet(operation, path, size):\n"
        "    seen.append(os.readlink('/proc/self/fd/2'))\n"
        "    return size\n"
        "seen = []\n"
        "durable.hook = meet\n"
        "try:\n"
        f"    main.main(['materialize', '--store', {str(demo_store)!r}, '--out-dir', 'out'])\n"
        "finally:\n"
        "    print(set(seen))\n"
    )
    command = f'{sys.executable} -c "$SCRIPT" 2>&-'
    environment = {**os.environ, "SCRIPT": script, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        ["sh", "-c", command],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "{'/dev/null'}\n")


# Options of every command ------------------------------------------------------------------------


def test_the_version_lists_libraries_that_affect_numbers(run: Any) -> None:
    import torch
    import transformers

    code, output, errors = run("--version")
    assert (code, errors) == (0, "")
    lines = dict(line.split(" ", 1) for line in output.splitlines())
    assert lines["torch"] == torch.__version__
    assert lines["transformers"] == transformers.__version__
    assert lines["kernels"]


def test_the_version_says_whether_torchvision_fits(
    run: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for fits in (True, False):
        monkeypatch.setattr(libraries, "torchvision_fits", lambda fits=fits: fits)
        code, output, _ = run("--version")
        assert code == 0
        assert ("torchvision does not fit this torch: call" in output) is not fits


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("ver", ["verify"]),
        ("build --bad-sample f", ["fail"]),
        ("build --verify-", ["--verify-inputs"]),
        ("build --features clip_image,", [f"clip_image,{n}" for n in FEATURES[1:]]),
        ("build --model blip2_t", ["blip2_text="]),
    ],
)
def test_shell_completion_offers_commands_and_features(words: str, expected: list[str]) -> None:
    typed = f"manyviews {words}"
    environment = {
        "COMP_WORDS": typed,
        "COMP_CWORD": str(len(typed.split()) - 1),
        "_MANYVIEWS_COMPLETE": "bash_complete",
    }
    done = forked(env=os.environ | environment)
    assert [line.split(",", 1)[1] for line in done.stdout.splitlines()] == expected


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_the_documented_variable_prints_the_script_of_a_shell(name: str) -> None:
    page = (ROOT / "docs/command-line.md").read_text("utf-8")
    assert "_MANYVIEWS_COMPLETE=bash_source manyviews >> ~/.bashrc" in page
    assert f"{name}_source" in page
    done = forked(env=os.environ | {"_MANYVIEWS_COMPLETE": f"{name}_source"})
    assert (done.returncode, done.stderr) == (0, "")
    assert f"_MANYVIEWS_COMPLETE={name}_complete" in done.stdout
    if name == "bash":
        subprocess.run(["bash", "-n"], input=done.stdout, text=True, check=True)


def test_quiet_and_verbose(
    run: Any, demo_data: Path, checkpoints: dict[str, str], tmp_path: Path
) -> None:
    data = tmp_path / "data"
    data.mkdir()
    for number, file in enumerate(sorted((demo_data / "dataset").glob("*.jpg"))[:6]):
        (data / f"{number}.jpg").write_bytes(file.read_bytes())
        (data / f"{number}.json").write_text('{"plot": ' if number == 4 else '{"plot": "a b"}')
    typed = ["build", "--data-dir", data, "--features", "clip_text", "--views", "8"]
    typed += ["--model", f"clip_text={checkpoints['clip_text']}", "--chunk", "4", "--store"]
    assert run(*typed, tmp_path / "a", "-q") == (3, "", "")
    code, output, errors = run(*typed, tmp_path / "b", "-v")
    assert (code, output) == (3, "")
    assert errors.count("samples/s, ") == 2
    assert "sample 4: text not-json" in errors
    code, output, errors = run(*typed, tmp_path / "a", "-q")
    assert (code, output) == (2, "")
    assert errors.startswith("Error: ")
