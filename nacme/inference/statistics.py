"""Rank statistics as pure functions of arrays. Ties count, and what is undefined is NaN, never 0 or 1."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from nacme.inference.ties import Ranked

Array = npt.NDArray[np.float64]

_CHUNK = 4_000_000  # numbers per temporary array
_CACHED = 400_000  # the same where several passes over it should find it in the processor's cache
_LEAST_GIVEN = 4  # checkpoints for a partial correlation; one more for each further variable held fixed
_DEPENDENT = 1e-9  # what rounding leaves of a variable that is a linear function of others, and more
_MONOTONE = 1e-14  # rounding leaves a monotone pair a few 1e-16 short of 1; the least true gap is about 1 / n^3


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
    if len(np.asarray(x)) < _LEAST_GIVEN:
        return float("nan")
    xy, xz, yz = spearman_rho(x, y), spearman_rho(x, given), spearman_rho(y, given)
    rest = (1 - xz**2) * (1 - yz**2)
    if not rest > _MONOTONE:
        return float("nan")
    return float(np.clip((xy - xz * yz) / np.sqrt(rest), -1, 1))


def partial_spearman_both(x: npt.ArrayLike, y: npt.ArrayLike, given: npt.ArrayLike, also: npt.ArrayLike) -> float:
    """Spearman's rho of ``x`` and ``y`` with the ranks of two other variables held fixed.

    Parameters
    ----------
    x, y, given, also : array_like, shape (n,)
        Finite values; ``given`` is the step and ``also`` validation accuracy where what is left of a criterion
        beyond both is asked for.

    Returns
    -------
    float
        Correlation of the residuals of the ranks of ``x`` and ``y`` after a linear fit on the ranks of ``given``
        and ``also``. Where ``also`` is constant or a monotone function of ``given``, nothing more is held fixed by
        it, and this is `partial_spearman`. NaN if ``x``, ``y`` or ``given`` is constant, if ``x`` or ``y`` is a
        linear function of the two in ranks, or if ``n < 5``.
    """
    values = [np.asarray(v, float)[None] for v in (x, y, given, also)]
    return float(_partial_both([_centred_ranks(v[0])[None] for v in values], np.array([values[0].size]))[0])


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
    *accuracy alone*, best first, ties sharing a rank and no rank left out. SciPy's default averages this with
    the ranking by criterion, and its ``rank=None`` breaks ties of accuracy by the criterion: either way a
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
    rank = rankdata(-y, method="dense").astype(np.intp) - 1
    return float(weightedtau(y, x, rank=rank).statistic)


def within_runs(
    x: npt.ArrayLike,
    y: npt.ArrayLike,
    step: npt.ArrayLike,
    run: npt.ArrayLike,
    n_runs: int,
    val_acc: npt.ArrayLike | None = None,
) -> dict[str, Array]:
    """The statistics above, within each of many runs at once.

    Parameters
    ----------
    x, y, step : array_like, shape (n,)
        Criterion (turned so that higher is better), test accuracy and step of each checkpoint; finite.
    run : array_like of int, shape (n,)
        Which run each belongs to, from 0 to ``n_runs - 1``, in ascending order.
    n_runs : int
        R. A run may have no checkpoint.
    val_acc : array_like, shape (n,), optional
        What is held fixed beside the step, NaN where undefined.

    Returns
    -------
    dict of str to ndarray, shape (R,)
        ``kendall_tau``, ``spearman_rho``, ``weighted_tau`` and ``partial_spearman_step``, as `kendall_tau`,
        `spearman_rho`, `weighted_tau` and `partial_spearman` give them; NaN where they do. With ``val_acc`` also
        ``partial_spearman_step_val_acc``, as `partial_spearman_both` gives it; NaN in a run with a NaN there.
    """
    run = np.asarray(run)
    lengths = np.bincount(run, minlength=n_runs)
    longest = max(1, int(lengths.max(initial=0)))
    starts = np.cumsum(lengths) - lengths
    place = np.arange(len(run)) - starts[run]
    # Missing checkpoints are NaN, which is neither above nor below anything: they add nothing to any sum.
    rows = (x, y, step) if val_acc is None else (x, y, step, val_acc)
    padded = np.full((len(rows), n_runs, longest), np.nan)
    for values, row in zip(padded, rows):
        values[run, place] = row
    chunk = max(1, _CHUNK // longest**2)
    parts = [_of_runs(padded[:, i : i + chunk], lengths[i : i + chunk]) for i in range(0, n_runs, chunk)]
    names = ["kendall_tau", "spearman_rho", "weighted_tau", "partial_spearman_step"]
    names += [] if val_acc is None else ["partial_spearman_step_val_acc"]
    joined = np.concatenate(parts, axis=1) if parts else np.empty((len(names), 0))
    return dict(zip(names, joined))


def _of_runs(padded: Array, lengths: npt.NDArray[np.intp]) -> Array:
    """Return the statistics, shape (4, R) or (5, R), of criterion, accuracy and step (and val_acc), padded."""
    dx, dy, dz = (_signs_within(values) for values in padded[:3])
    concord, untied_x, untied_y = (
        np.einsum("rij,rij->ri", u, v).astype(float) for u, v in ((dx, dy), (dx, dx), (dy, dy))
    )
    ranks = [signs.sum(-1).astype(float) for signs in (dx, dy, dz)]  # twice the centred average ranks
    tau = _ratio(concord.sum(1), untied_x.sum(1) * untied_y.sum(1))
    # how many different accuracies are better: each that is counts for its share of those tied with it
    share = 1 / np.maximum(lengths[:, None] - untied_y, 1)
    better = np.einsum("rij,rj->ri", dy < 0, share)
    weight = 1 / (1 + np.rint(better))
    weighted = _ratio((weight * concord).sum(1), (weight * untied_x).sum(1) * (weight * untied_y).sum(1))
    xy, xz, yz = (
        _ratio((ranks[a] * ranks[b]).sum(1), (ranks[a] ** 2).sum(1) * (ranks[b] ** 2).sum(1))
        for a, b in ((0, 1), (0, 2), (1, 2))
    )
    rest = (1 - xz**2) * (1 - yz**2)
    given = np.where((rest > _MONOTONE) & (lengths >= _LEAST_GIVEN), _ratio(xy - xz * yz, rest), np.nan)
    found = [tau, xy, weighted, given]
    if len(padded) > 3:
        ranks.append(_signs_within(padded[3]).sum(-1).astype(float))
        whole = np.isfinite(padded[3]).sum(-1) == lengths
        found.append(np.where(whole, _partial_both(ranks, lengths), np.nan))
    return np.stack(found)


def _partial_both(ranks: Sequence[Array], lengths: npt.NDArray[np.intp]) -> Array:
    """Correlate two variables with two others held fixed, shape (R,), from centred ranks, shape (R, L) each."""
    xz, yz, zw, xy, xw, yw = (
        _ratio((ranks[a] * ranks[b]).sum(1), (ranks[a] ** 2).sum(1) * (ranks[b] ** 2).sum(1))
        for a, b in ((0, 2), (1, 2), (2, 3), (0, 1), (0, 3), (1, 3))
    )
    # correlations with what is left of w once z is held fixed; nothing is left of a constant, or of z itself
    rest = 1 - zw**2
    left = rest > _DEPENDENT
    x_rest, y_rest = (
        np.where(left, (aw - az * zw) / np.sqrt(np.where(left, rest, 1)), 0) for aw, az in ((xw, xz), (yw, yz))
    )
    of_x, of_y = 1 - xz**2 - x_rest**2, 1 - yz**2 - y_rest**2
    defined = (np.minimum(of_x, of_y) > _DEPENDENT) & (lengths > _LEAST_GIVEN)
    return np.where(defined, _ratio(xy - xz * yz - x_rest * y_rest, of_x * of_y), np.nan)


def _signs_within(values: Array) -> npt.NDArray[np.float32]:
    """Signs of the differences of all pairs in a row, shape (R, L, L); sums of them are exact in float32."""
    above = values[:, :, None] > values[:, None, :]
    return np.asarray(above.view(np.int8) - above.transpose(0, 2, 1).view(np.int8), np.float32)


def _centred_ranks(x: npt.ArrayLike) -> Array:
    from scipy.stats import rankdata

    values = np.asarray(x, float)
    # Half-integers: exact, so that a constant has a spread of exactly zero.
    return np.asarray(rankdata(values) - (len(values) + 1) / 2, float)


class RunPairs:
    """Rank correlation over checkpoints of many runs, quickly re-evaluated with each run counted w times.

    Counting run ``r`` ``w_r`` times is what a bootstrap over runs does. Kendall's numerator is a quadratic form
    ``w' C w`` in the sums over pairs of runs, Spearman's a cubic one in those over triples, and what ties leave
    of either's denominator depends on the sizes ``W`` of tied groups alone: ``N^2 - sum(W^2)`` pairs are untied,
    and the doubled centred ranks have the sum of squares ``(N^3 - sum(W^3)) / 3``. So the pairs are visited
    once, whatever the number of resamples, and all sums but the last quotient are exact.

    Parameters
    ----------
    x, y : array_like, shape (n,)
        Finite values per checkpoint.
    run : array_like of int, shape (n,)
        Which run each belongs to, numbered ``0 .. R - 1``, each number in use.
    """

    def __init__(self, x: npt.ArrayLike, y: npt.ArrayLike, run: npt.ArrayLike) -> None:
        order = np.argsort(run, kind="stable")
        self._run = np.asarray(run)[order]
        self._starts = np.flatnonzero(np.r_[True, np.diff(self._run) > 0])
        self._lengths = np.diff(self._starts, append=len(self._run)).astype(float)
        self._x, self._y = (Ranked(np.asarray(values)[order], self._run) for values in (x, y))

    def kendall(self, weights: Array) -> Array:
        """Return tau-b, shape (B,), for ``weights`` of shape (B, R); NaN where undefined."""
        return np.concatenate([_quotient(self._kendall(part)[0]) for part in self._chunks(weights)])

    def kendall_influence(self, weights: Array) -> tuple[Array, Array]:
        """Return tau-b, shape (B,), and its derivatives by the weight of each run, shape (B, R)."""
        values, slopes = [], []
        for part in self._chunks(weights):
            sums, concord = self._kendall(part)
            total = (part @ self._lengths)[:, None]
            untied = [2 * (total * self._lengths - v.slopes(part, 2)) for v in (self._x, self._y)]
            values.append(_quotient(sums))
            slopes.append(_slope(sums, [2 * concord, *untied]))
        return np.concatenate(values), np.concatenate(slopes)

    def _kendall(self, weights: Array) -> tuple[list[Array], Array]:
        """Return the three sums over pairs that tau-b is made of, shape (B,) each, and ``w C``."""
        concord, total = weights @ self._concord, weights @ self._lengths
        untied = [total**2 - variable.powers(weights, 2) for variable in (self._x, self._y)]
        return [np.einsum("br,br->b", concord, weights), *untied], concord

    def spearman(self, weights: Array) -> Array:
        """Return Spearman's rho, shape (B,), for ``weights`` of shape (B, R); NaN where undefined."""
        return np.concatenate([_quotient(self._spearman(part)) for part in self._chunks(weights)])

    def _spearman(self, weights: Array) -> list[Array]:
        a, b = (variable.centred(weights) for variable in (self._x, self._y))
        a *= b
        product = np.einsum("rb,br->b", np.add.reduceat(a, self._starts, axis=0), weights)
        return [product, *self._squares(weights)]

    def _squares(self, weights: Array) -> list[Array]:
        """Return the sums of squares of the ranks of both variables."""
        total = weights @ self._lengths
        return [(total**3 - variable.powers(weights, 3)) / 3 for variable in (self._x, self._y)]

    def spearman_influence(self, weights: Array) -> tuple[Array, Array]:
        """Return Spearman's rho, shape (B,), and its derivatives by the weight of each run, shape (B, R)."""
        values, slopes = [], []
        for part in self._chunks(weights):
            of_product = (self._triples @ _products(part.T)).T
            sums = [np.einsum("br,br->b", of_product, part) / 3, *self._squares(part)]
            total = (part @ self._lengths)[:, None]
            squares = [total**2 * self._lengths - v.slopes(part, 3) for v in (self._x, self._y)]
            values.append(_quotient(sums))
            slopes.append(_slope(sums, [of_product, *squares]))
        return np.concatenate(values), np.concatenate(slopes)

    def _chunks(self, weights: Array) -> list[Array]:
        """Split resamples so that a temporary array with a row per checkpoint stays small."""
        step = max(1, _CACHED // len(self._run))
        return [weights[i : i + step] for i in range(0, len(weights), step)]

    @functools.cached_property
    def _concord(self) -> Array:
        """Concordant less discordant pairs of checkpoints of two runs, shape (R, R)."""
        count, ends = len(self._starts), [*self._starts[1:], len(self._run)]
        small = np.int8 if self._lengths.max() < 128 else np.int32
        found = np.zeros((count, count))
        for r, (start, end) in enumerate(zip(self._starts, ends)):
            signs = _signs(self._x.rank[start:end], self._x.rank[start:])
            signs *= _signs(self._y.rank[start:end], self._y.rank[start:])
            summed = signs.sum(0, dtype=small).astype(float)
            found[r, r:] = found[r:, r] = np.add.reduceat(summed, self._starts[r:] - start)
        return found

    @functools.cached_property
    def _triples(self) -> Array:
        """Derivatives of the sum of products of ranks by each weight, shape (R, R (R + 1) / 2), as `_products`."""
        above, beside = (variable.centred(np.eye(len(self._starts))) for variable in (self._x, self._y))
        ends = [*self._starts[1:], len(self._run)]
        sums = np.stack([above[i:j].T @ beside[i:j] for i, j in zip(self._starts, ends)])
        sums += sums.transpose(0, 2, 1)
        sums = sums + sums.transpose(1, 0, 2) + sums.transpose(1, 2, 0)
        first, second = np.triu_indices(len(sums))
        return np.asarray(sums[:, first, second] * np.where(first == second, 0.5, 1.0))


def _products(weights: Array) -> Array:
    """Return the products of all pairs of rows, shape (R (R + 1) / 2, B), of weights of shape (R, B)."""
    weights = np.ascontiguousarray(weights)
    return np.concatenate([row * weights[r:] for r, row in enumerate(weights)])


def _signs(u: npt.NDArray[Any], v: npt.NDArray[Any]) -> npt.NDArray[np.int8]:
    """Signs of the differences of all elements of two arrays, shape (U, V)."""
    signs = (u[:, None] > v).view(np.int8)
    signs -= (u[:, None] < v).view(np.int8)
    return signs


def _ratio(numerator: Array, square: Array) -> Array:
    """Return numerator / sqrt(square), NaN where that is not positive."""
    root = np.sqrt(np.where(square > 0, square, np.nan))
    return np.asarray(np.clip(numerator / root, -1, 1))


def _quotient(sums: Sequence[Array]) -> Array:
    """Return a / sqrt(b c), NaN where that is not defined."""
    return _ratio(sums[0], sums[1] * sums[2])


def _slope(sums: Sequence[Array], slopes: Sequence[Array]) -> Array:
    """Return the derivatives, shape (B, R), of ``a / sqrt(b c)`` from those of a, b and c, shape (B,) each."""
    a, b, c = (np.where(total == 0, np.nan, total)[:, None] for total in sums)
    value = np.nan_to_num(a) / np.sqrt(b * c)
    return np.asarray(slopes[0] / np.sqrt(b * c) - value / 2 * (slopes[1] / b + slopes[2] / c))
