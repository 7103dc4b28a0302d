"""Parts that were joined are the parts that they were, and the decoder comes back out as it went in."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

import mm1
from mm1.data.tokenizer import Tokenizer, from_hf, train
from mm1.errors import UserError
from mm1.interop.__main__ import main
from mm1.interop.decoder_in import load_decoder
from mm1.interop.decoder_out import export_decoder
from mm1.interop.family import families
from mm1.interop.join import join
from mm1.interop.origin import Origin, licence_of
from mm1.interop.write import write_tensors
from mm1.model import stored
from mm1.model.build import resolve
from mm1.model.decoder import Decoder
from mm1.model.mm1 import MM1
from tests.mm1.interop.published import MODELS, SPARSE, VOCABULARY, change, write

TOWER = {"name": "vit_tiny_patch16_224", "image_px": 32, "patch_px": 8, "width": 32, "layers": 1, "heads": 2}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's YAML that names the encoder's weights, and those weights."""
    folder = tmp_path_factory.mktemp("tower")
    visual = timm.create_model(
        TOWER["name"], num_classes=0, img_size=32, patch_size=8, embed_dim=32, depth=1, num_heads=2
    )
    safetensors.torch.save_file(visual.state_dict(), folder / "tower.safetensors")
    vision = {
        "class_path": "mm1.model.vision.Timm",
        "init_args": TOWER | {"weights": str(folder / "tower.safetensors")},
    }
    connector = {"class_path": "mm1.model.connector.AveragePool", "init_args": {"tokens": 4}}
    decoder = {"class_path": "mm1.model.decoder.Decoder", "init_args": {"checkpointing": True, "width": 7}}
    parts = {"vision": vision, "connector": connector, "decoder": decoder}
    (folder / "model.yaml").write_text(yaml.safe_dump({"class_path": "mm1.model.mm1.MM1", "init_args": parts}))
    return folder / "model.yaml"


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    files = sorted(folder.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in safetensors.torch.load_file(file).items()}


