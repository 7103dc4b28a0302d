"""Demonstrations and swaps are functions of the seed and of ids; nothing scored is given away."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.fewshot import Demonstrations, blind, derangement
from eval.pictures import content, read
from eval.task import Query, Task, discover
from mm1.errors import UserError


def task_of(data: Path, name: str) -> Task:
    return next(task for task in discover(data) if task.name == name)


def test_demonstrations_depend_on_seed_and_id_alone(data: Path) -> None:
    task = task_of(data, "vqa/daquar")
    draws = Demonstrations(task, seed=3)
    each = {query.id: draws.of(query, 4) for query in task.queries}
    backwards = replace(task, queries=task.queries[::-1])
    again = Demonstrations(backwards, seed=3)
    assert {query.id: again.of(query, 4) for query in backwards.queries} == each
    limited = task.limited(2, seed=0)
    assert [Demonstrations(limited, 3).of(query, 4) for query in limited.queries] == [
        each[q.id] for q in limited.queries
    ]
    assert len({tuple(q.id for q in chosen) for chosen in each.values()}) > 1, "all questions got the same"
    assert {query.id: Demonstrations(task, seed=4).of(query, 4) for query in task.queries} != each


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 8])
def test_any_number_of_ranks_draws_the_same(data: Path, ranks: int) -> None:
    """Each rank has every n-th question and draws for itself, in any order."""
    for name in ("captions/mini", "vqa/mini", "vqa/daquar"):
        task = task_of(data, name)
        alone = {query.id: Demonstrations(task, 5).of(query, 3) for query in task.queries}
        together = {}
        for rank in range(ranks):
            share = replace(task, queries=task.queries[rank::ranks], everything=task.queries)
            draws = Demonstrations(share, 5)
            together |= {query.id: draws.of(query, 3) for query in reversed(share.queries)}
        assert together == alone


def test_a_limit_changes_neither_demonstrations_nor_swaps(data: Path) -> None:
    task = task_of(data, "vqa/mini")
    limited = task.limited(1, seed=0)
    query = limited.queries[0]
    assert Demonstrations(limited, 0).of(query, 3) == Demonstrations(task, 0).of(query, 3)
    assert blind(limited, 0) == {query.id: blind(task, 0)[query.id]}


def test_fewer_shots_are_the_first_of_more(data: Path) -> None:
    task = task_of(data, "captions/mini")
    draws = Demonstrations(task, seed=0)
    for query in task.queries:
        assert draws.of(query, 2) == draws.of(query, 5)[:2]


def test_no_demonstration_shows_a_scored_picture_or_another_twice(data: Path) -> None:
    task = task_of(data, "captions/mini")
    scored = {content(query.picture) for query in task.queries}
    assert {content(query.picture) for query in task.train} & scored, "the pool holds scored pictures to keep out"
    for query in task.queries:
        shown = [content(demonstration.picture) for demonstration in Demonstrations(task, 0).of(query, 8)]
        assert not scored & set(shown)
        assert len(set(shown)) == 8


def test_without_a_train_part_the_querys_own_picture_is_left_out(data: Path) -> None:
    task = task_of(data, "vqa/mini")  # two questions a picture
    for query in task.queries:
        shown = Demonstrations(task, 0).of(query, 3)
        assert content(query.picture) not in {content(demonstration.picture) for demonstration in shown}


def test_a_broken_picture_demonstrates_nothing(data: Path) -> None:
    task = task_of(data, "captions/mini")
    whole = [query.picture for query in Demonstrations(task, 0).of(task.queries[0], 6)]
    whole[1].write_bytes(whole[1].read_bytes()[:40])
    whole[3].unlink()
    content.cache_clear()
    read.cache_clear()
    shown = [query.picture for query in Demonstrations(task, 0).of(task.queries[0], 6)]
    assert shown[:4] == [whole[0], whole[2], whole[4], whole[5]]
    with pytest.raises(UserError, match=r"7 shots for question .* only 6 other pictures"):
        Demonstrations(task, 0).of(task.queries[0], 7)


def test_what_has_no_answer_demonstrates_nothing(data: Path) -> None:
    """A test part without a train part: its questions come without answers."""
    task = task_of(data, "vqa/mini")
    hidden = tuple(replace(query, answer="" if at < 6 else "red") for at, query in enumerate(task.queries))
    draws = Demonstrations(replace(task, queries=hidden), seed=0)
    assert [shot.answer for shot in draws.of(hidden[0], 1)] == ["red"]
    with pytest.raises(UserError, match=r"only 0 other pictures with an answer to demonstrate with"):
        draws.of(hidden[7], 1)


def test_more_shots_than_pictures_are_refused(data: Path) -> None:
    task = task_of(data, "vqa/mini")
    with pytest.raises(UserError, match=r"vqa/mini: 4 shots .* only 3 other pictures .* at most 3"):
        Demonstrations(task, 0).of(task.queries[0], 4)


@given(st.integers(2, 60), st.integers(0, 10_000))
def test_no_picture_is_mapped_to_itself(count: int, seed: int) -> None:
    names = [str(at) for at in range(count)]
    swap = derangement(names, seed)
    assert sorted(swap.values()) == sorted(names)
    assert not [name for name in names if swap[name] == name]
    assert derangement(names, seed) == swap


def test_the_blind_arm_swaps_photographs_not_files(data: Path) -> None:
    """Two files with one content are one photograph: neither may stand in for the other."""
    first, second = data / "captions_eval/images/0.png", data / "captions_eval/images/1.png"
    second.write_bytes(first.read_bytes())
    task = task_of(data, "captions/mini")
    for seed in range(20):
        for query in task.queries:
            shown = blind(task, seed)[query.id]
            assert shown.picture.read_bytes() != query.picture.read_bytes()
            assert replace(shown, picture=query.picture) == query, "only the picture changes"


def test_made_up_words_trade_their_defining_pictures(data: Path) -> None:
    task = task_of(data, "icl")
    for query in task.queries:
        shown = blind(task, 0)[query.id]
        assert shown.picture == query.picture
        assert [item for item in shown.context if isinstance(item, str)] == ["This is a dako.", "This is a wupi."]
        assert [item for item in shown.context if isinstance(item, Path)] == [query.context[2], query.context[0]]


def test_questions_about_several_pictures_show_those_of_another(data: Path) -> None:
    pictures = [data / f"captions_eval/images/{at}.png" for at in range(6)]
    several = [
        Query("a", pictures[0], "same?", ("no",), "no", others=(pictures[1],)),
        Query("b", pictures[2], "same?", ("no",), "no", others=(pictures[3],)),
        Query("c", pictures[0], "same?", ("no",), "no", others=(pictures[2],)),  # shares one with each
        Query("d", pictures[4], "which?", ("no",), "no", context=(pictures[5], "or"), others=(pictures[0],)),  # alone
        Query("e", pictures[5], "what?", ("no",), "no"),
        Query("f", pictures[4], "what?", ("no",), "no"),
    ]
    task = Task("t", "vqa", tuple(several))
    for seed in range(10):
        for query in several:
            shown = blind(task, seed)[query.id]
            assert not set(shown.pictures) & set(query.pictures)
            assert len(set(shown.pictures)) == len(query.pictures)
            kept = replace(shown, picture=query.picture, others=query.others, context=query.context)
            assert kept == query
            assert [type(item) for item in shown.context] == [type(item) for item in query.context]
        assert blind(task, seed) == {
            **blind(replace(task, queries=task.queries[:3], everything=task.queries), seed),
            **{id: shown for id, shown in blind(task, seed).items() if id in "def"},
        }, "whatever the limit"
    with pytest.raises(UserError, match="question a has 2 pictures and there are 1 others; expected as many"):
        blind(replace(task, queries=(several[0], several[2])), 0)


def test_no_picture_of_several_is_shown_twice(data: Path) -> None:
    pictures = [data / f"captions_eval/images/{at}.png" for at in range(6)]
    pool = tuple(
        Query(f"{one}{two}", pictures[one], "q", ("a",), "a", others=(pictures[two],))
        for one in range(6)
        for two in range(6)
        if one != two
    )
    task = Task("t", "vqa", pool)
    for query in pool[:8]:
        shown = [path for shot in Demonstrations(task, 0).of(query, 2) for path in shot.pictures]
        assert len({*shown, *query.pictures}) == 6


def test_one_picture_has_no_blind_arm(data: Path) -> None:
    task = task_of(data, "vqa/mini")
    with pytest.raises(UserError, match=r"one picture.*set arms to \[sighted\]"):
        blind(replace(task, queries=task.queries[:2]), 0)
