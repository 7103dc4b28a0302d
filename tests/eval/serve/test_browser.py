"""The page as a person meets it, in a real headless browser, with models whose answers are known."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import COLOURS
from tests.eval.serve.taught import ASKED, square, taught

gradio = pytest.importorskip("gradio", reason="gradio is not installed: docs/serve.md says how")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium (apt install chromium)"),
]
ROOT = Path(__file__).resolve().parents[3]
PATIENCE_MS = 60_000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two taught checkpoints and some files to send."""
    folder = tmp_path_factory.mktemp("server-side-secret")
    taught(folder / "dense" / "checkpoints" / "last.ckpt")
    taught(folder / "sparse" / "checkpoints" / "last.ckpt", experts=4)
    for colour in COLOURS:
        (folder / f"{colour}.png").write_bytes(square(colour))
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nthis is no picture")
    return folder


@pytest.fixture(scope="module")
def address(folder: Path) -> Iterator[str]:
    """A running server."""
    checkpoints = [str(folder / name / "checkpoints" / "last.ckpt") for name in ("dense", "sparse")]
    command = [sys.executable, "-m", "eval", "serve", *checkpoints, "--port", "0", "--max-positions", "512"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=environment) as server:
        assert server.stdout is not None
        yield server.stdout.readline().strip()
        server.terminate()


@pytest.fixture(scope="module")
def browser() -> Iterator[sync_api.Browser]:
    with sync_api.sync_playwright() as playwright:
        launched = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.fixture
def page(browser: sync_api.Browser, address: str, folder: Path) -> Iterator[sync_api.Page]:
    """A visitor; whatever a test did, nothing was asked of another server and no path of this one was told."""
    page = browser.new_page()
    page.set_default_timeout(PATIENCE_MS)
    asked: list[str] = []
    told: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("response", lambda response: told.append(_text(response)))
    page.on("websocket", lambda socket: asked.append(socket.url))
    page.goto(address)
    page.wait_for_selector("#message textarea")
    yield page
    outside = [url for url in asked if not url.startswith((address, "data:", "blob:"))]
    assert not outside
    secrets = ("server-side-secret", str(ROOT), str(Path.home()) + "/", "/tmp/", "last.ckpt")
    assert not [(secret, text[:200]) for secret in secrets for text in [*told, page.content()] if secret in text]
    page.close()


def _text(response: sync_api.Response) -> str:
    kind = response.headers.get("content-type", "")
    if "/assets/" in response.url or "/static/" in response.url or not re.search("json|html|event-stream|plain", kind):
        return ""  # Gradio's own files, the same everywhere
    try:
        return response.text()
    except sync_api.Error:  # a stream that the page left
        return ""


def choose(page: sync_api.Page, box: str, *files: Path) -> None:
    count = "([box, count]) => document.querySelectorAll(`#${box} .thumbnail-item`).length == count"
    page.wait_for_function(count, arg=[box, 0])  # the last question's are gone
    page.set_input_files(f"#{box} input[type=file]", [str(file) for file in files])
    page.wait_for_function(count, arg=[box, len(files)])


def ask(page: sync_api.Page, question: str = ASKED) -> None:
    page.fill("#message textarea", question)
    page.press("#message textarea", "Enter")


def answers(page: sync_api.Page, turn: int = 1) -> list[str]:
    """What both models said in a turn, counted from 1, once they are done."""
    page.wait_for_function("turn => document.querySelectorAll('#past .mm1-turn').length == turn", arg=turn)
    page.wait_for_function(
        "() => { const r = document.querySelectorAll('#now .reply');"
        "return r.length == 2 && [...r].every(e => !e.classList.contains('growing')) }"
    )
    return page.locator("#now .said").all_inner_texts()


def refused(page: sync_api.Page, where: str = "refusal") -> str:
    return page.locator(f"#{where} [role=alert]").inner_text()


def test_a_picture_is_asked_about_and_both_models_answer_as_it_is_said(page: sync_api.Page, folder: Path) -> None:
    choose(page, "message", folder / "blue.png")
    ask(page)
    assert answers(page) == ["a blue square is near.", "a blue square is near."]
    assert [element.inner_text() for element in page.locator("#now h3").all()] == ["dense", "sparse"]
    assert "8 tokens" in page.locator("#now .meta").first.inner_text()
    assert re.search(r"[\d.]+ s\b", page.locator("#now .meta").first.inner_text())
    assert page.locator("#past img").get_attribute("alt") == "blue.png"
    assert page.input_value("#message textarea") == ""
    choose(page, "message", folder / "red.png")
    ask(page)
    answers(page, turn=2)
    assert page.locator("#past .said").count() == 2  # the first turn's; the second's are still apart
    page.click("#clear")
    page.wait_for_function("() => !document.querySelector('#past .mm1-turn')")
    choose(page, "message", folder / "green.png")
    ask(page)
    assert answers(page) == ["a green square is near.", "a green square is near."]


def test_an_answer_is_streamed_and_can_be_stopped(page: sync_api.Page) -> None:
    page.get_by_test_id("plain text-radio-label").click()
    page.locator("#line input").uncheck()
    page.fill("#longest input", "480")
    ask(page, "here is one")
    page.wait_for_selector("#now .reply.growing .count")
    first = page.locator("#now .said").first.inner_text()
    page.wait_for_function(
        "first => document.querySelector('#now .said').innerText.length > first.length + 5", arg=first
    )
    page.click("#stop")
    answers(page)
    assert page.locator("#now .note").first.inner_text() == "stopped"
    assert page.locator("#now .said").first.inner_text().startswith(first.rstrip("▍"))


