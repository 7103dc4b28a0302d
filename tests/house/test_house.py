"""The house rules of docs/house.md that a machine can hold."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("mm1", "data_pipelines", "eval")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
EVERYWHERE = FILES + sorted((ROOT / "tests").rglob("*.py")) + sorted((ROOT / "scripts").glob("*.py"))

# Heavy imports live at one address, so that a door that needs none of them starts fast.
ADDRESSES = {
    "lightning": ["mm1/train/"],
    "open_clip": [
        "mm1/model/vision.py",
        "mm1/model/open_clip_tower.py",
        "mm1/model/plain_block.py",
        "mm1/embed.py",
    ],
    "timm": ["mm1/model/vision.py", "mm1/model/connector.py", "mm1/model/channels_last.py", "mm1/train/adafactor.py"],
    "webdataset": ["mm1/data/shards.py"],
    "sentencepiece": ["mm1/data/sentencepiece_tokenizer.py"],
    "tokenizers": ["mm1/data/hf_tokenizer.py"],
    "transformers": ["mm1/interop/"],
    "gguf": ["mm1/interop/gguf_file.py"],
    "onnx": ["mm1/interop/"],
    "fsspec": ["data_pipelines/cache.py"],
    "pyarrow": ["data_pipelines/sources/", "data_pipelines/sniff.py", "eval/parquet.py"],
    "resiliparse": ["data_pipelines/sources/html.py"],
    "fastwarc": ["data_pipelines/sources/html.py"],
    "zstandard": ["data_pipelines/sources/lines.py", "data_pipelines/sniff.py"],
    "matplotlib": ["mm1/study/"],
    "py3langid": ["data_pipelines/steps/text.py"],
    "rensa": ["data_pipelines/steps/duplicates.py"],
    "gradio": ["eval/serve/"],
    "peft": ["mm1/train/lora.py"],
    "torchao": ["mm1/train/float8.py", "mm1/train/adamw8bit.py"],
    "tensorboardX": ["mm1/train/loggers.py"],
    "trackio": ["mm1/train/loggers.py"],
    "ray": ["data_pipelines/engines.py"],
    "lm_eval": ["eval/adapters/lm.py"],
    "lmms_eval": ["eval/adapters/lmms.py"],
}


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def imports(tree: ast.AST) -> set[str]:
    """Dotted names of everything that a file imports."""
    nodes = list(ast.walk(tree))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


@pytest.mark.parametrize("path", FILES, ids=name)
def test_a_file_opens_with_why_it_exists_and_stays_small(path: Path) -> None:
    text = path.read_text()
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "opens with one sentence on why it exists"
    assert len(text.splitlines()) <= 400
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{node.name} is long"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_public_names_are_typed_and_documented(path: Path) -> None:
    for node in ast.parse(path.read_text()).body:
        public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
        assert not public or ast.get_docstring(node), f"{node.name} has no docstring"
        if isinstance(node, ast.FunctionDef) and public:
            untyped = [a.arg for a in node.args.args + node.args.kwonlyargs if a.annotation is None]
            assert not untyped, f"{node.name}: {untyped}"
            assert node.returns is not None, f"{node.name} does not say what it returns"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_heavy_imports_live_at_one_address(path: Path) -> None:
    for heavy in imports(ast.parse(path.read_text())):
        homes = ADDRESSES.get(heavy.split(".")[0])
        assert homes is None or any(name(path).startswith(home) for home in homes), f"{heavy} is imported here"


def test_only_one_room_speaks_lightning_under_its_old_name() -> None:
    assert not [path for path in EVERYWHERE if "pytorch_lightning" in imports(ast.parse(path.read_text()))]


def test_nothing_rebinds_eval() -> None:
    for path in EVERYWHERE:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                assert not [a.name for a in node.names if a.name.split(".")[0] == "eval" and not a.asname], name(path)


def test_importing_mm1_imports_no_torch() -> None:
    check = "import sys, mm1, mm1.sample, mm1.runs, mm1.template; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], cwd=ROOT).returncode == 0


def test_no_yaml_says_a_width_twice() -> None:
    """The parent hands sizes to its parts, so no model YAML names the connector's or an expert's widths."""
    for path in (ROOT / "configs" / "model").glob("*.yaml"):
        model = yaml.safe_load(path.read_text())["init_args"]
        assert not {"d_in", "d_out", "grid"} & model["connector"].get("init_args", {}).keys(), path.name
        assert model["decoder"]["init_args"].get("moe") is None or not {"width", "ffn_width"} & (
            model["decoder"]["init_args"]["moe"].get("init_args", {}).keys()
        ), path.name


def test_every_link_in_the_documents_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "configs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
            if not target.startswith(("http", "mailto")):
                assert (page.parent / target).exists(), f"{name(page)} links to {target}"


def test_the_house_names_every_heavy_library() -> None:
    told = (ROOT / "docs" / "house.md").read_text().partition("## Rules of every file")[0]
    assert not [heavy for heavy in ADDRESSES if f"`{heavy}`" not in told]
