"""transformers opens an exported model through its Auto classes, and it is the same model."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor, DynamicCache, pipeline

import mm1
from mm1.batch import IMAGE, Batch, targets_of
from mm1.data.encode import Encoded, prompt
from mm1.data.image import prepare
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.infer.assistant import Assistant
from mm1.interop.export import export
from mm1.interop.transformers_mm1 import MM1ForConditionalGeneration, MM1Processor
from mm1.interop.write import write_tensors
from mm1.model.build import build
from mm1.model.mm1 import MM1
from mm1.sample import Image, Text
from mm1.template import turn
from tests.mm1.interop.exported import UNLIKE_LLAMA, checkpoint, file_of, logits, picture, tokenizer

PICTURES = [file_of(picture(seed)) for seed in range(3)]
ROWS = [
    [Image(PICTURES[0]), *turn("What is this?")],
    [Text("one two three")],
    [Image(PICTURES[1]), Text("red"), Image(PICTURES[2]), Text("on the left of the two green squares")],
]
KINDS: dict[str, tuple[str, bool, dict[str, Any]]] = {
    "dense": ("sentencepiece", False, {}),
    "moe": ("gpt2", True, {"experts": 4, "padding": 9}),
    "moe untied": ("sentencepiece", True, {"experts": 4, "tied": False}),
    "unlike llama": ("mistral", True, {"tied": False, **UNLIKE_LLAMA}),
}


@dataclass
class Opened:
    """A checkpoint, its exported folder, and the model from both."""

    name: str
    checkpoint: Path
    folder: Path
    ours: Assistant
    theirs: MM1ForConditionalGeneration
    processor: MM1Processor

    def encoded(self, tokenizer: Tokenizer | None = None) -> list[Encoded]:
        """The rows as mm1 encodes them."""
        return [prompt(items, tokenizer or self.ours.tokenizer, self.ours.model.connector.tokens) for items in ROWS]

    def inputs(self) -> dict[str, torch.Tensor]:
        """The rows as the processor pads them."""
        text = ["".join("<image>" if isinstance(item, Image) else item.text for item in items) for items in ROWS]
        return dict(self.processor(images=PICTURES, text=text, return_tensors="pt"))


@pytest.fixture(scope="module", params=KINDS)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Opened:
    kind, grown, decoder = KINDS[request.param]
    place = tmp_path_factory.mktemp("exported")
    path = checkpoint(place / "last.ckpt", tokenizer(kind, place, grown), **decoder)
    folder = export(path, place / "model", to="transformers")
    theirs = AutoModelForImageTextToText.from_pretrained(folder)
    return Opened(request.param, path, folder, mm1.load(path), theirs, AutoProcessor.from_pretrained(folder))


def prepared(opened: Opened, images: list[bytes]) -> torch.Tensor:
    spec = opened.ours.model.image_spec
    blank = torch.empty(0, 3, spec.size_px, spec.size_px, dtype=torch.uint8)
    return torch.stack([prepare(data, spec) for data in images]) if images else blank


@torch.no_grad()
def test_the_rows_are_the_same_and_so_are_their_logits(opened: Opened) -> None:
    inputs = opened.inputs()
    found = opened.theirs(**inputs).logits
    for row, encoded in enumerate(opened.encoded()):
        length = len(encoded.tokens)
        ids, mask = inputs["input_ids"][row], inputs["attention_mask"][row]
        places = encoded.tokens == IMAGE
        assert torch.equal(ids[-length:], encoded.tokens.masked_fill(places, opened.processor.image_token_id))
        assert mask.tolist() == [0] * (len(mask) - length) + [1] * length
        images = prepared(opened, encoded.images)
        expected = logits(opened.ours.model, encoded.tokens, images)
        alone = opened.theirs(ids[None, -length:], images[None]).logits[0]
        scale = max(1.0, float(expected.abs().max()))  # these weights are loud
        torch.testing.assert_close(alone, expected, atol=3e-5 * scale, rtol=1e-5)
        torch.testing.assert_close(found[row, -length:], expected, atol=1e-4, rtol=1e-4)
        assert expected.std() > 0.1


@torch.no_grad()
def test_in_bf16_the_model_is_ours_in_bf16(opened: Opened) -> None:
    theirs = AutoModelForImageTextToText.from_pretrained(opened.folder, dtype=torch.bfloat16)
    ours = mm1.load(opened.checkpoint, dtype="bfloat16").model
    assert {parameter.dtype for parameter in theirs.parameters()} == {torch.bfloat16}
    assert theirs.model.mean_C11.dtype == torch.float32
    encoded = opened.encoded()[0]
    images = prepared(opened, encoded.images)
    ids = encoded.tokens.where(encoded.tokens != IMAGE, theirs.config.image_token_index)[None]
    found = theirs(input_ids=ids, pixel_values=images[None], use_cache=False).logits[0]
    torch.testing.assert_close(found, logits(ours, encoded.tokens, images), atol=1e-5, rtol=1e-5)


def test_greedy_answers_are_those_of_mm1(opened: Opened) -> None:
    answers = opened.theirs.generate(**opened.inputs(), max_new_tokens=12)[:, opened.inputs()["input_ids"].shape[1] :]
    expected = dict(opened.ours.engine.generate(ROWS, 12))
    assert len({*expected.values()}) > 1
    for row, ids in enumerate(answers.tolist()):
        assert opened.ours.tokenizer.decode(ids).strip() == expected[row]


def test_company_and_cache_change_no_answer(opened: Opened) -> None:
    inputs = opened.inputs()
    new = inputs["input_ids"].shape[1]
    for settings in ({}, {"num_beams": 3, "num_return_sequences": 2}):
        once = opened.theirs.generate(**inputs, max_new_tokens=4, **settings)
        assert torch.equal(once, opened.theirs.generate(**inputs, max_new_tokens=4, use_cache=False, **settings))
        text = "".join("<image>" if isinstance(item, Image) else item.text for item in ROWS[2])
        alone = opened.processor(images=PICTURES[1:], text=text, return_tensors="pt")
        each = settings.get("num_return_sequences", 1)
        found = opened.theirs.generate(**alone, max_new_tokens=4, **settings)[:, alone["input_ids"].shape[1] :]
        assert torch.equal(found, once[2 * each :, new:])


def test_sampling_follows_the_seed(opened: Opened) -> None:
    def sample(seed: int) -> list[list[int]]:
        torch.manual_seed(seed)
        answers = opened.theirs.generate(**opened.inputs(), do_sample=True, max_new_tokens=4, num_return_sequences=2)
        assert len(answers) == 6
        return answers.tolist()

    assert sample(1) == sample(1) != sample(2)


@torch.no_grad()
def test_a_cache_is_read_on_from_piece_by_piece(opened: Opened) -> None:
    inputs = opened.inputs()
    whole, cache = opened.theirs(**inputs).logits, DynamicCache()
    ids, mask, cut = inputs["input_ids"], inputs["attention_mask"], inputs["input_ids"].shape[1] - 3
    first = opened.theirs(ids[:, :cut], inputs["pixel_values"], mask[:, :cut], past_key_values=cache, logits_to_keep=1)
    rest = opened.theirs(ids[:, cut:], attention_mask=mask, past_key_values=cache)
    assert first.logits.shape[1] == 1
    torch.testing.assert_close(rest.logits, whole[:, cut:], atol=1e-4, rtol=1e-4)
    assert cache.get_seq_length() == ids.shape[1]


def test_ids_that_are_no_text_are_never_said(opened: Opened) -> None:
    never = {*range(opened.ours.tokenizer.vocabulary, opened.theirs.config.vocab_size), opened.processor.image_token_id}
    torch.manual_seed(0)
    said = opened.theirs.generate(
        **opened.inputs(), do_sample=True, temperature=500.0, top_k=0, max_new_tokens=16, num_return_sequences=8
    )
    assert not never & {*said[:, opened.inputs()["input_ids"].shape[1] :].flatten().tolist()}


@torch.no_grad()
def test_a_place_for_a_picture_is_never_said_though_it_be_the_likeliest(opened: Opened) -> None:
    image = opened.ours.tokenizer.image
    if image is None or opened.ours.model.decoder.head is None:
        pytest.skip("a token for pictures and a head of its own are needed")
    ours, theirs = mm1.load(opened.checkpoint), AutoModelForImageTextToText.from_pretrained(opened.folder)
    ids = torch.tensor([[ours.tokenizer.bos, *ours.tokenizer.encode("one two")]])
    hidden = theirs(ids, output_hidden_states=True).hidden_states[0][0, -1]
    for head in (ours.model.decoder.head, theirs.get_output_embeddings()):
        head.weight[image] = 10 * hidden
    assert theirs(ids).logits[0, -1].argmax() == image
    said = theirs.generate(ids, max_new_tokens=4)[0, ids.shape[1] :].tolist()
    assert image not in said
    assert dict(ours.engine.generate([[Text("one two")]], 4))[0] == ours.tokenizer.decode(said).strip()


def test_the_loss_and_its_gradients_are_those_of_training(opened: Opened) -> None:
    encoded = opened.encoded()[2]
    tokens, image_token = encoded.tokens[None], opened.theirs.config.image_token_index
    segments, positions = torch.ones_like(tokens), torch.arange(tokens.shape[1])[None]
    images = prepared(opened, encoded.images)
    batch = Batch(tokens, targets_of(tokens, segments, segments > 0), segments, positions, segments * 0, images)
    ids = tokens.where(tokens != IMAGE, image_token)
    theirs, ours = opened.theirs, opened.ours.model
    sums = ours.losses(batch)
    language = (sums.cross_entropy / sums.targets).item()
    assert theirs(ids, images[None], labels=ids).loss.item() == pytest.approx(language, abs=1e-5)
    ours.zero_grad()
    ours.train()
    theirs.train()
    try:
        sums = ours.losses(batch)
        (sums.cross_entropy / sums.targets + sums.router / sums.tokens).backward()
        for recomputed in (False, True):
            theirs.gradient_checkpointing = recomputed
            theirs.zero_grad()
            found = theirs(ids, images[None], labels=ids, use_cache=recomputed)
            assert found.past_key_values is None
            found.loss.backward()
            for (name, expected), parameter in zip(ours.named_parameters(), theirs.parameters(), strict=True):
                scale = float(expected.grad.abs().max())  # weights are loud here, and so are gradients
                assert float((parameter.grad - expected.grad).abs().max()) < 1e-3 * scale + 1e-6, name
    finally:
        theirs.gradient_checkpointing = False
        ours.eval()
        theirs.eval()


def test_recomputation_is_switched_by_transformers(opened: Opened) -> None:
    opened.theirs.gradient_checkpointing_enable()
    assert opened.theirs.model.decoder.checkpointing
    opened.theirs.gradient_checkpointing_disable()
    assert not opened.theirs.model.decoder.checkpointing


def same_weights(one: MM1, other: MM1) -> bool:
    pairs = zip(one.state_dict().items(), other.state_dict().items(), strict=True)
    return all(name == same and torch.equal(value, its) for (name, value), (same, its) in pairs)


def test_what_is_saved_again_is_the_same_for_both(opened: Opened, tmp_path: Path) -> None:
    opened.theirs.save_pretrained(tmp_path)
    opened.processor.save_pretrained(tmp_path)
    ours = opened.ours
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert same_weights(again.model, ours.model)
    for folder in (opened.folder, tmp_path):
        loaded = mm1.load(folder)
        encoded, expected = (opened.encoded(some.tokenizer)[2].tokens for some in (loaded, ours))
        assert torch.equal(encoded, expected)
        assert same_weights(loaded.model, ours.model)
        assert (loaded.tokenizer.eos, loaded.tokenizer.vocabulary) == (ours.tokenizer.eos, ours.tokenizer.vocabulary)
    if opened.name != "unlike llama":  # whose vocabulary puts a space before the first word of a text, not of each
        assert mm1.load(opened.folder).tokenizer.fingerprint == ours.tokenizer.fingerprint


def test_the_vocabulary_can_grow(opened: Opened, tmp_path: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(opened.folder)
    rows = model.config.vocab_size
    assert (model.get_output_embeddings() is None) == model.config.tie_word_embeddings
    model.resize_token_embeddings(rows + 8)
    model.save_pretrained(tmp_path)
    again = AutoModelForImageTextToText.from_pretrained(tmp_path)
    assert again.get_input_embeddings().num_embeddings == again.model.decoder.vocabulary == rows + 8
    assert again(torch.tensor([[rows + 7, 1]])).logits.shape == (1, 2, rows + 8)


def test_a_pipeline_answers_as_mm1(opened: Opened) -> None:
    ask = pipeline("image-text-to-text", model=opened.theirs, processor=opened.processor)
    content = [{"type": "image", "image": picture(0)}, {"type": "text", "text": "What is this?"}]
    [found] = ask(text=[{"role": "user", "content": content}], max_new_tokens=6, return_tensors=True)
    expected = opened.ours.generate(picture(0), "What is this?", 6)
    assert opened.ours.tokenizer.decode(found["generated_token_ids"].tolist()[-6:]).strip() == expected


def test_an_untrained_model_is_filled_by_mm1s_rule(opened: Opened) -> None:
    made, seeded = MM1ForConditionalGeneration(opened.theirs.config), build(opened.theirs.config.mm1["model"], "cpu")
    seeded.init_weights(seed=0)
    assert all(torch.equal(made.model.state_dict()[name], value) for name, value in seeded.state_dict().items())


def test_what_sees_the_future_reads_and_does_not_generate(tmp_path: Path) -> None:
    init = {"at_inference": "batch"}
    router = {"class_path": "mm1.model.moe.routers.ExpertChoice", "init_args": init}
    moe = {"class_path": "mm1.model.moe.layer.MoE", "init_args": {"experts": 4, "router": router}}
    stored = checkpoint(tmp_path / "x.ckpt", tokenizer("sentencepiece", tmp_path), moe=moe, moe_every=2)
    export(stored, tmp_path / "folder", to="transformers")
    model = AutoModelForImageTextToText.from_pretrained(tmp_path / "folder")
    ids = torch.arange(4, 12)[None]
    assert model(input_ids=ids).logits.isfinite().all()
    with pytest.raises(UserError, match="looks beyond the tokens so far, so it cannot generate"):
        model.generate(input_ids=ids, max_new_tokens=2)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a small model."""
    place = tmp_path_factory.mktemp("plain")
    return export(checkpoint(place / "a.ckpt", tokenizer("sentencepiece", place)), place / "model", to="transformers")


