from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacme.criteria.expressions import RankMean, parse, split
from nacme.errors import CriterionError

names = st.text("abc_", min_size=1, max_size=4)
expressions = st.recursive(
    names,
    lambda inner: st.lists(inner, min_size=2, max_size=3, unique=True).map(lambda p: str(RankMean(tuple(p)))),
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
