"""Opt-out lists: addresses, sites, digests of picture files."""

import hashlib
import json

import PIL.Image
import pytest

from data_pipelines.places import Remote
from data_pipelines.sources.base import Draft, Rejection
from data_pipelines.steps import OptOut, Pictures
from mm1.errors import UserError
from mm1.sample import Text


def listed(folder, name, *entries):
    path = folder / name
    path.write_text("".join(f"{entry}\n" for entry in entries))
    return [path]


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://example.com/a.jpg", "address opted out"),
        ("http://EXAMPLE.com/a.jpg#top", "address opted out"),
        ("https://example.com/A.jpg", ""),
        ("https://example.com/a.jpg?size=1", ""),
        ("https://other.org/", ""),
        ("https://art.net/x", "site opted out"),
        ("https://www.art.net:8080/x", "site opted out"),
        ("https://start.net/x", ""),
        ("https://net/x", ""),
        ("http://[broken", ""),
    ],
)
def test_addresses_and_sites(document, reason, tmp_path, url, said):
    step = OptOut(
        urls=listed(tmp_path, "urls.txt", "# asked in May", "https://example.com/a.jpg"),
        domains=listed(tmp_path, "sites.txt", "art.net"),
    )
    assert reason(step, document("text", url=url)) == said


def test_a_site_may_be_listed_as_an_address(document, reason, tmp_path):
    step = OptOut(domains=listed(tmp_path, "sites.txt", "https://Art.net/"))
    assert reason(step, document("text", url="http://art.net/a")) == "site opted out"


def test_addresses_stand_in_other_fields_or_in_lists(document, reason, tmp_path):
    step = OptOut(urls=listed(tmp_path, "urls.txt", "http://a.b/c"), fields=("page", "image_urls"))
    assert reason(step, document("text", page="http://a.b/c")) == "address opted out"
    assert reason(step, document("text", page=None, image_urls=["http://x/y", None, "http://a.b/c"])) == (
        "address opted out"
    )
    assert reason(step, document("text", url="http://a.b/c")) == ""


def test_an_answer_of_spawning_is_a_list(document, reason, tmp_path):
    path = tmp_path / "answer.json"
    rows = [{"url": "http://a/1", "optOut": True, "optIn": False}, {"url": "http://a/2", "optOut": False}]
    path.write_text(json.dumps({"urls": rows}))
    step = OptOut(urls=[path])
    assert reason(step, document("text", url="http://a/1")) == "address opted out"
    assert reason(step, document("text", url="http://a/2")) == ""


@pytest.mark.parametrize("kind", ["md5", "sha1", "sha256"])
def test_a_listed_picture_file_is_left_out_alone(document, tmp_path, kind):
    asked, other = PIL.Image.new("RGB", (8, 8), "red"), PIL.Image.new("RGB", (8, 8), "blue")
    draft = document("before", asked, other, "after")
    digest = hashlib.new(kind, draft.pictures[0].data).hexdigest()
    kept = OptOut(hashes=listed(tmp_path, "hashes.txt", digest.upper()))(draft, Pictures())
    assert isinstance(kept, Draft)
    assert kept.pictures == draft.pictures[1:]
    assert kept.lost == (Rejection("a:1 1.jpg", "picture opted out", fault=False),)


def test_a_picture_fetched_from_a_listed_address_is_left_out(tmp_path):
    draft = Draft("a", "s", (Text("text"), Remote("s3://bucket/b.jpg"), Text("more")), "g", loose=True)
    kept = OptOut(urls=listed(tmp_path, "urls.txt", "s3://bucket/b.jpg"))(draft, Pictures())
    assert isinstance(kept, Draft)
    assert not kept.pictures


def test_lists_that_are_none_are_refused(document, reason, tmp_path):
    with pytest.raises(UserError, match="OptOut has no list"):
        OptOut()
    with pytest.raises(UserError, match="expected a file or folder at domains"):
        OptOut(domains=[tmp_path / "none"])
    with pytest.raises(UserError, match="hashes holds 'abc'; expected an MD5"):
        reason(OptOut(hashes=listed(tmp_path, "h", "abc")), document("text", PIL.Image.new("RGB", (8, 8))))
    (tmp_path / "answer.json").write_text('{"urls": ["http://a"]}')
    with pytest.raises(UserError, match=r"answer.json is no list of opt-outs"):
        reason(OptOut(urls=[tmp_path / "answer.json"]), document("text", url="http://a"))
