"""Pictures found by name and by hash, and never outside of their folder."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path

import fsspec
import pytest

from data_pipelines.picture_store import HashedPictures, NamedPictures
from data_pipelines.places import Remote
from mm1.errors import UserError

URL = "http://host/some/way/Apple%20tree.jpg?size=2"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MM1_CACHE", str(tmp_path / "cache"))
    (tmp_path / "outside.jpg").touch()
    (tmp_path / "images" / "7").mkdir(parents=True)
    return tmp_path / "images"


def test_by_name(folder: Path) -> None:
    (folder / "7" / "a.jpg").write_bytes(b"a")
    (folder / "Apple tree.webp").write_bytes(b"tree")
    store = NamedPictures(str(folder))
    assert store.find("7/a.jpg") == folder / "7/a.jpg"
    for absent in ["a.jpg", "7", "", ".", "../outside.jpg", "7/../../outside.jpg", f"{folder}/7/a.jpg", "\0", "\ud800"]:
        assert store.find(absent) is None, absent
    assert store.find("x" * 5000) is None
    assert NamedPictures(folder, template="7/{base}").find("elsewhere/a.jpg") == folder / "7/a.jpg"
    assert NamedPictures(folder, template="{stem}.webp").find(URL) == folder / "Apple tree.webp"
    assert NamedPictures(folder, template="{name}").find("http://[broken") is None


@pytest.mark.parametrize("algorithm", ["sha256", "sha1", "md5"])
@pytest.mark.parametrize("ending", ["", ".png"])
@pytest.mark.parametrize("folders", [0, 2])
def test_by_hash(folder: Path, algorithm: str, ending: str, folders: int) -> None:
    digits = hashlib.new(algorithm, URL.encode()).hexdigest()
    path = folder / (f"{digits[:2]}/{digits[2:4]}" if folders else "") / f"{digits}{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    store = HashedPictures(folder, algorithm=algorithm, folders=folders)  # type: ignore[arg-type]
    assert pickle.loads(pickle.dumps(store)).find(URL) == path
    assert store.find("http://other") is None


def test_elsewhere(folder: Path) -> None:
    digits = hashlib.sha256(URL.encode()).hexdigest()
    fsspec.filesystem("memory").pipe({"/store/7/a.jpg": b"a", f"/store/{digits}.png": b"hashed"})
    named, hashed = NamedPictures("memory://store"), HashedPictures("memory://store/")
    assert named.find("7/a.jpg") == Remote("memory://store/7/a.jpg")
    assert named.find("7/b.jpg") is None
    found = hashed.find(URL)
    assert found
    assert found.read_bytes() == b"hashed"


def test_what_a_user_gets_wrong(folder: Path) -> None:
    with pytest.raises(UserError, match=r"folder is .*nowhere, which is not there"):
        NamedPictures(folder / "nowhere")
    with pytest.raises(UserError, match="protocol"):
        HashedPictures("nonsense://store")
    for template in ["{shard}", "{", "{name.x}"]:
        with pytest.raises(UserError, match="template is"):
            NamedPictures(folder, template=template)
    with pytest.raises(UserError, match="folders is 9"):
        HashedPictures(folder, folders=9)
