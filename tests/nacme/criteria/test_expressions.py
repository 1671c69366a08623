from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacme.criteria.expressions import RankMean, RunningMean, parse, split
from nacme.errors import CriterionError

names = st.text("abc_", min_size=1, max_size=4)
expressions = st.recursive(
    names,
    lambda inner: (
        st.lists(inner, min_size=2, max_size=3, unique=True).map(lambda p: str(RankMean(tuple(p))))
        | st.builds(RunningMean, inner, st.sampled_from([3, 5, 99])).map(str)
    ),
)


@given(expressions)
def test_what_is_written_is_read_back(text: str) -> None:
    combination = parse(text)
    assert (combination is None) == ("(" not in text)
    if combination is not None:
        assert str(combination) == text


@given(st.lists(expressions, min_size=1, max_size=4))
def test_a_list_is_split_at_the_commas_outside_parentheses(texts: list[str]) -> None:
    assert split(" , ".join(texts)) == texts


def test_spaces_do_not_matter() -> None:
    assert parse(" rank_mean( nac_me ,val_acc)") == RankMean(("nac_me", "val_acc"))
    assert parse("running_mean(a,3)") == RunningMean("a", 3)
    assert parse("rank_mean(rank_mean(a,b),c)") == RankMean(("rank_mean(a, b)", "c"))


@pytest.mark.parametrize(
    "text",
    [
        "rank_mean(",
        "rank_mean()",
        "rank_mean(nac_me)",
        "rank_mean(a, a)",
        "mean(a, b)",
        "rank_mean(a, 1)",
        "running_mean(a)",
        "running_mean(a, b, 3)",
        "running_mean(1, 3)",
        "rank_mean(a, b) + 1",
        "rank_mean(*a, b)",
        "rank_mean(a, b, c=d)",
        "__import__('os').system('true')",
        "rank_mean(a.b, c)",
        "(a)",
        "a)",
    ],
)
def test_nothing_else_is_read(text: str) -> None:
    with pytest.raises(CriterionError, match="combin"):
        parse(text)


@pytest.mark.parametrize("window", ["1", "2", "4", "0", "-3", "3.0", "True", "'3'", "a"])
def test_a_window_is_an_odd_number_of_checkpoints(window: str) -> None:
    with pytest.raises(CriterionError, match="odd number of checkpoints of at least 3"):
        parse(f"running_mean(a, {window})")


def test_depth_is_told_in_one_line() -> None:
    with pytest.raises(CriterionError, match="no criterion") as told:
        parse("running_mean(" * 5000 + "a" + ", 3)" * 5000)
    assert len(str(told.value)) < 200
