"""The page itself: Gradio's components and what happens when somebody presses something."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gradio as gr

from eval.serve.conversation import Conversation, Example, Template, Turn, prompt
from eval.serve.speaker import HOTTEST, LONGEST, Sampling, Speaker
from eval.serve.together import together
from eval.serve.uploads import ENDINGS, take, text_of
from eval.serve.view import View
from mm1.errors import UserError

WAITING = 64  # presses of buttons; whoever comes then is told that the queue is full
OFF = "off"
Examples = tuple[Example, ...]
EMPTY: dict[str, Any] = {"text": "", "files": []}


class Page:
    """One page for all its visitors; what a visitor says stays in the visitor's session.

    Args:
        speakers: One model, or two to compare.
        folder: Where uploads lie.
    """

    def __init__(self, speakers: Sequence[Speaker], folder: Path) -> None:
        self.speakers, self.folder, self.view = list(speakers), folder, View(speakers)
        self.layers = sorted({layer for speaker in speakers for layer in speaker.experts})
        self._stops: dict[str, threading.Event] = {}

    def blocks(self) -> gr.Blocks:
        """The page, to be mounted."""
        title = " and ".join(speaker.label for speaker in self.speakers)
        with gr.Blocks(title=title, analytics_enabled=False, fill_width=True) as blocks:
            gr.HTML(self.view.heading(), apply_default_css=False)
            conversation, examples = gr.State(Conversation()), gr.State(())
            with gr.Row():
                with gr.Column(scale=3, min_width=320):
                    past = gr.HTML(elem_id="past", apply_default_css=False)
                    now = gr.HTML(elem_id="now", apply_default_css=False)
                    refusal = gr.HTML(elem_id="refusal", apply_default_css=False)
                    message = _box("Ask about pictures, or just ask", "message", submit=True)
                    with gr.Row():
                        stop = gr.Button("Stop", elem_id="stop", interactive=False, size="sm", min_width=90, scale=0)
                        clear = gr.Button("Clear the conversation", elem_id="clear", size="sm", min_width=190, scale=0)
                with gr.Column(scale=1, min_width=280):
                    layer = self._routing()
                    settings = self._settings()
                    self._examples(examples, conversation)
            asked = message.submit(
                self.ask,
                [message, conversation, examples, layer, *settings],
                [past, now, refusal, message, conversation, stop],
                concurrency_limit=1,
                show_progress="minimal",
                show_progress_on=[now],
            )
            stop.click(self.stop, None, None, show_progress="hidden")
            clear.click(self.stop, None, None, show_progress="hidden")
            clear.click(
                self.clear, None, [past, now, refusal, conversation, stop], cancels=[asked], show_progress="hidden"
            )
            layer.change(self.redraw, [conversation, layer], [past, now], show_progress="hidden")
            blocks.unload(self.leave)
        blocks.queue(max_size=WAITING, default_concurrency_limit=4)
        return blocks

    def ask(
        self,
        message: dict[str, Any],
        conversation: Conversation,
        examples: Examples,
        layer: str,
        template: Template,
        temperature: float,
        top_p: float,
        max_new_tokens: int,
        seed: int,
        line: bool,
        request: gr.Request,
    ) -> Iterator[tuple[Any, ...]]:
        """Answer a question, a piece at a time; what is refused leaves everything as it was, the question too."""
        shown = _layer(layer)
        try:
            sampling = Sampling(temperature, top_p, max_new_tokens, seed, line and template == "plain")
            sampling.check()
            held = [*conversation.pictures(), *(picture for example in examples for picture in example.pictures)]
            pictures, text = take(message["files"], self.folder, held), text_of(message["text"])
            if not pictures and not text.strip():
                raise UserError("nothing was asked; expected a question, a picture, or both")
            asked = Conversation((*conversation.turns, Turn(pictures, text)))
            prompts = [prompt(examples, asked, at, template) for at in range(len(self.speakers))]
            for speaker, items in zip(self.speakers, prompts, strict=True):
                self._check(speaker, items, sampling)
        except UserError as error:
            yield gr.skip(), gr.skip(), self.view.refusal(str(error)), gr.skip(), gr.skip(), gr.skip()
            return
        stop = self._stops[str(request.session_hash)] = threading.Event()
        past = self.view.past(asked, shown)
        yield past, "", "", EMPTY, asked, gr.update(interactive=True, variant="stop")
        replies = []
        for replies in together(self.speakers, prompts, sampling, stop):
            yield gr.skip(), self.view.now(replies, shown), gr.skip(), gr.skip(), asked.replied(replies), gr.skip()
        yield (gr.skip(),) * 5 + (gr.update(interactive=False, variant="secondary"),)

    def stop(self, request: gr.Request) -> None:
        """End the answers being made for a visitor."""
        if stop := self._stops.get(str(request.session_hash)):
            stop.set()

    def leave(self, request: gr.Request) -> None:
        """A visitor is gone: free the models."""
        self.stop(request)
        self._stops.pop(str(request.session_hash), None)

    def clear(self) -> tuple[Any, ...]:
        """Forget the conversation; examples and settings stay."""
        return "", "", "", Conversation(), gr.update(interactive=False, variant="secondary")

    def redraw(self, conversation: Conversation, layer: str) -> tuple[str, str]:
        """The conversation in the colours of another layer's experts."""
        if not conversation.turns:
            return "", ""
        *before, last = conversation.turns
        bare = Conversation((*before, Turn(last.pictures, last.text)))
        return self.view.past(bare, _layer(layer)), self.view.now(last.replies, _layer(layer)) if last.replies else ""

    def add(
        self, message: dict[str, Any], answer: str, examples: Examples, conversation: Conversation
    ) -> tuple[Any, ...]:
        """Put an example before the question."""
        try:
            held = [*conversation.pictures(), *(picture for example in examples for picture in example.pictures)]
            pictures, text = take(message["files"], self.folder, held), text_of(message["text"]).strip()
            answer = text_of(answer).strip()
            if not (pictures or text) or not answer:
                raise UserError("an example lacks its answer or what it answers; expected both")
        except UserError as error:
            return gr.skip(), gr.skip(), gr.skip(), self.view.refusal(str(error))
        return EMPTY, "", (*examples, Example(pictures, text, answer)), ""

    def _check(self, speaker: Speaker, items: Any, sampling: Sampling) -> None:
        try:
            speaker.check(items, sampling)
        except UserError as error:
            whose = f"{speaker.label}: " if len(self.speakers) > 1 else ""
            what = str(error).partition(": ask with")[0]
            raise UserError(
                f"{whose}{what}: clear the conversation, remove examples or pictures, or ask for fewer new tokens"
            ) from None

    def _routing(self) -> gr.Dropdown:
        choices = [OFF, *(f"layer {layer}" for layer in self.layers)]
        told = "Colours each token by the expert that weighs most in it. Point at a token for all its experts."
        return gr.Dropdown(
            choices, value=OFF, label="Routing", info=told, elem_id="layer", visible=bool(self.layers), filterable=False
        )

    def _settings(self) -> list[Any]:
        with gr.Group():
            template = gr.Radio(
                [("chat", "chat"), ("plain text", "plain")],
                value="chat",
                label="Prompt",
                info="Plain text for a model that was only pre-trained: it goes on from what stands there.",
                elem_id="template",
            )
            line = gr.Checkbox(True, label="Plain text: end with the line", elem_id="line")
            temperature = gr.Slider(
                0,
                HOTTEST,
                value=0,
                step=0.05,
                label="Temperature",
                info="0 takes the best token every time.",
                elem_id="temperature",
            )
            top_p = gr.Slider(0.05, 1, value=1, step=0.05, label="Top-p", interactive=True, elem_id="top_p")
            with gr.Row():
                longest = gr.Number(
                    128,
                    label="Max new tokens",
                    precision=0,
                    minimum=1,
                    maximum=LONGEST,
                    min_width=100,
                    elem_id="longest",
                )
                seed = gr.Number(0, label="Seed", precision=0, minimum=0, min_width=100, elem_id="seed")
        return [template, temperature, top_p, longest, seed, line]

    def _examples(self, examples: gr.State, conversation: gr.State) -> None:
        with gr.Accordion("Examples before the question", open=False, elem_id="examples"):
            gr.HTML(
                "<p>Few-shot: pictures, what is asked about them, the answer. They stand before the conversation.</p>",
                elem_classes="hint",
                apply_default_css=False,
            )

            @gr.render(inputs=[examples])
            def rows(given: Examples) -> None:
                for at, example in enumerate(given):
                    with gr.Row(key=("example", at, id(example))):
                        gr.HTML(self.view.example(example), apply_default_css=False)
                        remove = gr.Button("Remove", size="sm", min_width=80, scale=0)
                    remove.click(_without(at), examples, examples, show_progress="hidden")

            refusal = gr.HTML(elem_id="example-refusal", apply_default_css=False)
            message = _box("Pictures and question of an example", "example", submit=False)
            answer = gr.Textbox(label="Its answer", elem_id="example-answer", max_lines=3)
            gr.Button("Add the example", elem_id="add", size="sm").click(
                self.add,
                [message, answer, examples, conversation],
                [message, answer, examples, refusal],
                concurrency_limit=1,  # pictures are decoded one after the other
                show_progress="hidden",
            )