def same_bits(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> bool:
    return ours.keys() == theirs.keys() and all(
        ours[name].dtype == tensor.dtype and torch.equal(ours[name], tensor) for name, tensor in theirs.items()
    )


def read(decoder: Decoder, ids: torch.Tensor) -> torch.Tensor:
    hidden = decoder(decoder.embedding(ids), torch.ones_like(ids), torch.arange(ids.shape[1])[None]).hidden_BTD
    return decoder.logits(hidden)


@pytest.mark.parametrize("name", MODELS)
@torch.no_grad()
def test_an_untouched_decoder_comes_back_bit_for_bit_and_our_own_finds_its_family(
    name: str, model: Path, tmp_path: Path
) -> None:
    source = write(name, tmp_path / "source", torch.bfloat16)
    joined = join(model, source, tmp_path / "joined")
    back = export_decoder(joined, tmp_path / "back")
    assert same_bits(tensors(back), tensors(source))
    assert json.loads((back / "config.json").read_text()) == json.loads((source / "config.json").read_text())

    (joined / "origin.json").unlink()
    own = export_decoder(joined, tmp_path / "own")
    ids = torch.arange(40)[None]
    theirs = AutoModelForCausalLM.from_pretrained(own, attn_implementation="eager")(ids).logits
    decoder = load_decoder(own)
    assert torch.allclose(read(decoder, ids), theirs, atol=1e-4, rtol=0)
    assert same_bits(decoder.state_dict(), mm1.load(joined).model.decoder.state_dict())
    found = json.loads((own / "config.json").read_text())["architectures"][0]
    if name in families():
        assert found == f"{MODELS[name][0]}ForCausalLM"


@pytest.mark.parametrize("name", sorted({*MODELS} & {*families()}))
@torch.no_grad()
def test_fp32_comes_back_bit_for_bit_and_transformers_computes_the_same_with_it(
    name: str, model: Path, tmp_path: Path
) -> None:
    source = write(name, tmp_path / "source")
    back = export_decoder(join(model, source, tmp_path / "joined"), tmp_path / "back")
    assert same_bits(tensors(back), tensors(source))
    theirs, ours = (AutoModelForCausalLM.from_pretrained(at)(torch.arange(40)[None]).logits for at in (source, back))
    assert torch.equal(theirs, ours)


@pytest.mark.parametrize("name", SPARSE)
def test_stacked_experts_come_back_stacked(name: str, model: Path, tmp_path: Path) -> None:
    source = write(name, tmp_path / "source", stacked=True)
    joined = join(model, source, tmp_path / "joined", dtype="float32")
    assert same_bits(tensors(export_decoder(joined, tmp_path / "back")), tensors(source))


def test_odd_types_and_a_stored_head_come_back(model: Path, tmp_path: Path) -> None:
    source = write("smollm", tmp_path / "source", torch.bfloat16)
    odd = tensors(source)
    odd["model.norm.weight"] = odd["model.norm.weight"].float() + 1e-6
    odd["lm_head.weight"] = odd["model.embed_tokens.weight"].clone()
    safetensors.torch.save_file(odd, source / "model.safetensors")
    assert same_bits(tensors(export_decoder(join(model, source, tmp_path / "joined"), tmp_path / "back")), odd)


@torch.no_grad()
def test_the_joined_model_is_its_parts_with_room_for_new_tokens(model: Path, tmp_path: Path) -> None:
    source = write("llama", tmp_path / "source")
    joined = join(model, source, tmp_path / "joined")
    found = mm1.load(joined)
    decoder, original = found.model.decoder, load_decoder(source)
    assert found.tokenizer.image is not None
    assert decoder.vocabulary == 384  # the next multiple of 64
    assert decoder.checkpointing
    for rows, old in ((decoder.embedding.weight, original.embedding.weight), (decoder.head_VD, original.head_VD)):
        assert torch.equal(rows[:VOCABULARY], old)
        new = rows[VOCABULARY:]
        assert torch.allclose(new, old.mean(0).expand_as(new), atol=0.05 * float(old.std()))
        assert len(new.unique(dim=0)) == len(new)
    tower = safetensors.torch.load_file(model.with_name("tower.safetensors"))
    assert all(torch.equal(tensor, tower[name]) for name, tensor in found.model.vision.visual.state_dict().items())
    again = stored.read(join(model, source, tmp_path / "again")).weights
    other = stored.read(join(model, source, tmp_path / "other", seed=1)).weights
    weights = stored.read(joined).weights
    assert all(torch.equal(tensor, again[name]) for name, tensor in weights.items())
    changed = {name for name, tensor in weights.items() if not torch.equal(tensor, other[name])}
    assert changed == {name for name in weights if name.startswith("connector.") and "bias" not in name} | {
        "decoder.embedding.weight",
        "decoder.head.weight",
    }
    settings = yaml.safe_load((joined / "model.yaml").read_text())["init_args"]["vision"]["init_args"]
    assert "weights" not in settings


@torch.no_grad()
def test_a_new_connector_is_silent_in_its_branches_and_as_loud_as_words(model: Path, tmp_path: Path) -> None:
    tree = yaml.safe_load(model.read_text())
    connector = {"class_path": "mm1.model.connector.CAbstractor", "init_args": {"tokens": 4, "width": 24, "depth": 2}}
    tree["init_args"]["connector"] = connector
    (tmp_path / "model.yaml").write_text(yaml.safe_dump(tree))
    found = stored.read(join(tmp_path / "model.yaml", write("llama", tmp_path / "source"), tmp_path / "joined")).model()
    ends = [weight for name, weight in found.connector.named_parameters() if name.endswith("conv3.bn.weight")]
    assert len(ends) == 4
    assert not any(weight.any() for weight in ends)
    tokens = found.encode_images(torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8))
    words = found.decoder.embedding.weight[:VOCABULARY]
    assert 1 / 3 < float(tokens.std() / words.std()) < 3