def test_a_folder_that_lacks_a_tensor_is_told(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "model"))
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    del weights["model.decoder.norm.weight"]
    safetensors.torch.save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=r"model lacks 1 tensors .* the first: decoder\.norm\.weight"):
        AutoModelForImageTextToText.from_pretrained(folder)
    with pytest.raises(UserError, match=r"1 tensors missing, the first: decoder\.norm\.weight"):
        mm1.load(folder)


def test_a_big_model_lies_in_shards(plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "model"))
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    write_tensors(folder, weights.items(), {"format": "pt"}, shard_bytes=50_000)
    assert len([*folder.glob("model-*-of-*.safetensors")]) > 2
    ours, theirs = mm1.load(plain).model, AutoModelForImageTextToText.from_pretrained(folder).model
    assert same_weights(ours, theirs)
    assert same_weights(ours, mm1.load(folder).model)


def test_what_does_not_fit_is_told(plain: Path) -> None:
    model = AutoModelForImageTextToText.from_pretrained(plain)
    ids, side = torch.tensor([[1, *[model.config.image_token_index] * 4, 9]]), model.model.vision.image_px
    one = torch.zeros(1, 1, 3, side, side, dtype=torch.uint8)
    for given, told in [
        ({}, "or neither"),
        ({"input_ids": ids, "inputs_embeds": torch.zeros(1, 2, 32)}, "expected input_ids, or"),
        ({"pixel_values": one, "inputs_embeds": torch.zeros(1, 2, 32)}, "pixel_values with inputs_embeds"),
        ({"input_ids": ids}, r"\[4\] places .* up to 0 pictures a row"),
        ({"input_ids": ids[:, :4], "pixel_values": one}, r"\[3\] places .*, 4 a picture"),
        ({"input_ids": ids, "pixel_values": one[0]}, r"shape \(1, 3, 28, 28\) for 1 rows"),
        ({"input_ids": ids.repeat(2, 1), "pixel_values": one}, r"shape \(1, 1, 3, 28, 28\) for 2 rows"),
        ({"input_ids": ids, "pixel_values": one, "attention_mask": ids[:, 3:]}, r"is \(1, 3\); expected \(1, 6\)"),
    ]:
        with pytest.raises(UserError, match=told):
            model(**given)
    with pytest.raises(UserError, match="StaticCache; expected one that grows"):
        model.generate(input_ids=ids, pixel_values=one, cache_implementation="static", max_new_tokens=2)


def test_a_decoder_of_others_is_no_model_of_ours(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for name in ("model.safetensors", "tokenizer.json"):
        (tmp_path / name).write_text("{}")
    with pytest.raises(UserError, match="model of type llama, none of ours"):
        mm1.load(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("auto", ["AutoModelForImageTextToText", "AutoProcessor", "AutoImageProcessor"])
def test_trusted_code_finds_the_installed_classes(plain: Path, auto: str) -> None:
    script = f"import transformers as t, sys; found = t.{auto}.from_pretrained({str(plain)!r}, trust_remote_code=True)"
    script += "; sys.exit(not type(found).__module__.startswith('mm1.interop.'))"
    done = subprocess.run([sys.executable, "-c", script], cwd=Path(mm1.__file__).parents[1], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()[-400:]