def styled(blocks: gr.Blocks) -> dict[str, Any]:
    """How the page looks: system fonts, so that nothing is fetched, and the colours of mm1's pages."""
    fonts = ["system-ui", "-apple-system", "Segoe UI", "Roboto", "Liberation Sans", "sans-serif"]
    theme = gr.themes.Base(
        primary_hue="blue", neutral_hue="stone", font=[gr.themes.Font(name) for name in fonts],
        font_mono=[gr.themes.Font(name) for name in ("ui-monospace", "Menlo", "Consolas", "monospace")],
    ).set(
        body_background_fill="#fdfcfa", body_background_fill_dark="#171614",
        body_text_color="#1d1c1a", body_text_color_dark="#eae6e0",
        body_text_color_subdued="#6d6862", body_text_color_subdued_dark="#a09a91",
        background_fill_primary="#fdfcfa", background_fill_primary_dark="#171614",
        background_fill_secondary="#f4f1ec", background_fill_secondary_dark="#211f1c",
        block_background_fill="#fdfcfa", block_background_fill_dark="#1b1a18",
        border_color_primary="#dcd7cf", border_color_primary_dark="#3a3733",
        button_primary_background_fill="#2262a3", button_primary_background_fill_dark="#2262a3",
    )  # fmt: skip
    return {"theme": theme, "css_paths": [Path(__file__).with_name("serve.css")]}


def _box(placeholder: str, name: str, submit: bool) -> gr.MultimodalTextbox:
    return gr.MultimodalTextbox(
        placeholder=placeholder,
        show_label=False,
        file_count="multiple",
        file_types=list(ENDINGS),
        lines=1,
        max_plain_text_length=100_000,  # longer text would become a file
        submit_btn=submit,
        elem_id=name,
    )


def _layer(chosen: str) -> int | None:
    return None if chosen == OFF else int(chosen.split()[-1])


def _without(at: int) -> Callable[[Examples], Examples]:
    return lambda examples: (*examples[:at], *examples[at + 1 :])