def test_what_is_known_of_the_parts_is_remembered(model: Path, tmp_path: Path) -> None:
    source = write("qwen2", tmp_path / "source", torch.bfloat16)
    (source / "README.md").write_text("---\nlanguage: en\nlicense: apache-2.0\n---\n# A model\n")
    origin = Origin.from_json(stored.read(join(model, source, tmp_path / "joined")).origin_json)
    assert origin.decoder is not None
    assert (origin.decoder.family, origin.decoder.licence, origin.decoder.dtype) == ("qwen2", "apache-2.0", "bfloat16")
    assert origin.decoder.config == json.loads((source / "config.json").read_text())
    assert origin.decoder.vocabulary == VOCABULARY
    assert origin.vision is not None
    assert origin.vision["init_args"]["weights"] == "tower.safetensors"
    back = export_decoder(tmp_path / "joined", tmp_path / "back")
    assert licence_of(back) == "apache-2.0"
    named = join(model, source, tmp_path / "named", vision_licence="mit")
    assert Origin.from_json(stored.read(named).origin_json).vision_licence == "mit"


def test_the_tokenizer_comes_back(model: Path, tmp_path: Path) -> None:
    source = write("llama", tmp_path / "source", tokenizer="llama3")
    back = export_decoder(join(model, source, tmp_path / "joined"), tmp_path / "back")
    ours, theirs = (AutoTokenizer.from_pretrained(folder) for folder in (back, source))
    assert ours.get_vocab() == theirs.get_vocab()
    assert (ours.bos_token, ours.eos_token) == (theirs.bos_token, theirs.eos_token)
    text = "The red circle <|end|> naïve 漢字"
    assert ours.encode(text, truncation=False) == theirs.encode(text, truncation=False)


def test_a_sentencepiece_tokenizer_comes_back(model: Path, tmp_path: Path) -> None:
    source = write("llama", tmp_path / "source")
    (source / "tokenizer.json").unlink()
    proto = train(["the red circle stands left of two green squares"] * 9, 290)
    (source / "tokenizer.model").write_bytes(proto)
    joined = join(model, source, tmp_path / "joined")
    assert Tokenizer(joined / "tokenizer.model").vocabulary == 291
    assert (export_decoder(joined, tmp_path / "back") / "tokenizer.model").read_bytes() == proto


def trained(joined: Path, out: Path, **arguments: Any) -> Path:
    """The joined folder with every weight a little larger, and other settings of the decoder."""
    found = stored.read(joined)
    tree = yaml.safe_load(found.config)
    tree["init_args"]["decoder"]["init_args"] |= arguments
    tree = resolve(tree, MM1)  # as mm1-train writes it
    origin = {"origin": found.origin_json} if found.origin_json else {}
    about = {"format": 1, "model": yaml.safe_dump(tree), "tokenizer": found.tokenizer, **origin}
    state = {f"model.{name}": tensor * 1.5 for name, tensor in found.weights.items()}
    torch.save({"state_dict": state, "mm1": about}, out)
    return out


def test_a_trained_decoder_gives_its_trained_weights(model: Path, tmp_path: Path) -> None:
    source = write("olmo2", tmp_path / "source", torch.bfloat16)
    checkpoint = trained(join(model, source, tmp_path / "joined"), tmp_path / "last.ckpt", checkpointing=False)
    back = tensors(export_decoder(checkpoint, tmp_path / "back"))
    assert same_bits(back, {name: (1.5 * t.float()).to(t.dtype) for name, t in tensors(source).items()})


def test_a_decoder_that_no_family_computes_is_told(model: Path, tmp_path: Path) -> None:
    joined = join(model, write("llama", tmp_path / "source"), tmp_path / "joined")
    checkpoint = trained(joined, tmp_path / "last.ckpt", clip_qkv=3.0)
    with pytest.raises(UserError, match="the nearest, llama, differs in clip_qkv"):
        export_decoder(checkpoint, tmp_path / "back")
    assert not (tmp_path / "back").exists()


