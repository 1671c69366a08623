"""Rank statistics as pure functions of arrays. Ties count, and what is undefined is NaN, never 0 or 1."""

from __future__ import annotations

import functools
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_CHUNK = 4_000_000  # numbers per temporary array


def kendall_tau(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Kendall's tau-b, which allows for ties.

    Parameters
    ----------
    x, y : array_like, shape (n,)
        Finite values.

    Returns
    -------
    float
        ``(concordant - discordant) / sqrt(pairs untied in x * pairs untied in y)``; NaN if ``x`` or ``y`` is
        constant or ``n < 2``.

    References
    ----------
    Kendall, The treatment of ties in ranking problems, Biometrika 33 (1945).
    """
    x, y = np.asarray(x, float), np.asarray(y, float)
    dx = np.sign(x[:, None] - x)
    dy = np.sign(y[:, None] - y)
    untied = np.abs(dx).sum() * np.abs(dy).sum()
    return float((dx * dy).sum() / np.sqrt(untied)) if untied > 0 else float("nan")


def spearman_rho(x: npt.ArrayLike, y: npt.ArrayLike) -> float:
    """Spearman's rho: Pearson correlation of average ranks.

    Parameters
    ----------
    x, y : array_like, shape (n,)
        Finite values.

    Returns
    -------
    float
        NaN if ``x`` or ``y`` is constant or ``n < 2``.
    """
    a, b = _centred_ranks(x), _centred_ranks(y)
    spread = (a @ a) * (b @ b)
    return float(np.clip((a @ b) / np.sqrt(spread), -1, 1)) if spread > 0 else float("nan")


def partial_spearman(x: npt.ArrayLike, y: npt.ArrayLike, given: npt.ArrayLike) -> float:
    """Spearman's rho of ``x`` and ``y`` with the rank of a third variable held fixed.

    Parameters
    ----------
    x, y, given : array_like, shape (n,)
        Finite values; ``given`` is the step where training time is to be held fixed.

    Returns
    -------
    float
        ``(r_xy - r_xz r_yz) / sqrt((1 - r_xz^2) (1 - r_yz^2))``. NaN if one of the three is constant, if
        ``x`` or ``y`` is a monotone function of ``given``, or if ``n < 4``: with three points the formula can
        only give 1 or -1.
    """
    if len(np.asarray(x)) < 4:
        return float("nan")
    xy, xz, yz = spearman_rho(x, y), spearman_rho(x, given), spearman_rho(y, given)
    rest = (1 - xz**2) * (1 - yz**2)
    # Rounding leaves a monotone pair a few 1e-16 short of 1; the least true gap is about 1 / n^3.
    if not rest > 1e-14:
        return float("nan")
    return float(np.clip((xy - xz * yz) / np.sqrt(rest), -1, 1))


def weighted_tau(values: npt.ArrayLike, accuracy: npt.ArrayLike) -> float:
    """Kendall's tau in which an exchange among the most accurate checkpoints costs the most.

    Parameters
    ----------
    values : array_like, shape (n,)
        Criterion, turned so that higher is better; finite.
    accuracy : array_like, shape (n,)
        Test accuracy; finite.

    Returns
    -------
    float
        NaN if either is constant or ``n < 2``.

    Notes
    -----
    `scipy.stats.weightedtau` with its additive hyperbolic weights ``1 / (1 + r)``, where ``r`` is the rank by
    *accuracy alone*, best first, ties sharing their best rank. SciPy's default averages this with the
    ranking by criterion, and its ``rank=None`` breaks ties of accuracy by the criterion: either way a
    criterion would have a say in which of its mistakes count, and turning it round would do more than turn
    the sign. Without ties in accuracy this equals ``weightedtau(accuracy, values, rank=None)``.

    References
    ----------
    Vigna, A weighted correlation index for rankings with ties, WWW 2015.
    """
    from scipy.stats import rankdata, weightedtau

    x, y = np.asarray(values, float), np.asarray(accuracy, float)
    if len(x) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    rank = rankdata(-y, method="min").astype(np.intp) - 1
    return float(weightedtau(y, x, rank=rank).statistic)


def _centred_ranks(x: npt.ArrayLike) -> Array:
    from scipy.stats import rankdata

    values = np.asarray(x, float)
    # Half-integers: exact, so that a constant has a spread of exactly zero.
    return np.asarray(rankdata(values) - (len(values) + 1) / 2, float)


class RunPairs:
    """Rank correlation over checkpoints of many runs, quickly re-evaluated with each run counted w times.

    Counting run ``r`` ``w_r`` times is what a bootstrap over runs does. Tau-b is a ratio of sums over pairs
    of checkpoints, hence of quadratic forms ``w' C w`` in the sums over pairs of runs; average ranks
    are linear in ``w``. So the pairs are visited once, whatever the number of resamples.

    Parameters
    ----------
    x, y : array_like, shape (n,)
        Finite values per checkpoint.
    run : array_like of int, shape (n,)
        Which run each belongs to, numbered ``0 .. R - 1``, each number in use.
    """

    def __init__(self, x: npt.ArrayLike, y: npt.ArrayLike, run: npt.ArrayLike) -> None:
        order = np.argsort(run, kind="stable")
        self._x, self._y = np.asarray(x, float)[order], np.asarray(y, float)[order]
        self._run = np.asarray(run)[order]
        self._starts = np.flatnonzero(np.r_[True, np.diff(self._run) > 0])

    def kendall(self, weights: Array) -> Array:
        """Return tau-b, shape (B,), for ``weights`` of shape (B, R); NaN where undefined."""
        concord, untied_x, untied_y = (np.einsum("br,br->b", weights @ sums, weights) for sums in self._sums)
        return _ratio(concord, untied_x * untied_y)

    def spearman(self, weights: Array) -> Array:
        """Return Spearman's rho, shape (B,), for ``weights`` of shape (B, R); NaN where undefined."""
        step = max(1, _CHUNK // len(self._run))
        return np.concatenate([self._spearman(weights[i : i + step]) for i in range(0, len(weights), step)])

    def _spearman(self, weights: Array) -> Array:
        # The sum of w_j sign(x_i - x_j) is twice the centred average rank of i in the resample.
        a, b = (np.asarray(above @ weights.T.astype(np.float32), float) for above in self._above)
        times = weights.T[self._run]
        product, square_a, square_b = (np.einsum("nb,nb,nb->b", times, u, v) for u, v in ((a, b), (a, a), (b, b)))
        return _ratio(product, square_a * square_b)

    def _signs(self) -> Iterator[tuple[int, slice, Array, Array]]:
        """Yield each run's number, its rows, and the signs of its differences to all checkpoints."""
        for r, (start, end) in enumerate(zip(self._starts, [*self._starts[1:], len(self._x)])):
            rows = slice(start, end)
            yield r, rows, np.sign(self._x[rows, None] - self._x), np.sign(self._y[rows, None] - self._y)

    @functools.cached_property
    def _sums(self) -> Array:
        """Sums over the pairs of two runs, shape (3, R, R): concordance, pairs untied in x, and in y."""
        count = len(self._starts)
        sums = np.empty((3, count, count))
        for r, _, dx, dy in self._signs():
            for k, of_pairs in enumerate((dx * dy, np.abs(dx), np.abs(dy))):
                sums[k, r] = np.add.reduceat(of_pairs.sum(0), self._starts)
        return sums

    @functools.cached_property
    def _above(self) -> npt.NDArray[np.float32]:
        """Sums of signs over the checkpoints of a run, shape (2, n, R); small integers, so exact in float32."""
        above = np.empty((2, len(self._x), len(self._starts)), np.float32)
        for _, rows, dx, dy in self._signs():
            above[0, rows] = np.add.reduceat(dx, self._starts, axis=1)
            above[1, rows] = np.add.reduceat(dy, self._starts, axis=1)
        return above


def _ratio(numerator: Array, square: Array) -> Array:
    """Return numerator / sqrt(square), NaN where that is not positive."""
    root = np.sqrt(np.where(square > 0, square, np.nan))
    return np.asarray(np.clip(numerator / root, -1, 1))
