"""What is lost when experts fail, from the door to scores.json."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
import yaml

from eval.__main__ import main
from eval.failing import failing, masks_of
from mm1.data.tokenizer import Tokenizer
from mm1.errors import UserError
from mm1.model.build import build
from mm1.model.mm1 import MM1
from mm1.model.moe.layer import MoE

ROOT = Path(__file__).resolve().parents[2]
LAST = 3  # the last sparse layer of the tiny decoder: what it says is what is answered


@pytest.fixture(scope="module")
def sparse_config() -> str:
    config = yaml.safe_load((ROOT / "configs/model/tiny_moe.yaml").read_text().replace("2048", "310"))
    config["init_args"]["decoder"]["init_args"]["layers"] = 4
    return yaml.safe_dump(config)


@pytest.fixture(scope="module")
def sparse(sparse_config: str) -> MM1:
    """A model whose experts differ loudly, so that it matters which of them answers."""
    model = build(yaml.safe_load(sparse_config), device="cpu")
    model.init_weights(seed=0)
    ffn = layer_of(model)
    with torch.no_grad():
        ffn.experts.down.mul_(40)
    return model.eval()


def layer_of(model: MM1) -> MoE:
    ffn = model.decoder.layers[LAST].ffn
    assert isinstance(ffn, MoE)
    return ffn


@pytest.fixture
def sparse_checkpoint(sparse: MM1, sparse_config: str, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    path = tmp_path / "sparse" / "checkpoints" / "last.ckpt"
    path.parent.mkdir(parents=True)
    weights = {f"model.{name}": value for name, value in sparse.state_dict().items()}
    about = {"format": 1, "model": sparse_config, "tokenizer": tokenizer.proto}
    torch.save({"mm1": about, "state_dict": weights}, path)
    return path


def ask(monkeypatch: pytest.MonkeyPatch, *words: object) -> None:
    monkeypatch.setattr(sys, "argv", ["mm1-eval", "run", *map(str, words)])
    main()


def test_masked_experts_answer_nothing_and_scores_say_so(
    sparse: MM1, sparse_checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = ["--data", data, "--shots", "[0]", "--arms", "[sighted]", "--tasks", "[vqa/daquar]"]
    ask(monkeypatch, sparse_checkpoint, *asked)
    masked = range(layer_of(sparse).router.experts - layer_of(sparse).router.top_k)
    mask = f"{LAST}:{','.join(map(str, masked))}"
    ask(monkeypatch, sparse_checkpoint, *asked, "--mask-experts", mask)
    folder = sparse_checkpoint.parent.parent / "eval"
    whole = folder / "fewshot"
    less = folder / f"fewshot-without-{'.'.join(map(str, (LAST, *masked)))}"
    settings = [json.loads((found / "scores.json").read_text())["settings"] for found in (whole, less)]
    assert [found["mask_experts"] for found in settings] == ["", mask]
    answers = [[json.loads(line)["answer"] for line in (f / "answers.jsonl").open()] for f in (whole, less)]
    assert len(answers[0]) == len(answers[1]) == 5
    assert answers[0] != answers[1]


def test_no_token_reaches_a_failed_expert_and_it_comes_back(sparse: MM1) -> None:
    router = layer_of(sparse).router
    chosen: list[torch.Tensor] = []
    hook = router.register_forward_hook(lambda _, __, routing: chosen.append(routing.choice.experts_MK))
    tokens_BT = torch.arange(5, 205).view(2, 100)
    x_BTD = sparse.embed(tokens_BT, sparse.encode_images(torch.empty(0, 3, 28, 28, dtype=torch.uint8)))

    def decode() -> torch.Tensor:
        with torch.no_grad():
            sparse.decoder(x_BTD, torch.ones_like(tokens_BT), torch.arange(100).expand(2, 100))
        return chosen[-1]

    before = decode()
    with failing(sparse, f"{LAST}:0, 2"):
        during = decode()
    after = decode()
    hook.remove()
    assert set(before.unique().tolist()) >= {0, 2}
    assert not set(during.unique().tolist()) & {0, 2}
    assert torch.equal(before, after)


def test_what_can_be_masked(sparse: MM1, model: MM1) -> None:
    assert masks_of("") == masks_of("  ") == {}
    assert masks_of("3:0,1; 5:7") == {3: [0, 1], 5: [7]}
    experts, top_k = layer_of(sparse).router.experts, layer_of(sparse).router.top_k
    for whose, text, told in [
        (sparse, "2:0", "layer 2 of 4 has no experts; expected one of 1, 3 (mask_experts)"),
        (sparse, "9:0", "layer 9 of 4 has no experts; expected one of 1, 3 (mask_experts)"),
        (sparse, f"3:{experts}", f"expert {experts} of {experts}; expected 0 to {experts - 1} (mask_experts)"),
        (sparse, "3:" + ",".join(map(str, range(experts))), f"expected at most {experts - top_k} (mask_experts)"),
        (model, "1:0", "layer 1 of a dense decoder has no experts; expected no mask_experts for this model"),
        (sparse, "3", "mask_experts is '3'; expected each layer once with its experts, such as 3:0,1;5:7"),
        (sparse, "3:0;3:1", "expected each layer once"),
    ]:
        with pytest.raises(UserError) as error, failing(whose, text):
            pass
        assert told in str(error.value)
    assert not layer_of(sparse).router.failed, "a mask that is refused leaves nothing behind"


def test_the_door_says_it_in_a_sentence(
    sparse_checkpoint: Path, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for mask, told in (
        ("2:0", "layer 2 of 4 has no experts"),
        ("three", "mask_experts is 'three'; expected each layer"),
    ):
        with pytest.raises(SystemExit):
            ask(monkeypatch, sparse_checkpoint, "--data", data, "--shots", "[0]", "--mask_experts", mask)
        assert capsys.readouterr().err.splitlines()[-1].startswith(f"error: {told}")
    assert not (sparse_checkpoint.parent.parent / "eval").exists()