def test_an_example_stands_before_the_question(page: sync_api.Page, folder: Path) -> None:
    page.click("#examples button:has-text('Examples')")
    page.click("#add")
    assert "lacks its answer" in refused(page, "example-refusal")
    choose(page, "example", folder / "green.png")
    page.fill("#example textarea", ASKED)
    page.fill("#example-answer textarea", "a green square is near.")
    page.click("#add")
    page.wait_for_selector(".mm1-example .answer")
    assert page.locator(".mm1-example").locator("p").all_inner_texts() == [ASKED, "a green square is near."]
    choose(page, "message", folder / "black.png")
    ask(page)
    first = page.locator("#now .meta").first
    answers(page)
    assert "token" in first.inner_text()
    page.click("#examples button:has-text('Remove')")
    page.wait_for_function("() => !document.querySelector('.mm1-example')")


def test_experts_of_every_token_are_shown(page: sync_api.Page, folder: Path) -> None:
    choose(page, "message", folder / "yellow.png")
    ask(page)
    answers(page)
    assert page.locator("#now .token").count() == 0
    page.click("#layer input")
    page.get_by_role("option", name="layer 1").click()
    page.wait_for_selector("#now .token")
    tokens = page.locator("#now .reply.m1 .token")
    assert page.locator("#now .reply.m0 .token").count() == 0  # the dense one
    assert "".join(tokens.all_text_contents()) == "a yellow square is near."
    told = tokens.nth(1).get_attribute("data-told") or ""
    weights = [int(weight) for weight in re.findall(r"expert \d (\d+) %", told)]
    assert len(weights) == 2
    assert weights == sorted(weights, reverse=True)
    assert 99 <= sum(weights) <= 101
    heaviest = re.findall(r"expert (\d)", told)[0]
    assert tokens.nth(1).get_attribute("data-expert") == heaviest
    tokens.nth(1).hover()
    shown = tokens.nth(1).evaluate("element => getComputedStyle(element, '::after').display")
    assert shown == "block"
    assert page.locator("#now .shares").inner_text().count("%") >= 1


def test_a_broken_file_is_named_and_nothing_is_lost(page: sync_api.Page, folder: Path) -> None:
    choose(page, "message", folder / "broken.png")
    ask(page)
    assert refused(page) == (
        "broken.png is no picture that can be read; expected a picture such as a JPEG, PNG, WebP or GIF"
    )
    assert page.input_value("#message textarea") == ASKED


def test_a_prompt_that_is_too_long_is_refused_with_the_arithmetic(page: sync_api.Page, folder: Path) -> None:
    choose(page, "message", folder / "red.png")
    ask(page, "the square is near. " * 100)
    told = refused(page)
    assert re.search(r"dense: a prompt of \d+ positions \(1 pictures x 4 = 4, text \d+\)", told)
    assert "expected at most 512: clear the conversation" in told
    ask(page)
    assert answers(page) == ["a red square is near.", "a red square is near."]
    assert page.locator("#refusal [role=alert]").count() == 0


def test_what_is_typed_is_text_and_no_page(page: sync_api.Page) -> None:
    ask(page, "<img src=x onerror=\"document.title='got you'\"><b>bold</b>")
    answers(page)
    assert page.locator("#past .asked p").inner_text().startswith("<img src=x")
    assert page.locator("#past .asked b").count() == 0
    assert "got you" not in page.title()


def test_a_visitor_who_leaves_frees_the_model(browser: sync_api.Browser, page: sync_api.Page, address: str) -> None:
    other = browser.new_page()
    other.goto(address)
    other.wait_for_selector("#message textarea")
    other.get_by_test_id("plain text-radio-label").click()
    other.locator("#line input").uncheck()
    other.fill("#longest input", "480")
    ask(other, "here is one")
    other.wait_for_selector("#now .reply.growing .count")
    ask(page)  # it waits its turn
    page.wait_for_timeout(500)
    assert page.locator("#now .reply").count() == 0
    other.close()
    answers(page)


def test_a_phone_shows_it_without_scrolling_sideways(browser: sync_api.Browser, address: str, folder: Path) -> None:
    page = browser.new_page(viewport={"width": 400, "height": 800}, color_scheme="dark")
    page.goto(address)
    page.wait_for_selector("#message textarea")
    choose(page, "message", folder / "red.png", folder / "blue.png")
    ask(page, "which colour is it?" + "x" * 200)
    answers(page)
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 400
    assert page.evaluate("() => getComputedStyle(document.body).backgroundColor") == "rgb(23, 22, 20)"
    page.close()


def test_what_gradio_could_do_beyond_the_page_cannot_be_asked(address: str) -> None:
    paths = ("file=/etc/passwd", "file=uploads/../../../etc/passwd", "file=%2Fetc%2Fpasswd", "info", "openapi.json")
    for path in (f"/gradio_api/{path}" for path in paths):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"{address}{path}")
    rebound = urllib.request.Request(address, headers={"Host": "evil.example"})
    with pytest.raises(urllib.error.HTTPError, match="403"):
        urllib.request.urlopen(rebound)
