"""lmms-eval's view of our checkpoints: answers and log-likelihoods about pictures and text.

``mm1-eval lmms`` registers two classes by a manifest of lmms-eval's own registry at run time: ``chat`` is handed the
messages of a task, ``simple`` (``--force_simple``) its text and pictures, which come first, and also the tasks that
score choices by likelihood. With ``pip install 'mm1[lmms]'`` the entry point makes ``lmms-eval --model mm1`` work too.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import PIL.Image
from lmms_eval.api.instance import GenerationResult, Instance
from lmms_eval.api.model import lmms
from lmms_eval.models.registry_v2 import ModelManifest

from eval.adapters.answers import Wanted, answers, opened
from eval.pictures import read
from eval.turns import Part, asked
from mm1 import template
from mm1.data.encode import prompt as encode_prompt
from mm1.errors import UserError
from mm1.infer.assistant import Dtype
from mm1.infer.engine import Prompt
from mm1.infer.likelihood import Reading, likelihoods
from mm1.sample import PICTURE, Image, Text

Messages = Sequence[dict[str, Any]]


def manifest() -> ModelManifest:
    """What lmms-eval's registry is told, here and by the entry point ``lmms_eval.models``."""
    return ModelManifest(
        "mm1",
        simple_class_path="eval.adapters.lmms.MM1Simple",
        chat_class_path="eval.adapters.lmms.MM1Chat",
    )


class Scored(tuple[float, bool], GenerationResult):
    """A log-likelihood and whether greedy decoding would say it, as lmms-eval's interface asks for.

    lmms-eval 0.7.3 spells out as a text whatever is neither text nor its own ``GenerationResult``, likelihoods too, and
    then cannot score choices; this is both, and its ``text`` is the pair.
    """


class MM1Simple(lmms):
    """A checkpoint or exported folder of ours as a simple model of lmms-eval: a text, and pictures before it.

    ``<image>`` in the text says where a picture stands, if it stands there as often as there are pictures.

    Args:
        pretrained: The checkpoint or folder.
        device: Where the model runs.
        dtype: Type of its weights; that of the file if not given.
        template: ``chat`` asks as instruction tuning did, ``none`` lets the model go on from the text as it is.
        max_positions: The context, positions a prompt and its answer may take together.
        batch_positions: Positions read at once; changes speed and memory.
        batch_size: Taken because the harness passes it; ``batch_positions`` decides.
        max_batch_size: Likewise.

    Raises:
        UserError: The path is no checkpoint of ours, or the device cannot be used.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str,
        device: str = "cpu",
        dtype: Dtype | None = None,
        template: Literal["chat", "none"] = "chat",
        max_positions: int = 4096,
        batch_positions: int = 16384,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if template not in ("chat", "none"):
            raise UserError(f"template is {template!r}; expected chat or none (--model_args)")
        assistant = opened(pretrained, device, dtype, max_positions, batch_positions)
        self.mm1, self.codec, self.engine = assistant.model, assistant.tokenizer, assistant.engine
        self.template, self.batch_positions = template, batch_positions

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers to texts with pictures, decoded as each task wants."""
        asked = [
            (self._prompt(context, self._pictures(to_pictures, task, split, document)), Wanted.of(kwargs))
            for context, kwargs, to_pictures, document, task, split in (request.args for request in requests)
        ]
        return answers(self.engine, [prompt for prompt, _ in asked], [wanted for _, wanted in asked])

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Log-likelihood of a continuation after text and pictures, and whether greedy decoding would say it."""
        readings = []
        for context, target, to_pictures, document, task, split in (request.args for request in requests):
            said = target if isinstance(target, str) else target(self.task_dict[task][split][document])
            prompt = self._prompt(context, self._pictures(to_pictures, task, split, document))
            item = Text(str(said).removeprefix(" "), after_space=True)
            ids = self.codec.encode(self.codec.spelling(item))
            self.engine.check(prompt, len(ids))
            encoded = encode_prompt(self.engine.shown(prompt), self.codec, self.engine.tokens_per_image)
            readings.append(Reading([*encoded.tokens.tolist(), *ids], len(ids), encoded.images))
        found = likelihoods(self.mm1, self.codec, readings, batch_positions=self.batch_positions)
        return [Scored((likelihood.nats, likelihood.greedy)) for likelihood in found]

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Refused: a task that asks again what was answered.

        Raises:
            UserError: Always.
        """
        raise UserError("the task goes on over several rounds; expected one of generate_until or multiple_choice")

    def _prompt(self, context: str, pictures: list[Image]) -> Prompt:
        parts: list[Part] = [*pictures, context]
        if pictures and context.count(PICTURE) == len(pictures):
            first, *others = context.split(PICTURE)
            parts = [first, *(part for pair in zip(pictures, others, strict=True) for part in pair)]
        else:
            parts[-1] = context.replace(PICTURE, "")
        if self.template == "chat":
            return asked(parts)
        return [part if isinstance(part, Image) else Text(part) for part in parts if part]

    def _pictures(self, to_pictures: Callable[[Any], Any] | None, task: str, split: str, document: int) -> list[Image]:
        shown = to_pictures(self.task_dict[task][split][document]) if to_pictures else None
        return [picture(one) for one in shown or ()]


class MM1Chat(MM1Simple):
    """The same as a chat model of lmms-eval: it is handed messages, with pictures at their places."""

    is_simple = False

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Answers to conversations, decoded as each task wants."""
        prompts, wanted = [], []
        for _, to_messages, kwargs, document, task, split in (request.args for request in requests):
            prompts.append(self.prompt_of(to_messages(self.task_dict[task][split][document])))
            wanted.append(Wanted.of(kwargs))
        return answers(self.engine, prompts, wanted)

    def prompt_of(self, messages: Messages) -> Prompt:
        """Messages as a document to go on from.

        Raises:
            UserError: A role or a kind of content that is none of ours, such as a video.
        """
        items: list[Text | Image] = []
        for message in messages:
            content = message["content"]
            parts = [content] if isinstance(content, str) else [_part(part) for part in content]
            if self.template == "none":
                items += [part if isinstance(part, Image) else Text(part) for part in parts if part]
                continue
            said = "".join(part for part in parts if isinstance(part, str))
            match message["role"]:
                case "system":
                    items.append(template.system(said))
                case "user":
                    items += asked(parts)
                case "assistant":
                    items.append(template.answer(said))
                case other:
                    raise UserError(f"a message has role {other!r}; expected system, user or assistant")
        return items


def picture(shown: Any) -> Image:
    """A picture as a task gives it: a PIL image, a path, or bytes of a file.

    Raises:
        UserError: It is something else, such as a video.
    """
    if isinstance(shown, PIL.Image.Image):
        file = io.BytesIO()
        (shown if shown.mode in ("RGB", "L") else shown.convert("RGB")).save(file, "PNG")
        return Image(file.getvalue())
    if isinstance(shown, dict) and isinstance(shown.get("bytes"), bytes):
        return Image(shown["bytes"])
    if isinstance(shown, str) and shown.lower().endswith((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif")):
        return Image(read(Path(shown)))
    raise UserError(f"a task shows {shown!r:.80}; expected a picture: models of mm1 read neither video nor sound")


def _part(content: dict[str, Any]) -> Part:
    if content.get("type") == "text":
        return str(content["text"])
    if content.get("type") == "image":
        return picture(content["url"])
    raise UserError(f"a message holds {content.get('type')!r}; expected text or image")
