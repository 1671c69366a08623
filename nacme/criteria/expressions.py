"""Combinations of criteria, written like a call wherever a criterion's name may stand.

``rank_mean(nac_me, val_acc)`` averages ranks; ``running_mean(val_acc, 3)`` smooths along each run.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass

from nacme.errors import CriterionError

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
        return f"rank_mean({', '.join(self.parts)})"


@dataclass(frozen=True)
class RunningMean:
    """The mean of a criterion over neighbouring checkpoints of the same run.

    Parameters
    ----------
    part : str
        Name of a criterion, or a combination in turn.
    window : int
        How many checkpoints: this one and as many before it as behind it. Odd, and at least 3.
    """

    part: str
    window: int

    @property
    def parts(self) -> tuple[str, ...]:
        """What it is made of, as of every combination."""
        return (self.part,)

    def __str__(self) -> str:
        return f"running_mean({self.part}, {self.window})"


def parse(text: str) -> RankMean | RunningMean | None:
    """Read a combination; the text is parsed, never evaluated.

    Parameters
    ----------
    text : str
        A criterion's name or a combination.

    Returns
    -------
    RankMean, RunningMean or None
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
        return _combination(call, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):  # ValueError: a null byte
        raise CriterionError(_wrong(text)) from None


def _combination(call: ast.expr, text: str) -> RankMean | RunningMean:
    """Turn a parsed call into the combination that it names."""
    if not (
        isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in ("rank_mean", "running_mean")
        and not call.keywords
    ):
        raise CriterionError(_wrong(text))
    if call.func.id == "running_mean" and len(call.args) == 2:
        (name,), last = _names(call.args[:1], text), call.args[1]
        window = last.value if isinstance(last, ast.Constant) else None
        if isinstance(window, bool) or not isinstance(window, int) or window < 3 or window % 2 == 0:
            raise CriterionError(
                f"{text!r}: {ast.unparse(last)} is no window; give an odd number of checkpoints of at least 3"
            )
        return RunningMean(name, window)
    if call.func.id == "running_mean":
        raise CriterionError(_wrong(text))
    parts = _names(call.args, text)
    if len(set(parts)) < 2:
        raise CriterionError(f"{text!r} combines nothing; name at least two different criteria")
    return RankMean(parts)


def _names(parts: list[ast.expr], text: str) -> tuple[str, ...]:
    """Names of criteria, and combinations in turn, as they are written."""
    if not all(isinstance(part, ast.Name | ast.Call) for part in parts):
        raise CriterionError(_wrong(text))
    return tuple(str(parse(ast.unparse(part)) or ast.unparse(part)) for part in parts)


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
    if len(text) > LONGEST:
        raise CriterionError(_wrong(f"{text[:60]}..."))
    names, depth = [""], 0
    for character in text:
        depth += {"(": 1, ")": -1}.get(character, 0)
        if character == "," and depth <= 0:
            names.append("")
        else:
            names[-1] += character
    return [name.strip() for name in names]


def _wrong(text: str) -> str:
    return f"{text!r} is no criterion; a combination reads rank_mean(NAME, NAME, ...) or running_mean(NAME, 3)"
