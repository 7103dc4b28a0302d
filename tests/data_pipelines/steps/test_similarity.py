"""Image-text similarity with a tiny CLIP of open_clip's own making, its weights in a file as users have them."""

import open_clip
import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from data_pipelines.sources.base import Draft, Rejection
from data_pipelines.steps import Pictures, Similarity
from data_pipelines.steps.similarity import sentences
from mm1.errors import UserError
from mm1.sample import Text
from tests.clips import NAME, tiny_clip


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def cosine(weights):
    """The similarity of a document's picture and a text, with open_clip alone."""
    model, prepare = open_clip.create_model_from_pretrained(NAME, pretrained=str(weights))
    tokenize = open_clip.get_tokenizer(NAME)

    @torch.no_grad()
    def similarity(place, text):
        image_1D = model.eval().encode_image(prepare(Pictures().pixels(place))[None])
        return torch.nn.functional.cosine_similarity(image_1D, model.encode_text(tokenize([text]))).item()

    return similarity


RED, BLUE = Image.new("RGB", (40, 30), "red"), Image.effect_noise((40, 30), 80).convert("RGB")


def test_a_caption_is_as_similar_as_open_clip_says(document, reason, weights, cosine):
    draft = document(RED, "A red wall. It is old.")
    exact = cosine(draft.pictures[0], "A red wall. It is old.")
    assert reason(Similarity(NAME, weights=weights, minimum=exact - 1e-4), draft) == ""
    above = exact + 1e-4
    assert reason(Similarity(NAME, weights=weights, minimum=above), draft) == f"image-text similarity under {above:g}"


def test_of_a_page_each_picture_is_held_against_its_best_sentence(document, weights, cosine):
    draft = document("One thing. Another thing!", RED, "What is this? Noise.", BLUE)
    best = [
        max(cosine(place, text) for text in ("One thing.", "Another thing!", "What is this?", "Noise."))
        for place in draft.pictures
    ]
    assert abs(best[0] - best[1]) > 1e-3
    lower = best.index(min(best))
    for batch in (1, 3, 64):
        kept = Similarity(NAME, weights=weights, minimum=sum(best) / 2, batch=batch)(draft, Pictures())
        assert isinstance(kept, Draft)
        assert kept.pictures == (draft.pictures[1 - lower],)
        assert [lost.id for lost in kept.lost] == [f"a:1 {draft.pictures[lower].name}"]


def test_sentences_are_what_a_page_says_one_by_one(document):
    page = document("First line\nSecond: 3.5 apples. Third!", RED, "", BLUE, "第四。第五。")
    assert list(sentences(page)) == ["First line", "Second: 3.5 apples.", "Third!", "第四。", "第五。"]
    assert list(sentences(document(RED, "One. Two."))) == ["One. Two."]


def test_without_picture_nothing_is_judged_and_without_text_nothing_is_kept(document, reason, weights):
    step = Similarity(NAME, weights=weights, minimum=-1)
    assert reason(step, document("text alone")) == ""
    assert reason(step, document(RED, " ")) == "no text beside the picture"


def test_a_picture_that_does_not_decode_is_lost_as_a_fault(document, weights):
    lost = Similarity(NAME, weights=weights, minimum=-1)(document(b"no picture", "text"), Pictures())
    assert lost == Rejection("a:1", "picture does not decode", fault=True)


@settings(max_examples=10)
@given(low=st.floats(-1, 1), less=st.floats(0, 1))
def test_a_lower_bound_keeps_all_that_a_higher_one_does(document, weights, low, less):
    draft = document("One thing.", RED, "Another.", BLUE)
    high, lower = (
        Similarity(NAME, weights=weights, minimum=bound)(draft, Pictures()).pictures for bound in (low, low - less)
    )
    assert set(high) <= set(lower)


def test_models_and_weights_that_are_not_there_are_refused(document, tmp_path, weights):
    with pytest.raises(UserError, match="open_clip has no model 'ViT-nonsense'"):
        Similarity("ViT-nonsense")
    with pytest.raises(UserError, match=r"open_clip has no weights 'x' of ViT-B-32; expected openai, .* at pretrained"):
        Similarity(pretrained="x")
    with pytest.raises(UserError, match="expected a file or folder at weights"):
        Similarity(weights=tmp_path / "none.safetensors")
    safetensors.torch.save_file({"a": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=rf"other.safetensors of {NAME} cannot be used on cpu"):
        Similarity(NAME, weights=tmp_path / "other.safetensors")(document(RED, "text"), Pictures())


def test_the_step_travels_without_its_model(weights):
    import pickle

    step = Similarity(NAME, weights=weights)
    step(Draft("a", "s", (Text("text"),), "g"), Pictures())
    assert len(pickle.dumps(step)) < 1000
