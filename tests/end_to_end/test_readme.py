"""The commands of README run as they stand there, on what the quickstart left."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
QUICKSTART = ROOT / "runs" / "test-quickstart"  # where scripts/test.sh --all puts it


def blocks(language: str) -> list[str]:
    """The fenced blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)


def test_the_scripts_exist() -> None:
    lines = [line.split("#")[0].split() for block in blocks("bash") for line in block.splitlines()]
    scripts = [words[1] for words in lines if words[:1] == ["bash"]]
    assert scripts == ["scripts/quickstart.sh", "scripts/test.sh", "scripts/real_run.sh"]
    for script in scripts:
        assert subprocess.run(["bash", "-n", str(ROOT / script)]).returncode == 0


@pytest.mark.slow
@pytest.mark.skipif(
    not (QUICKSTART / "report.html").exists(), reason="needs a finished quickstart (scripts/test.sh --all)"
)
def test_what_follows_the_quickstart(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "quickstart").symlink_to(QUICKSTART)
    doors = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    commands = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("mm1-")]
    assert len(commands) >= 4
    for command in commands:
        done = subprocess.run(command, shell=True, cwd=tmp_path, env=doors, capture_output=True, text=True)
        assert done.returncode == 0, f"{command}\n{done.stderr}"
        assert done.stdout.strip(), command
    for program in blocks("python"):
        done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
