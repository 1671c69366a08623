"""The errors and warnings that nacme raises; each message names the thing at fault and the remedy."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class NacmeError(Exception):
    """A mistake that the user can mend. The command line prints it as one line and exits with ``exit_code``."""

    exit_code = 1


class LayerError(NacmeError):
    """A layer that the model does not have, or that coverage cannot be measured at."""


class SweepError(NacmeError):
    """A sweep directory, run or record that cannot be read."""


class CriterionError(NacmeError):
    """An unknown criterion, or one that the records do not hold."""


class ConfigError(NacmeError):
    """A setting, flag or specification that does not make sense."""


class NacmeWarning(UserWarning):
    """Something that does not stop the work but that its reader has to know."""


class DegenerateCoverageWarning(NacmeWarning):
    """Coverage that says little more than how many samples were counted."""


def nearest(name: str, known: Iterable[str], count: int = 3) -> str:
    """Say which known names look like a wrong one.

    Parameters
    ----------
    name : str
        What was asked for.
    known : iterable of str
        What there is.
    count : int
        How many suggestions at most.

    Returns
    -------
    str
        ``"did you mean 'a' or 'b'?"``, or, where nothing is near, ``"known: 'a', 'b', 'c'"``.
    """
    names = sorted(set(known))
    close = difflib.get_close_matches(name, names, n=count, cutoff=0.5)
    if close:
        return "did you mean " + " or ".join(repr(c) for c in close) + "?"
    if not names:
        return "there are none"
    shown = ", ".join(repr(n) for n in names[:12])
    return f"known: {shown}" + (", ..." if len(names) > 12 else "")
