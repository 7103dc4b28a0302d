"""At the doors: what cannot be is one line and exit code 2, nothing is left behind, and nobody else's files go."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
import yaml

import mm1
from data_pipelines.__main__ import main as data
from mm1.errors import UserError
from mm1.interop.__main__ import main as convert
from mm1.interop.export import export
from mm1.interop.join import join
from mm1.interop.origin import Origin
from mm1.interop.upcycle import upcycle
from mm1.interop.write import UNFINISHED
from tests.mm1.interop.published import write
from tests.mm1.interop.test_join import model  # noqa: F401, a fixture

Change = Callable[[Path], object]


def refused(door: Callable[[], None], words: list[Any], message: str, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setattr(sys, "argv", ["door", *map(str, words)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        door()
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert told.startswith("error: ")
    assert len(told.splitlines()) == 1
    assert message in told


def set_json(name: str, *path: str, **values: Any) -> Change:
    def change(folder: Path) -> None:
        whole = json.loads((folder / name).read_text())
        inner = whole
        for key in path:
            inner = inner[key]
        inner.update(values)
        (folder / name).write_text(json.dumps(whole))

    return change


def put(name: str, content: bytes) -> Change:
    return lambda folder: (folder / name).write_bytes(content)


def integers(folder: Path) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    weights["decoder.norm.weight"] = weights["decoder.norm.weight"].long()
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "1"})


STORED: dict[str, tuple[Change, str]] = {
    "no YAML": (put("model.yaml", b""), "has a model configuration without a class_path"),
    "YAML of nothing": (put("model.yaml", b"a: \xff"), "Option 'a' is not accepted"),
    "YAML of a list": (put("model.yaml", b"[1]"), "has a model configuration without a class_path"),
    "text for weights": (put("model.safetensors", b"hello hello"), "is not readable as safetensors"),
    "integers for weights": (integers, "1 tensors of no weights, the first: decoder.norm.weight is torch.int64"),
    "no tokenizer": (lambda f: (f / "tokenizer.json").unlink(), "holds no tokenizer.model or tokenizer.json"),
    "two tokenizers": (put("tokenizer.model", b"x"), "holds tokenizer.model and tokenizer.json"),
    "an empty tokenizer": (put("tokenizer.json", b""), "the tokenizer's bytes is neither"),
    "an origin in Latin 1": (put("origin.json", b"\xff"), "(origin.json) is broken"),
    "an origin of nothing": (put("origin.json", b"[]"), "(origin.json) is broken"),
    "another family": (set_json("origin.json", "decoder", family="nope"), "has decoder.family = 'nope'"),
    "another layout": (set_json("origin.json", "decoder", layout=7), "has decoder.layout = 7"),
    "no settings": (set_json("origin.json", "decoder", config="nope"), "has decoder.config = 'nope'"),
    "another type": (set_json("origin.json", "decoder", dtype="float99"), "has decoder.dtype = 'float99'"),
    "a file elsewhere": (set_json("origin.json", "decoder", files={"../evil": "x"}), "has decoder.files = "),
    "another tower": (set_json("origin.json", vision="nope"), "(origin.json) is broken"),
}


@pytest.fixture(scope="module")
def joined(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:  # noqa: F811, the fixture
    folder = tmp_path_factory.mktemp("joined")
    return join(model, write("llama", folder / "source"), folder / "model")


@pytest.mark.parametrize("fault", STORED)
def test_a_model_that_is_not_whole_is_not_written_anew(
    fault: str, joined: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = STORED[fault]
    source = tmp_path / "in" / "model"
    shutil.copytree(joined, source)
    change(source)
    for words in (["export"], ["export", "--to", "decoder"], ["upcycle"]):
        refused(convert, [words[0], source, tmp_path / "in" / "out", *words[1:]], message, monkeypatch, capsys)
    assert [path.name for path in (tmp_path / "in").iterdir()] == ["model"]
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_folder_for_transformers_without_its_tree_is_told(joined: Path, tmp_path: Path) -> None:
    folder = export(joined, tmp_path / "model", to="transformers")
    config = json.loads((folder / "config.json").read_text())
    del config["mm1"]["model"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"has a broken config\.json"):
        mm1.load(folder)


TREES: dict[str, tuple[dict[str, Any], str]] = {
    "vision of nothing": ({"vision": None}, "has a NoneType at vision; expected class_path and init_args"),
    "vision of words": ({"vision": "mm1.model.vision.Timm"}, "has a str at vision"),
    "arguments in a list": ({"vision": {"class_path": "mm1.model.vision.Timm", "init_args": [1]}}, "dict at vision"),
    "a grid that cannot be pooled": (
        {"connector": {"class_path": "mm1.model.connector.AveragePool", "init_args": {"tokens": 36}}},
        "the encoder makes 4 x 4 patches and the connector is to pool them to 6 x 6 tokens",
    ),
}


@pytest.mark.parametrize("fault", TREES)
def test_a_yaml_that_describes_no_parts_is_told(
    fault: str,
    model: Path,  # noqa: F811, the fixture
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    parts, message = TREES[fault]
    tree = yaml.safe_load(model.read_text())
    (tmp_path / "model.yaml").write_text(yaml.safe_dump({**tree, "init_args": tree["init_args"] | parts}))
    words = ["join", "--model", tmp_path / "model.yaml", "--decoder", write("llama", tmp_path / "source")]
    refused(convert, [*words, "--out", tmp_path / "out"], message, monkeypatch, capsys)
    (tmp_path / "model.yaml").write_bytes(b"a: \xff")
    refused(convert, [*words, "--out", tmp_path / "out"], "model.yaml is not YAML", monkeypatch, capsys)


TOKENIZERS: dict[str, tuple[Change, str]] = {
    "deep": (put("tokenizer.json", b"[" * 100_000), "is not readable as JSON"),
    "steps that are none": (
        set_json("tokenizer.json", pre_tokenizer={"type": "Sequence", "pretokenizers": 5}),
        "cannot spell any text",
    ),
    "a step of no kind": (set_json("tokenizer.json", pre_tokenizer={"type": ["a"]}), "cannot spell any text"),
}


@pytest.mark.parametrize("fault", TOKENIZERS)
def test_a_tokenizer_that_is_none_is_not_taken(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    change, message = TOKENIZERS[fault]
    source = write("llama", tmp_path / "source")
    change(source)
    refused(data, ["tokenizer", "--take", source, "--out", tmp_path / "corpus"], message, monkeypatch, capsys)
    assert not (tmp_path / "corpus").exists()


def test_a_text_beside_a_decoder_that_is_none_is_told(model: Path, tmp_path: Path) -> None:  # noqa: F811
    source = write("llama", tmp_path / "source")
    (source / "special_tokens_map.json").write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"special_tokens_map\.json is no UTF-8 text"):
        join(model, source, tmp_path / "joined")


def test_what_lies_where_a_folder_is_to_be_stays(joined: Path, tmp_path: Path) -> None:
    mine = tmp_path / "out.tmp"
    mine.mkdir()
    (mine / "precious").write_text("mine")
    export(joined, tmp_path / "out")
    assert (mine / "precious").read_text() == "mine"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(UserError, match="link exists already"):
        upcycle(joined, tmp_path / "link")


def test_names_may_be_anything(model: Path, tmp_path: Path) -> None:  # noqa: F811
    """Spaces, signs and other letters; a folder of links, as the cache of the hub has them."""
    folder = tmp_path / "sp ace ünï 漢 'q\"; $x"
    blobs, snapshot = folder / "blobs", folder / "models--maker--tiny" / "snapshots" / "abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted(write("qwen2", tmp_path / "source", shard="60kB").iterdir())):
        shutil.copy(file, blobs / str(number))
        (snapshot / file.name).symlink_to(blobs / str(number))
    made = join(model, snapshot, folder / "jöined")
    assert (
        mm1.load(export(upcycle(made, folder / "up"), folder / "ex p", to="transformers")).tokenizer.image is not None
    )
    decoder = Origin.from_json((made / "origin.json").read_text()).decoder
    assert decoder is not None
    assert decoder.source == "maker/tiny"
    number = next(link for link in snapshot.iterdir() if link.name.startswith("model-00002"))
    number.resolve().unlink()
    with pytest.raises(UserError, match="are missing, the first: model-00002"):
        join(model, snapshot, folder / "again")


def test_an_interrupted_join_leaves_nothing_and_a_killed_one_stands_in_no_way(
    model: Path,  # noqa: F811, the fixture
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    words = ["join", "--model", model, "--decoder", write("llama", tmp_path / "source"), "--out", tmp_path / "out"]
    half = tmp_path / f"out{UNFINISHED}"

    def stopped(*_: Any) -> Iterator[tuple[str, torch.Tensor]]:
        yield "first", torch.ones(1)
        assert half.is_dir()
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(sys, "argv", ["mm1-convert", *map(str, words)])
    with monkeypatch.context() as patched:
        patched.setattr("mm1.interop.join._tensors", stopped)
        with pytest.raises(SystemExit) as ended:
            convert()
    assert ended.value.code == 130
    assert "interrupted" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
    half.mkdir()
    (half / "part-0").write_text("half a shard")
    convert()
    assert not half.exists()
    assert not (tmp_path / "out" / "part-0").exists()


TIMM = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.5] * 3}}
CLIP = {"model_cfg": {"vision_cfg": {"width": 32}}, "preprocess_cfg": {}}
TOWERS = [
    ("config.json", {"model_type": "clip", "vision_config": "x"}, "at vision_config; expected a JSON object"),
    ("config.json", TIMM | {"architecture": None}, "has null at architecture; expected a name that timm knows"),
    ("config.json", TIMM | {"model_args": "x"}, "at model_args; expected a JSON object"),
    ("config.json", TIMM | {"model_args": {"img_size": {"a": 1}}}, "has sizes of {'a': 1}; expected whole numbers"),
    ("config.json", TIMM | {"model_args": {"img_size": [32, 64]}}, "has sizes of [32, 64]; expected whole numbers"),
    ("config.json", TIMM | {"pretrained_cfg": [1]}, "at pretrained_cfg; expected a JSON object"),
    ("config.json", TIMM | {"pretrained_cfg": {"mean": 5}}, "has 5 as mean; expected three numbers"),
    ("config.json", TIMM | {"pretrained_cfg": {"std": [0, 0, 0]}}, "expected three numbers above 0"),
    ("config.json", TIMM | {"pretrained_cfg": {"crop_mode": [1]}}, "crop_mode is [1]; expected one of 'squash'"),
    ("open_clip_config.json", CLIP | {"model_cfg": {"vision_cfg": {"width": "a"}}}, "has {'width': 'a'}; expected"),
    ("open_clip_config.json", CLIP | {"preprocess_cfg": "x"}, "at preprocess_cfg; expected a JSON object"),
]


@pytest.mark.parametrize(("name", "content", "message"), TOWERS, ids=[message[:40] for *_, message in TOWERS])
def test_a_tower_whose_settings_are_no_settings_is_told(
    name: str,
    content: dict[str, Any],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / name).write_text(json.dumps(content))
    for file in ("model.safetensors", "open_clip_model.safetensors"):
        safetensors.torch.save_file({"visual.conv1.weight": torch.ones(1)}, source / file)
    refused(convert, ["encoder", source, tmp_path / "out.safetensors"], message, monkeypatch, capsys)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]
