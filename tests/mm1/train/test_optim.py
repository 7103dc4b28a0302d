"""Rates and decay part by part, the schedule, and the law."""

from __future__ import annotations

import io
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from mm1.errors import UserError
from mm1.model.build import build
from mm1.model.count import parameters
from mm1.model.mm1 import MM1
from mm1.train.masters import MasterAdamW
from mm1.train.optim import AdamW, PartRule, decays, law
from tests.conftest import tiny_model

CONFIGS = Path(__file__).resolve().parents[3] / "configs"


@pytest.fixture
def model() -> MM1:
    return build(tiny_model(experts=4), device="cpu")


def rates(factory: AdamW, model: MM1, steps: int) -> list[list[float]]:
    optimizer, schedule = factory(model, steps)
    taken = []
    for _ in range(steps):
        taken.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        schedule.step()
    return taken


def test_warm_up_then_cosine_to_the_final_share(model: MM1) -> None:
    curve = [step[0] for step in rates(AdamW(lr=1.0, warmup_steps=4, final_share=0.1), model, 24)]
    assert curve[:5] == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0])
    assert curve[14] == pytest.approx(0.55)  # half way between 1 and 0.1
    assert 0.1 < curve[-1] < 0.11
    assert all(a >= b for a, b in itertools.pairwise(curve[3:]))


def test_rules_by_part_and_pattern(model: MM1) -> None:
    rules = {
        "vision": PartRule(lr_scale=0.1, weight_decay=0.0),
        "connector": PartRule(lr=5e-3, warmup_steps=2),
        "decoder.embedding.*": PartRule(frozen=True),
    }
    factory = AdamW(lr=1e-3, warmup_steps=10, parts=rules)
    factory.freeze(model)
    optimizer, _ = factory(model, 100)
    by_name = {id(p): group for group in optimizer.param_groups for p in group["params"]}
    groups = {name: by_name.get(id(parameter)) for name, parameter in model.named_parameters()}
    assert groups["decoder.embedding.weight"] is None
    assert all(group is not None for name, group in groups.items() if not name.startswith("decoder.embedding"))
    assert {group["initial_lr"] for name, group in groups.items() if name.startswith("vision")} == {1e-4}
    assert {group["weight_decay"] for name, group in groups.items() if name.startswith("vision")} == {0.0}
    assert {group["initial_lr"] for name, group in groups.items() if name.startswith("connector")} == {5e-3}
    assert {group["warmup_steps"] for name, group in groups.items() if name.startswith("connector")} == {2}
    assert groups["decoder.layers.0.attention.o.weight"]["weight_decay"] == 0.1
    assert groups["decoder.norm.weight"]["weight_decay"] == 0.0


def test_what_decays(model: MM1) -> None:
    kept = {name for name, parameter in model.named_parameters() if not decays(name, parameter)}
    assert {name for name, parameter in model.named_parameters() if parameter.ndim < 2} <= kept
    tables = {name for name in kept if dict(model.named_parameters())[name].ndim >= 2}
    assert any("pos" in name and name.startswith("vision") for name in tables)
    assert any("pos" in name and name.startswith("connector") for name in tables)
    assert not any(name.startswith("decoder") for name in tables)


def test_rules_that_cannot_be_meant(model: MM1) -> None:
    with pytest.raises(UserError, match=r"parts\.conector matches no parameter; expected a part \(vision, connector"):
        AdamW(parts={"conector": PartRule(frozen=True)}).freeze(model)
    with pytest.raises(UserError, match="freezes every parameter"):
        AdamW(parts={"*": PartRule(frozen=True)}).freeze(model)


@pytest.mark.parametrize(("name", "published"), [("3b", 5.92e-5), ("3b_moe", 5.92e-5), ("7b", 4.24e-5)])
def test_the_law_gives_the_published_rates_and_an_moe_its_dense_twins(name, published: float, caplog) -> None:
    rate = law(build(CONFIGS / "model" / f"{name}.yaml"))
    assert rate == pytest.approx(published, rel=0.015)
    assert "2M positions a batch" in caplog.text


