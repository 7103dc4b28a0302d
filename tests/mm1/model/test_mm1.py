"""The whole model: what it reads, what it ignores, and that every part of it learns."""

from dataclasses import replace

import pytest
import torch

from mm1.batch import IGNORE, IMAGE, Batch, ImageSpec
from mm1.errors import UserError
from mm1.model.build import build


def gradients(model, batch):
    model.zero_grad(set_to_none=True)
    sums = model.losses(batch)
    (sums.cross_entropy / sums.targets + sums.router / sums.tokens).backward()
    return {name: parameter.grad for name, parameter in model.named_parameters()}


@pytest.mark.parametrize("experts", [0, 4])
@pytest.mark.parametrize("connector", ["CAbstractor", "AveragePool", "AttentionPool"])
def test_every_parameter_learns(model, batch, experts, connector):
    for name, grad in gradients(model(experts=experts, connector=connector), batch()).items():
        assert grad is not None, name
        assert torch.isfinite(grad).all(), name
        if not name.endswith(("k.bias", "qkv.bias")):  # a key's bias moves all scores alike, which softmax ignores
            assert grad.abs().max() > 0, name


@pytest.mark.parametrize("experts", [0, 4])
def test_a_batch_without_pictures_gives_every_parameter_a_gradient(model, batch, experts):
    grads = gradients(model(experts=experts).train(), batch(pictures=False))
    for name, grad in grads.items():
        assert grad is not None, name
        if name.startswith(("vision", "connector")):
            assert grad.abs().max() == 0, name
    assert grads["decoder.layers.0.attention.q.weight"].abs().max() > 0


def test_a_batch_without_pictures_reads_the_same_in_training_and_evaluation(model, batch):
    text, mm1 = batch(pictures=False), model()
    with torch.no_grad():
        evaluated = mm1.eval()(text).hidden_BTD
    assert torch.equal(mm1.train()(text).hidden_BTD, evaluated)


def test_a_packed_row_reads_like_each_document_alone(model, packed, documents):
    mm1 = model(experts=4).eval()
    together = packed([documents], sum(map(len, documents)) + 5, 0)
    hidden_TD, start, image = mm1(together).hidden_BTD[0], 0, 0
    for tokens in documents:
        alone = packed([[tokens]], len(tokens), 0)
        images = len(alone.images_ICHW)
        alone = alone.with_images(together.images_ICHW[image : image + images])
        found = hidden_TD[start : start + len(tokens)]
        assert torch.allclose(found, mm1(alone).hidden_BTD[0], atol=1e-5)
        start, image = start + len(tokens), image + images


def test_a_position_sees_nothing_that_comes_later(model, batch):
    mm1, before = model().eval(), batch()
    changed = before.tokens_BT.clone()
    changed[:, 14] = (changed[:, 14] + 1) % 64
    assert (before.tokens_BT[:, 14] != IMAGE).all()
    a, b = mm1(before).hidden_BTD, mm1(replace(before, tokens_BT=changed)).hidden_BTD
    assert torch.equal(a[:, :14], b[:, :14])
    assert not torch.allclose(a[:, 14], b[:, 14])


def test_the_six_token_example(model):
    """``I I a b | c | padding`` of mm1/batch.py: two targets, the first predicted by the last image position."""
    segments = torch.tensor([[1, 1, 1, 1, 1, 1, 2, 0]])
    tokens = torch.tensor([[IMAGE, IMAGE, IMAGE, IMAGE, 5, 6, 7, 0]])
    targets = torch.tensor([[IGNORE, IGNORE, IGNORE, 5, 6, IGNORE, IGNORE, IGNORE]])
    positions = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 0]])
    picture = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    batch = Batch(tokens, targets, segments, positions, torch.zeros_like(tokens), picture)
    mm1 = model().eval()
    log_probabilities = mm1.decoder.logits(mm1(batch).hidden_BTD).log_softmax(-1)
    sums = mm1.losses(batch)
    expected = -log_probabilities[0, 3, 5] - log_probabilities[0, 4, 6]
    assert torch.allclose(sums.cross_entropy, expected, atol=1e-5)
    assert (int(sums.targets), int(sums.tokens)) == (2, 7)
    blind = mm1.losses(batch.with_images(255 - picture))
    assert not torch.allclose(blind.cross_entropy, sums.cross_entropy, atol=1e-4)


def test_pictures_are_read_in_order(model, batch):
    mm1, seen = model().eval(), batch(rows=1)
    first = seen.tokens_BT[0].eq(IMAGE).nonzero()[0, 0]
    swapped = seen.with_images(seen.images_ICHW[[1, 0, 2]])
    a, b = mm1(seen).hidden_BTD[0], mm1(swapped).hidden_BTD[0]
    assert not torch.allclose(a[first], b[first])
    alone = mm1.encode_images(seen.images_ICHW[:1])
    assert torch.allclose(mm1.encode_images(seen.images_ICHW)[:1], alone, atol=1e-5)


