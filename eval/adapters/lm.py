"""lm-eval's view of our checkpoints: log-likelihoods, rolling log-likelihoods and answers about text.

MM1 reports text-only skills as TextCore (its section 3.3, after OpenELM): zero-shot tasks of log-likelihood. The
harness is EleutherAI's lm-evaluation-harness (``pip install 'mm1[lm]'``); ``mm1-eval lm`` registers this class at run
time and hands everything else to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from tqdm import tqdm

from eval.adapters.answers import Wanted, answers, opened
from eval.adapters.texts import chat, ids, items
from mm1.errors import UserError
from mm1.infer.assistant import Dtype
from mm1.infer.likelihood import Likelihood, Reading, likelihoods, windows

Pair = tuple[tuple[str, str], list[int], list[int]]  # context and continuation, then the ids of both


@register_model("mm1")
class MM1Texts(TemplateLM):
    """A checkpoint or exported folder of ours as a language model of lm-eval.

    Args:
        pretrained: The checkpoint or folder.
        device: Where the model runs.
        dtype: Type of its weights; that of the file if not given.
        max_positions: The context; longer contexts lose their beginning, as lm-eval's own models do.
        batch_positions: Positions read at once; changes speed and memory.
        batch_size: Taken because the harness passes it; ``batch_positions`` decides.
        max_batch_size: Likewise.

    Raises:
        UserError: The path is no checkpoint of ours, or the device cannot be used.
    """

    def __init__(
        self,
        pretrained: str,
        device: str = "cpu",
        dtype: Dtype | None = None,
        max_positions: int = 4096,
        batch_positions: int = 16384,
        batch_size: int | str = 1,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        assistant = opened(pretrained, device, dtype, max_positions, batch_positions)
        self.mm1, self.codec, self.engine = assistant.model, assistant.tokenizer, assistant.engine
        self.max_length, self.batch_positions = max_positions, batch_positions

    @property
    def eot_token_id(self) -> int:
        """The end token."""
        return self.codec.eos

    @property
    def prefix_token_id(self) -> int:
        """What stands before an empty context: the begin token, which training puts before every document."""
        return self.codec.bos

    @property
    def tokenizer_name(self) -> str:
        """Names vocabulary and chat template, for the harness's cache of requests."""
        return f"mm1-{self.codec.fingerprint}"

    def tok_encode(self, string: str, add_special_tokens: bool | None = None) -> list[int]:
        """Ids of a text, or of a chat that :meth:`apply_chat_template` made; never with the begin token."""
        return ids(string, self.codec, self.mm1.template)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The chat as instruction tuning spelled it, as one string (:mod:`eval.adapters.texts`)."""
        return chat(chat_history)

    def chat_template(self, chat_template: bool | Literal["default"] | str = False) -> str | None:
        """What the harness notes of the template."""
        return "mm1.template" if chat_template else None

    def _loglikelihood_tokens(self, requests: list[Pair], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        found = self._read([self._reading(context, said) for _, context, said in requests], disable_tqdm)
        pairs = [(likelihood.nats, likelihood.greedy) for likelihood in found]
        for (texts, _, _), pair in zip(requests, pairs, strict=True):
            self.cache_hook.add_partial("loglikelihood", texts, pair)
        return pairs

    def _reading(self, context: Sequence[int], said: Sequence[int]) -> Reading:
        """Begin token, context, continuation; a context too long loses its beginning."""
        context = context[list(context[:1]) == [self.codec.bos] :]
        room = self.max_length - 1 - len(said)
        if room < 0:
            raise UserError(
                f"a continuation of {len(said)} tokens does not fit max_positions, {self.max_length}; raise it"
            )
        return Reading([self.codec.bos, *context[max(0, len(context) - room) :], *said], len(said))

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood of whole texts, each token once, in windows of the context that overlap by one token."""
        cut = [
            list(windows(self.tok_encode(request.args[0]), self.codec.bos, self.max_length, overlap=1))
            for request in requests
        ]
        found = iter(self._read([reading for readings in cut for reading in readings], disable_tqdm))
        sums = [sum(next(found).nats for _ in readings) for readings in cut]
        for request, nats in zip(requests, sums, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, nats)
        return sums

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """Answers as each task wants them decoded, up to their stop strings."""
        wanted = [Wanted.of(request.args[1]) for request in requests]
        prompts = [self._fitting(request.args[0], want.tokens) for request, want in zip(requests, wanted, strict=True)]
        found = answers(self.engine, prompts, wanted, quiet=disable_tqdm)
        for request, answer in zip(requests, found, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, answer)
        return found

    def _fitting(self, string: str, new: int) -> list[Any]:
        """A prompt that leaves room for its answer, its beginning lost if need be."""
        room, prompt = self.max_length - 1 - new, items(string)
        if room < 1:
            raise UserError(f"an answer of {new} tokens does not fit max_positions, {self.max_length}; raise it")
        over = len(self.tok_encode(string)) - room
        while over > 0:
            string = string[max(1, len(string) * over // (over + room)) :]
            prompt = items(string)
            over = len(self.tok_encode(string)) - room
        return prompt

    def _read(self, readings: list[Reading], quiet: bool) -> list[Likelihood]:
        with tqdm(total=len(readings), unit=" readings", disable=quiet) as bar:
            return likelihoods(self.mm1, self.codec, readings, batch_positions=self.batch_positions, done=bar.update)
