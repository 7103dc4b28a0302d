"""Three claims about routers, each held against small runs over several seeds, at the default rate and start.

    balance   Without balancing, some expert ends with more than three times an even share, or with none; with each
              kind of balancing all have less than one and a half times. Where a capacity or the experts choose, loads
              are even by force, so these are judged by what was dropped and who was left out (Switch, section 2.2).
    z         The z-loss keeps the mean squared logsumexp of the scores at least three times smaller, and costs no loss
              (ST-MoE, section 3).
    heads     MH-MoE brings a token to more experts than the plain layer at equal FLOPs (arXiv 2411.16205).

A claim holds if it does with every seed. One that does not hold at this size is reported as it is.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib

from mm1.errors import UserError
from mm1.study.arms import ABLATIONS, SPARSE, WORLDS, Arm, Setting, chosen
from mm1.study.outcomes import Outcome, read
from mm1.study.plots import COLOURS, STYLE, canvas, count
from mm1.study.routers import number, share, size

COLLAPSED, BALANCED = 3.0, 1.5  # times an even share
LEFT_OUT = 0.11  # of choices or tokens: dropping so many did no harm to ST-MoE (section 4)
SMALLER, SAME_LOSS, SAME_COST = 3.0, 0.01, 0.05  # times; of the loss; of the FLOPs
MOE = "mm1.model.moe"

Judge = Callable[[Outcome, Outcome], bool]


@dataclass(frozen=True)
class Tested:
    """One arm of a claim.

    Args:
        arm: What is trained.
        asked: What is asked of it, for people; nothing of what the others are held against.
        holds: Whether one seed's outcome, beside that of the claim's first arm at the same seed, is as asked.
    """

    arm: Arm
    asked: str = ""
    holds: Judge = lambda of, first: True


@dataclass(frozen=True)
class Claim:
    """What is claimed.

    Args:
        says: In one sentence.
        tested: Its arms; others may be held against the first.
        shown: Numbers that decide it, by the names of :class:`mm1.study.outcomes.Outcome`.
    """

    says: str
    tested: tuple[Tested, ...]
    shown: tuple[str, ...]


def collapses(of: Outcome, first: Outcome) -> bool:
    """Some expert has most of the tokens, or none."""
    return of.max_load is not None and (of.max_load > COLLAPSED or bool(of.dead))


def balances(of: Outcome, first: Outcome) -> bool:
    """No expert has much more than others, and none is dead."""
    return of.max_load is not None and of.max_load < BALANCED and not of.dead


def takes_all(of: Outcome, first: Outcome) -> bool:
    """Few choices are dropped and few tokens are left out."""
    if of.drop_rate is None or of.coverage is None:
        return False
    return of.drop_rate < LEFT_OUT and of.coverage > 1 - LEFT_OUT


def shrinks(of: Outcome, first: Outcome) -> bool:
    """Scores are smaller at equal loss."""
    if of.z is None or first.z is None:
        return False
    return of.z * SMALLER <= first.z and abs(of.loss / first.loss - 1) <= SAME_LOSS


def spreads(of: Outcome, first: Outcome) -> bool:
    """A token visits more experts at equal FLOPs."""
    if of.visited is None or first.visited is None:
        return False
    return of.visited > first.visited and abs(of.flops_per_position / first.flops_per_position - 1) <= SAME_COST


def _router(name: str) -> Arm:
    return Arm(name, ABLATIONS / f"router-{name}.yaml")


PLAIN = Arm("plain", SPARSE)
_EVEN = f"max/mean below {BALANCED}, none dead"
_TAKEN = f"under {LEFT_OUT:.0%} dropped, over {1 - LEFT_OUT:.0%} covered"
CLAIMS = {
    "balance": Claim(
        "Without balancing an expert gets over three times an even share or dies; with each kind of it none does",
        (
            Tested(
                Arm("unbalanced", SPARSE, {"balance_weight": 0.0}), f"max/mean above {COLLAPSED} or dead", collapses
            ),
            Tested(PLAIN, _EVEN, balances),
            Tested(
                Arm(
                    "by-batch",
                    SPARSE,
                    {"balance": {"class_path": f"{MOE}.losses.LoadTimesShare", "init_args": {"group": "batch"}}},
                ),
                _EVEN,
                balances,
            ),
            Tested(_router("noisy-top-k"), _EVEN, balances),
            Tested(_router("loss-free-bias"), _EVEN, balances),
            Tested(
                Arm(
                    "capacity",
                    SPARSE,
                    {"capacity": {"class_path": f"{MOE}.capacity.Capacity", "init_args": {"train": 1.25}}},
                ),
                _TAKEN,
                takes_all,
            ),
            Tested(_router("switch"), _TAKEN, takes_all),
            Tested(_router("gshard"), _TAKEN, takes_all),
            Tested(_router("expert-choice"), _TAKEN, takes_all),
        ),
        ("max_load", "dead", "drop_rate", "coverage"),
    ),
    "z": Claim(
        "The z-loss keeps the mean squared logsumexp of the scores at least three times smaller at equal loss",
        (
            Tested(Arm("without-z", SPARSE, {"z_weight": 0.0})),
            Tested(PLAIN, f"z at most 1/{SMALLER:.0f}, loss within {SAME_LOSS:.0%}", shrinks),
        ),
        ("z", "loss"),
    ),
    "heads": Claim(
        "MH-MoE brings a token to more experts than the plain layer at equal cost",
        (Tested(PLAIN), Tested(_router("mh-moe-v2"), f"more experts, FLOPs within {SAME_COST:.0%}", spreads)),
        ("visited", "used", "flops_per_position", "loss"),
    ),
}


@dataclass(frozen=True)
class Line:
    """What came of an arm with one seed: ``outcome`` and ``holds`` are None where a run failed."""

    claim: str
    tested: Tested
    seed: int
    outcome: Outcome | None
    holds: bool | None


def claims(
    out: Path = Path("runs/claims"),
    *,
    corpus: Path | None = None,
    worlds: int = WORLDS,
    steps: int = 400,
    seeds: Sequence[int] = (0, 1, 2),
    jobs: int = 2,
    device: str = "cpu",
    only: Sequence[str] = (),
) -> None:
    """Train what the claims are about, print and write claims.md, claims.csv and claims.png; a rerun goes on.

    Args:
        out: Folder of corpus, runs, logs and results.
        corpus: Shards for the tiny models; made of scenes if not given.
        worlds: How many worlds scenes draws then.
        steps: Training steps of every run.
        seeds: Every arm is trained once with each.
        jobs: Runs at a time.
        device: ``cpu`` or ``cuda``.
        only: Names of the claims; all if none is given.

    Raises:
        UserError: A wrong option, no corpus, or runs that failed; what the others say is told then.
    """
    setting = Setting(out, corpus, worlds, steps, seeds, jobs, device)
    names = chosen([*CLAIMS], only)
    arms = list({tested.arm.name: tested.arm for name in names for tested in CLAIMS[name].tested}.values())
    failed = setting.train(arms)
    lines = {name: judge(setting, name) for name in names}
    text = "\n\n".join([*(told(name, lines[name]) for name in names), size(setting, arms)])
    (out / "claims.md").write_text(text + "\n")
    write_csv([line for name in names for line in lines[name]], steps, out / "claims.csv")
    draw(lines, out / "claims.png")
    print(text, *(f"wrote {out / name}" for name in ("claims.md", "claims.csv", "claims.png")), sep="\n")
    if failed:
        raise UserError(
            f"{len(failed)} runs failed: {', '.join(failed)}; their logs are in {out / 'logs'}; mend the cause and run "
            f"the same command to go on"
        )


def judge(setting: Setting, name: str) -> list[Line]:
    """Every arm of a claim with every seed."""
    lines = []
    for seed in setting.seeds:
        outcomes = [_outcome(setting, tested.arm, seed) for tested in CLAIMS[name].tested]
        for tested, outcome in zip(CLAIMS[name].tested, outcomes, strict=True):
            first = outcomes[0]
            holds = None if outcome is None or first is None else tested.holds(outcome, first)
            lines.append(Line(name, tested, seed, outcome, holds))
    return lines


def _outcome(setting: Setting, arm: Arm, seed: int) -> Outcome | None:
    try:
        return read(setting.run(arm, seed))
    except UserError:
        return None


def verdict(lines: Sequence[Line]) -> str:
    """Of one claim or one arm."""
    if any(line.holds is False for line in lines):
        return "does not hold"
    return "not decided" if any(line.holds is None for line in lines) else "holds"


def told(name: str, lines: Sequence[Line]) -> str:
    """A claim, whether it holds, and the numbers of every arm, one a seed."""
    claim = CLAIMS[name]
    table = [["", *(HEADS[key] for key in claim.shown), "asked", ""], ["---"] * (len(claim.shown) + 3)]
    for tested in claim.tested:
        mine = [line for line in lines if line.tested is tested]
        cells = [", ".join(_shown(key, line.outcome) for line in mine) for key in claim.shown]
        table.append([tested.arm.name, *cells, tested.asked or "–", verdict(mine) if tested.asked else "–"])
    seeds = list(dict.fromkeys(line.seed for line in lines))
    head = f"**{name}: {verdict(lines)}.** {claim.says}. One number a seed ({', '.join(map(str, seeds))})."
    return "\n".join([head, "", *(f"| {' | '.join(cells)} |" for cells in table)])


HEADS = {
    "max_load": "max/mean load",
    "dead": "dead experts",
    "drop_rate": "dropped",
    "coverage": "covered",
    "z": "mean squared logsumexp",
    "loss": "held-out loss",
    "visited": "experts a token visits",
    "used": "experts in use",
    "flops_per_position": "training FLOPs a position",
}


def _shown(key: str, outcome: Outcome | None) -> str:
    value = None if outcome is None else getattr(outcome, key)
    if key == "flops_per_position":
        return count(value, "G")
    if key in ("drop_rate", "coverage"):
        return share(value)
    return number(value, {"dead": 0, "used": 1, "loss": 3}.get(key, 2))


def write_csv(lines: Sequence[Line], steps: int, path: Path) -> None:
    """A line for each claim, arm and seed, with all digits."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["claim", "arm", "seed", "steps", "asked", "holds", *HEADS])
        for line in lines:
            holds = "" if line.holds is None or not line.tested.asked else int(line.holds)
            about = [line.claim, line.tested.arm.name, line.seed, steps, line.tested.asked, holds]
            table.writerow([*about, *(line.outcome and getattr(line.outcome, key) for key in HEADS)])