def test_a_law_of_ones_own(model: MM1, tmp_path: Path) -> None:
    path = tmp_path / "law.yaml"
    path.write_text("slope: -0.5\nintercept: -1.0\n")
    size = parameters(model).dense_twin
    optimizer, _ = AdamW(lr="law", law_file=str(path))(model, 10)
    assert optimizer.param_groups[0]["initial_lr"] == pytest.approx(math.exp(-0.5 * math.log(size) - 1))
    path.write_text("slope: steep\n")
    with pytest.raises(UserError, match="expected YAML with slope and intercept"):
        law(model, str(path))


def test_frozen_means_untouched(model: MM1) -> None:
    model.init_weights(0)
    factory = AdamW(lr=0.1, parts={"vision": PartRule(frozen=True)})
    factory.freeze(model)
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    optimizer, _ = factory(model, 10)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if not name.startswith("vision")}


def test_a_part_may_stand_still_at_first(model: MM1) -> None:
    rules = {"decoder": PartRule(start_step=6, warmup_steps=4), "connector": PartRule(warmup_steps=0)}
    factory = AdamW(lr=1.0, parts=rules, weight_decay=0.1)
    curves = rates(factory, model, 24)
    optimizer, _ = factory(model, 24)
    [decoder] = {
        n for n, group in enumerate(optimizer.param_groups) if group["part"] == "decoder" and group["weight_decay"]
    }
    curve = [step[decoder] for step in curves]
    assert curve[:6] == [0.0] * 6
    assert curve[6:10] == pytest.approx([0.25, 0.5, 0.75, 1.0])
    assert curve[17] == pytest.approx(0.55)  # half way from step 10 to the end
    parts = [model.decoder.embedding.weight, next(model.connector.parameters())]
    before = [parameter.detach().clone() for parameter in parts]
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    assert [torch.equal(parameter, was) for parameter, was in zip(parts, before, strict=True)] == [True, False]


def test_a_start_before_the_first_step_is_refused(model: MM1) -> None:
    with pytest.raises(UserError, match=r"start_step is -1; expected"):
        AdamW(parts={"decoder": PartRule(start_step=-1)})(model, 10)


EXPERTS = "decoder.*.ffn.experts.*"
ROUTER = "decoder.*.ffn.router.*"


@pytest.mark.parametrize(
    ("rules", "learns"),
    [
        ({EXPERTS: True}, lambda name: ".experts." not in name),  # ST-MoE: all but the experts, as good as all
        ({"*": True, EXPERTS: False}, lambda name: ".experts." in name),  # only the experts, which it found far worse
        ({EXPERTS: True, ROUTER: True}, lambda name: ".experts." not in name and ".router." not in name),  # X-MoE
    ],
)
def test_fine_tuning_can_spare_or_choose_the_experts(model: MM1, rules, learns) -> None:
    AdamW(parts={pattern: PartRule(frozen=frozen) for pattern, frozen in rules.items()}).freeze(model)
    found = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert found == {name for name, _ in model.named_parameters() if learns(name)}
    assert 0 < len(found) < len(list(model.parameters()))


def test_one_count_for_all_becomes_one_for_each() -> None:
    """What a GPU saved goes on on a CPU as if it had been saved there."""

    def parameters() -> list[torch.nn.Parameter]:
        return [torch.nn.Parameter(torch.full((3,), float(n + 1))) for n in range(4)]

    def step(optimizer: torch.optim.Optimizer) -> None:
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.grad = parameter.detach().sin()
        optimizer.step()

    numbers: dict[str, Any] = {"betas": (0.9, 0.95), "eps": 1e-8}
    theirs, ours = parameters(), parameters()
    torchs = AdamW(lr=0.1).made([{"params": theirs, "weight_decay": 0.1, "lr": 0.1}], 0.1)
    saved = MasterAdamW([{"params": ours, "weight_decay": 0.1}], lr=0.1, **numbers)
    for optimizer in (torchs, saved):
        step(optimizer)
    again = AdamW(lr=0.1).made([{"params": ours, "weight_decay": 0.1, "lr": 0.1}], 0.1)
    buffer = io.BytesIO()
    torch.save(saved.state_dict(), buffer)
    buffer.seek(0)
    again.load_state_dict(torch.load(buffer, weights_only=True))
    for optimizer in (torchs, again):
        step(optimizer)
    assert [state["step"].item() for state in again.state.values()] == [2.0] * 4
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)
