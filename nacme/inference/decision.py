"""When a difference between two criteria is told, and when it is told to be none that matters."""

from __future__ import annotations

import math
from typing import Literal

Kind = Literal["better", "worse", "none", "undefined"]

LEVEL = 0.05
#: The one comparison that a study declares beforehand: criterion, baseline, population, statistic. It is tested by
#: itself; whatever else is compared is exploratory and adjusted for its number.
PRIMARY = ("nac_me", "val_acc", "run", "kendall_tau")


def decide(low: float, high: float, p_value: float, level: float = LEVEL) -> Kind:
    """Say which way a difference goes: a way is claimed only where interval and permutation test agree.

    Parameters
    ----------
    low, high : float
        Of the interval of the difference; NaN where undefined.
    p_value : float
        Of the permutation test or the sign test, adjusted where several are made; NaN where undefined.
    level : float
        The largest rate of false claims.

    Returns
    -------
    {"better", "worse", "none", "undefined"}
        ``"undefined"`` where no test could be made. ``"none"`` says that no difference can be told, which is
        not that there is none: see `equivalent`.

    Notes
    -----
    The tests are exact, so that of two criteria that are exchangeable no more than ``level`` of the claims are
    false however few the runs; the interval alone would claim a difference of noise in far more of the sweeps
    (docs/criteria.md).
    """
    if math.isnan(p_value):
        return "undefined"
    if p_value > level:
        return "none"
    return "better" if low > 0 else "worse" if high < 0 else "none"


def decide_choice(gain: float, wins: float, losses: float, p_value: float) -> Kind:
    """Say which way the choices of a criterion differ from its rival's.

    Parameters
    ----------
    gain : float
        Mean gain over test envs, in points.
    wins, losses : float
        Test envs with a positive and a negative gain.
    p_value : float
        Of the sign test over those; NaN where there is none.

    Returns
    -------
    {"better", "worse", "none"}
        A way is claimed where the test tells it and the mean gain goes the same way.
    """
    way = math.copysign(1.0, gain) if (wins > losses) == (gain > 0) and gain != 0 else 0.0
    kind = decide(way, way, p_value)
    return "none" if kind == "undefined" else kind


def equivalent(low: float, high: float, margin: float) -> bool | None:
    """Say whether a difference is shown to be smaller than a margin, by two one-sided tests.

    Parameters
    ----------
    low, high : float
        Of the interval of the difference with a confidence of ``1 - 2 * LEVEL``: that it lies within the margin is
        that both tests reject at ``LEVEL``.
    margin : float
        The largest difference that does not matter, stated beforehand; positive.

    Returns
    -------
    bool or None
        None where the interval is undefined. False is no finding: too few runs leave every interval wide.

    References
    ----------
    Schuirmann, A comparison of the two one-sided tests procedure and the power approach, J. Pharmacokinet.
    Biopharm. 15 (1987).
    """
    if math.isnan(low) or math.isnan(high):
        return None
    return -margin < low and high < margin