def draw(lines: dict[str, list[Line]], path: Path) -> None:
    """A panel a claim: its first number, a dot a seed."""
    bounds = {"balance": (BALANCED, COLLAPSED)}
    figure, axes = canvas(3.2 * len(lines), 2.6)
    with matplotlib.rc_context(STYLE):
        axes.remove()
        for panel, (name, of) in zip(figure.subplots(1, len(lines), squeeze=False)[0], lines.items(), strict=True):
            key, arms = CLAIMS[name].shown[0], [tested.arm.name for tested in CLAIMS[name].tested]
            for line in of:
                value = None if line.outcome is None else getattr(line.outcome, key)
                colour = COLOURS["b" if line.holds is False else "a"]
                if value is not None:
                    panel.plot(value, arms.index(line.tested.arm.name), "o", markersize=4.5, color=colour, alpha=0.7)
            for bound in bounds.get(name, ()):
                panel.axvline(bound, color=COLOURS["muted"], linewidth=0.8, linestyle="--")
            panel.grid(True, axis="x")
            panel.set_xlim(left=0)
            panel.set_yticks(range(len(arms)), arms, color=COLOURS["ink"])
            panel.set_ylim(len(arms) - 0.5, -0.5)
            panel.set_title(f"{HEADS[key]}: {verdict(of)}", loc="left", fontsize=8, color=COLOURS["muted"])
        figure.savefig(path, dpi=160, facecolor=COLOURS["paper"])
