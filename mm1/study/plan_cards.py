"""What GPUs can do: sizes and speeds from data sheets, shares of them that runs reached, and where each is from.

A figure is a data sheet's, ``measured`` in docs/benchmarks, of a ``peer`` (a vision-language model assembled from
transformers' parts) or ``assumed``; a plan for a card, a size or a number of GPUs that no run has seen says so.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from mm1.errors import UserError, at_least
from mm1.peak import PEAK_TFLOPS

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Card:
    """A GPU and what it is connected by.

    Args:
        name: For the reader.
        memory_gib: What a process can allocate.
        tflops: Dense bf16 products at the data sheet's best, in 1e12 a second.
        memory_gb_s: Bandwidth of its memory, 1e9 bytes a second.
        node_gpus: GPUs of one machine.
        node_gb_s: One way between GPUs of a machine.
        net_gb_s: One way between machines, for each GPU.
        measured: Whether rates below were measured on this card.
    """

    name: str
    memory_gib: float
    tflops: float
    memory_gb_s: float
    node_gpus: int = 8
    node_gb_s: float
    net_gb_s: float
    measured: bool = False


# NVIDIA's data sheets of the SXM cards; NVLink's total halved for one way; a network port for each GPU, as in DGX
# machines (400 and 200 Gbit/s). Memory is what the driver leaves of 80 or 141 GB, in GiB.
CARDS = {
    "h100": Card(
        name="H100 SXM", memory_gib=79.1, tflops=PEAK_TFLOPS["H100"], memory_gb_s=3350, node_gb_s=450, net_gb_s=50
    ),
    "h200": Card(
        name="H200 SXM",
        memory_gib=139.8,
        tflops=PEAK_TFLOPS["H200"],
        memory_gb_s=4800,
        node_gb_s=450,
        net_gb_s=50,
        measured=True,
    ),
    "a100-80": Card(
        name="A100 SXM 80GB", memory_gib=79.1, tflops=PEAK_TFLOPS["A100"], memory_gb_s=2039, node_gb_s=300, net_gb_s=25
    ),
}


@dataclass(frozen=True)
class Rate:
    """A share of what a card can do at best, and where it is from."""

    share: float
    source: str


# Shares of `tflops`, of `memory_gb_s` and of links.
RATES = {
    "decoder": Rate(0.513, "calibrated: decoder.csv, dense, compiled, one H200, 259.1 ms less optimizer and attention"),
    "experts": Rate(
        0.475, "calibrated: decoder.csv, E8 k2, 269.9 ms, routing included; moe.csv says 375 to 567 by shape"
    ),
    "attention": Rate(0.40, "assumed: flash kernels forward and backward on Hopper; no run of ours tells it apart"),
    "encoder": Rate(0.405, "peer: a whole step of ViT-H and 1.2B, compiled, one H100, 401 of 989 TFLOP/s"),
    "eager": Rate(0.853, "peer: 342 TFLOP/s without compiling beside 401 with; factor on all of the above"),
    "optimizer": Rate(0.80, "assumed: share of memory bandwidth that AdamW reads and writes at"),
    "node": Rate(0.60, "calibrated: experts.csv, two H200, 671 MB of exchanges in 2.5 ms"),
    "net": Rate(0.80, "assumed"),
}


def card(name: str) -> Card:
    """A card by its name, or from a YAML of the arguments of :class:`Card`, of those that differ from ``like``.

    Raises:
        UserError: No such card or file, or a key or number that a card does not have.
    """
    if name in CARDS:
        return CARDS[name]
    path = Path(name)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        raise UserError(f"there is no card {name!r}; expected {', '.join(CARDS)} or a YAML of its numbers (--gpu)")
    try:
        found = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML ({' '.join(str(error).split())}) (--gpu)") from None
    return _from(found, path)


def _from(found: Any, path: Path) -> Card:
    names = [field.name for field in fields(Card) if field.name != "measured"]
    odd = sorted(map(str, set(found) - {*names, "like"})) if isinstance(found, dict) else type(found).__name__
    if odd or not isinstance(found, dict):
        raise UserError(f"{path} has {odd}; expected like and any of {', '.join(names)} (--gpu)")
    base = vars(CARDS[found["like"]]) if found.get("like") in CARDS else {}
    given = {**base, "name": path.stem, "measured": False, **{k: v for k, v in found.items() if k != "like"}}
    if missing := [name for name in names if name not in given and name != "node_gpus"]:
        raise UserError(f"{path} lacks {', '.join(missing)}; expected them, or like: {' | '.join(CARDS)} (--gpu)")
    numbers = {f"{path}: {name}": value for name, value in given.items() if name not in ("name", "measured")}
    for name, value in numbers.items():
        if not isinstance(value, int | float):
            raise UserError(f"{name} is {value!r}; expected a number (--gpu)")
    at_least(1e-9, numbers)
    return Card(**given)