@pytest.mark.parametrize("name", ["tiny", "tiny_moe"])
def test_init_fills_every_parameter_and_buffer(model_configs, name):
    mm1 = build(model_configs / f"{name}.yaml")
    assert all(parameter.is_meta for parameter in mm1.parameters())
    mm1.to_empty(device="cpu")
    everything = list(mm1.parameters()) + list(mm1.buffers())
    with torch.no_grad():
        for tensor in everything:
            tensor.fill_(float("nan"))
    mm1.init_weights(0)
    assert all(torch.isfinite(tensor).all() for tensor in everything)


def test_a_seed_is_a_model_and_twins_share_what_they_share(model):
    def state(**settings):
        return model(**settings).state_dict()

    dense, again, other, sparse = state(), state(), state(seed=1), state(experts=4)
    assert all(torch.equal(dense[name], again[name]) for name in dense)
    assert not torch.equal(dense["decoder.embedding.weight"], other["decoder.embedding.weight"])
    shared = dense.keys() & sparse.keys()
    assert len(shared) == len(dense) - 2  # gate_up and down of the one sparse layer
    assert all(torch.equal(dense[name], sparse[name]) for name in shared)


def test_pictures_are_normalised_by_the_encoders_numbers(model):
    mm1 = model().eval()
    picture = torch.randint(0, 256, (1, 3, 32, 32), dtype=torch.uint8)
    spec = mm1.image_spec
    assert spec == ImageSpec(32, 4, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "squash", "bicubic")
    x = (picture / 255 - torch.tensor(spec.mean).view(3, 1, 1)) / torch.tensor(spec.std).view(3, 1, 1)
    assert torch.allclose(mm1.connector(mm1.vision(x)), mm1.encode_images(picture), atol=1e-6)


def test_parts_hold_every_parameter_once(model):
    mm1 = model()
    parts = mm1.parts()
    assert list(parts) == ["vision", "connector", "decoder"]
    assert sum(len(list(part.parameters())) for part in parts.values()) == len(list(mm1.parameters()))


@pytest.mark.parametrize("experts", [0, 4])
def test_recomputing_activations_changes_nothing(model, batch, experts):
    plain, saving = model(experts=experts), model(experts=experts, checkpointing=True)
    saving.vision.visual.set_grad_checkpointing(True)
    expected = gradients(plain, batch())
    for name, grad in gradients(saving, batch()).items():
        assert torch.allclose(grad, expected[name], atol=1e-6), name


@pytest.mark.slow
def test_compiled_parts_compute_the_same_for_any_number_of_pictures(model, batch):
    plain, compiled = model(), model()
    names = list(compiled.state_dict())
    compiled.compile_parts()
    assert list(compiled.state_dict()) == names
    whole = batch()
    rows = ("tokens_BT", "targets_BT", "segments_BT", "positions_BT", "sources_BT")
    pictures = int((whole.tokens_BT[:1] == IMAGE).sum()) // plain.connector.tokens
    first = {name: getattr(whole, name)[:1] for name in rows}
    for some in (whole, replace(whole, images_ICHW=whole.images_ICHW[:pictures], **first)):
        expected = gradients(plain, some)
        for name, grad in gradients(compiled, some).items():
            assert torch.allclose(grad, expected[name], atol=1e-5), name


def test_frozen_parts_stay_out_of_the_backward_pass(model, batch):
    mm1 = model()
    for part in ("vision", "decoder"):
        mm1.parts()[part].requires_grad_(False)
    grads = gradients(mm1, batch())
    assert all((grad is not None) == name.startswith("connector") for name, grad in grads.items())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.with_images(b.images_ICHW[1:]), "24 image positions for 5 pictures.*20 were expected"),
        (lambda b: b.with_images(b.images_ICHW[..., :16]), r"shape \(3, 32, 16\).*takes \(3, 32, 32\).*model.vision"),
        (lambda b: replace(b, tokens_BT=b.tokens_BT + (b.tokens_BT > 0) * 64), "token id 1.*64 entries"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(model, batch, change, message):
    with pytest.raises(UserError, match=message):
        model().losses(change(batch()))


@torch.no_grad()
def test_across_documents_a_position_sees_all_of_its_row_before_it(model, batch):
    rows = batch()
    apart, across = model(), model(across_documents=True)
    one = replace(rows, segments_BT=torch.ones_like(rows.segments_BT))  # the same row as if it were one document
    found, expected = across(rows).hidden_BTD, apart(one).hidden_BTD
    filled_BT = rows.segments_BT > 0
    assert torch.allclose(found[filled_BT], expected[filled_BT], atol=1e-5)
    assert not torch.allclose(found[filled_BT], apart(rows).hidden_BTD[filled_BT], atol=1e-3)
