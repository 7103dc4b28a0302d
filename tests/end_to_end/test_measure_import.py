"""An import costs the memory of its weights once, and says so."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "measure_import.py"
SHAPE = ("--layers", "4", "--width", "2048", "--ffn_width", "7168")  # 0.7 GB


@pytest.mark.slow
def test_a_decoder_is_never_in_memory_twice(tmp_path: Path) -> None:
    folder = tmp_path / "published"
    done = subprocess.run(
        [sys.executable, SCRIPT, folder, *SHAPE], cwd=SCRIPT.parents[1], check=True, capture_output=True, text=True
    )
    shares = dict(re.findall(r"^(?:.*\r)?\s*([\w -]+): weights .*= ([\d.]+) x", done.stdout, re.MULTILINE))
    assert {*shares} == {"load_decoder", "mm1-convert join"}
    assert 0.9 < float(shares["load_decoder"]) < 1.2
    assert not folder.exists()
