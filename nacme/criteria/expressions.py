"""Combinations of criteria, written like ``rank_mean(nac_me, val_acc)`` wherever a criterion's name may stand."""

from __future__ import annotations

import ast
from dataclasses import dataclass

from nacme.errors import CriterionError

_FUNCTION = "rank_mean"
#: Python's own parser fails on what is nested much deeper.
MOST_NESTED, LONGEST = 20, 10_000


@dataclass(frozen=True)
class RankMean:
    """The mean of the ranks that several criteria give within one population.

    Parameters
    ----------
    parts : tuple of str
        Names of criteria, or combinations in turn.
    """

    parts: tuple[str, ...]

    def __str__(self) -> str:
        return f"{_FUNCTION}({', '.join(self.parts)})"


def parse(text: str) -> RankMean | None:
    """Read a combination; the text is parsed, never evaluated.

    Parameters
    ----------
    text : str
        A criterion's name or a combination.

    Returns
    -------
    RankMean or None
        None for what has no parentheses, hence is a plain name.

    Raises
    ------
    CriterionError
        If it is neither.
    """
    if "(" not in text and ")" not in text:
        return None
    depth = 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if depth > MOST_NESTED or len(text) > LONGEST:
            raise CriterionError(_wrong(f"{text[:60]}..."))
    try:
        call = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: a null byte
        raise CriterionError(_wrong(text)) from None
    if not (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id == _FUNCTION
        and not call.keywords
        and all(isinstance(part, ast.Name | ast.Call) for part in call.args)
    ):
        raise CriterionError(_wrong(text))
    parts = tuple(str(parse(ast.unparse(part)) or ast.unparse(part)) for part in call.args)
    if len(set(parts)) < 2:
        raise CriterionError(f"{text!r} combines nothing; name at least two different criteria")
    return RankMean(parts)


def split(text: str) -> list[str]:
    """Split a list of criteria at the commas outside parentheses, and strip the names.

    Parameters
    ----------
    text : str
        For example ``"last, rank_mean(nac_me, val_acc)"``.

    Returns
    -------
    list of str
    """
    names, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth <= 0:
            names.append("")
        else:
            names[-1] += character
    return [name.strip() for name in names]


def _wrong(text: str) -> str:
    return f"{text!r} is no criterion; a combination reads {_FUNCTION}(NAME, NAME, ...)"