def test_a_tokenizer_larger_than_the_embedding_is_told(model: Path, tmp_path: Path) -> None:
    source = write("llama", tmp_path / "source")
    wide = tensors(source)
    rows = {name: tensor[:300].clone() if len(tensor) == VOCABULARY else tensor for name, tensor in wide.items()}
    safetensors.torch.save_file(rows, source / "model.safetensors")
    change(source, vocab_size=300)
    ids = Tokenizer.from_bytes(from_hf(source)).vocabulary
    with pytest.raises(UserError, match=rf"has {ids} ids, its embedding 300 rows \(vocab_size\)"):
        join(model, source, tmp_path / "joined")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_parts_that_do_not_go_together_are_told_first(model: Path, tmp_path: Path) -> None:
    source = write("llama", tmp_path / "source")
    tree = yaml.safe_load(model.read_text())

    def other(**parts: Any) -> Path:
        (tmp_path / "model.yaml").write_text(yaml.safe_dump({**tree, "init_args": {**tree["init_args"], **parts}}))
        return tmp_path / "model.yaml"

    pool = {"class_path": "mm1.model.connector.CAbstractor", "init_args": {"tokens": 5}}
    bare = {"class_path": "mm1.model.vision.Timm", "init_args": TOWER}
    faults: list[tuple[Callable[[], Path], dict[str, Path], str]] = [
        (lambda: other(connector=pool), {}, "tokens"),
        (lambda: other(vision=bare), {}, "names no weights for its encoder; expected --vision_weights FILE"),
        (lambda: model, {"vision_weights": tmp_path / "nowhere"}, "nowhere does not exist; expected the weights"),
        (lambda: tmp_path / "none.yaml", {}, "none.yaml does not exist"),
    ]
    for yaml_file, options, message in faults:
        with pytest.raises(UserError, match=message):
            join(yaml_file(), source, tmp_path / "joined", **options)
    (tmp_path / "joined").mkdir()
    with pytest.raises(UserError, match="joined exists already"):
        join(model, source, tmp_path / "joined")


def test_a_stored_model_may_lie_in_shards(model: Path, tmp_path: Path) -> None:
    joined = join(model, write("llama", tmp_path / "source"), tmp_path / "joined")
    whole = stored.read(joined).weights
    (joined / "model.safetensors").unlink()
    write_tensors(joined, iter(whole.items()), {"format": "1"}, shard_bytes=50_000)
    shards = sorted(joined.glob("model-*.safetensors"))
    assert len(shards) > 2
    parts = stored.read(joined)
    assert same_bits(parts.weights, whole)
    assert parts.model().decoder.vocabulary == 384
    shards[1].unlink()
    with pytest.raises(UserError, match=f"names {shards[1].name}, which is not there"):
        stored.read(joined)
    (joined / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match=r"index\.json is broken"):
        stored.read(joined)


def test_a_broken_origin_is_told(model: Path, tmp_path: Path) -> None:
    joined = join(model, write("llama", tmp_path / "source"), tmp_path / "joined")
    for content, message in (("{", "is broken"), ('{"format": 7}', "has format 7"), ('{"format": 1}', "is broken")):
        (joined / "origin.json").write_text(content)
        with pytest.raises(UserError, match=message):
            export_decoder(joined, tmp_path / "back")


def test_the_door_joins(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = write("smollm", tmp_path / "source")
    torch.save(tensors(source), source / "pytorch_model.bin")
    (source / "model.safetensors").unlink()
    words = ["join", "--model", str(model), "--decoder", str(source), "--out", str(tmp_path / "joined")]
    monkeypatch.setattr(sys, "argv", ["mm1-convert", *words])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert "--allow-pickle" in told
    monkeypatch.setattr(sys, "argv", ["mm1-convert", *words, "--allow-pickle", "--dtype", "bfloat16"])
    main()
    assert f"written: {tmp_path / 'joined'}" in capsys.readouterr().out
    exact = {name for name, tensor in stored.read(tmp_path / "joined").weights.items() if tensor.dtype == torch.float32}
    assert exact == {"mean_C11", "std_C11"}
    assert {tensor.dtype for tensor in stored.read(tmp_path / "joined").weights.values()} == {
        torch.bfloat16,
        torch.float32,
    }
