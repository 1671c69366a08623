"""Rank statistics as pure functions of arrays. Ties count, and what is undefined is NaN, never 0 or 1."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float64]

_CHUNK = 4_000_000  # numbers per temporary array
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

    def kendall_influence(self, weights: Array) -> tuple[Array, Array]:
        """Return tau-b, shape (B,), and its derivatives by the weight of each run, shape (B, R)."""
        slopes = [2 * weights @ sums for sums in self._sums]
        concord, untied_x, untied_y = (np.einsum("br,br->b", slope, weights) / 2 for slope in slopes)
        return _ratio(concord, untied_x * untied_y), _slope((concord, untied_x, untied_y), slopes)

    def spearman_influence(self, weights: Array) -> tuple[Array, Array]:
        """Return Spearman's rho, shape (B,), and its derivatives by the weight of each run, shape (B, R)."""
        step = max(1, _CHUNK // len(self._run))
        parts = [self._spearman_influence(weights[i : i + step]) for i in range(0, len(weights), step)]
        values, slopes = zip(*parts)
        return np.concatenate(values), np.concatenate(slopes)

    def _spearman_influence(self, weights: Array) -> tuple[Array, Array]:
        above = [signs.astype(float) for signs in self._above]
        a, b = (signs @ weights.T for signs in above)
        times = weights.T[self._run]
        sums, slopes = [], []
        for (u, of_u), (v, of_v) in (((a, 0), (b, 1)), ((a, 0), (a, 0)), ((b, 1), (b, 1))):
            own = np.add.reduceat(u * v, self._starts, axis=0)
            others = above[of_u].T @ (times * v) + above[of_v].T @ (times * u)
            slopes.append((own + others).T)
            sums.append(np.einsum("nb,nb->b", times * u, v))
        return _ratio(sums[0], sums[1] * sums[2]), _slope(sums, slopes)

    def spearman(self, weights: Array) -> Array:
        """Return Spearman's rho, shape (B,), for ``weights`` of shape (B, R); NaN where undefined."""
        step = max(1, _CHUNK // len(self._run))
        return np.concatenate([self._spearman(weights[i : i + step]) for i in range(0, len(weights), step)])

    def _spearman(self, weights: Array) -> Array:
        # The sum of w_j sign(x_i - x_j) is twice the centred average rank of i in the resample.
        a, b = (np.asarray(above @ weights.T.astype(np.float32), float) for above in self._above)
        times = weights.T[self._run]
        wa, wb = times * a, times * b
        product, square_a, square_b = (np.einsum("nb,nb->b", u, v) for u, v in ((wa, b), (wa, a), (wb, b)))
        return _ratio(product, square_a * square_b)

    @functools.cached_property
    def _sums(self) -> Array:
        """Sums over the pairs of two runs, shape (3, R, R): concordance, pairs untied in x, and in y."""
        count = len(self._starts)
        sums = np.empty((3, count, count))
        for r, (start, end) in enumerate(itertools.pairwise([*self._starts, len(self._x)])):
            dx, dy = (_signs(values[start:end], values) for values in (self._x, self._y))
            # a row of signs is summed over few checkpoints: far from the 2^24 where float32 rounds
            sums[0, r] = np.add.reduceat((dx * dy).sum(0, dtype=np.float32), self._starts)
        for k, untied in enumerate(self._untied, start=1):
            sums[k] = np.add.reduceat(untied, self._starts, axis=0)
        return sums

    @property
    def _above(self) -> npt.NDArray[np.float32]:
        """Sums of signs over the checkpoints of a run, shape (2, n, R); small integers, so exact in float32."""
        return self._compared[0]

    @property
    def _untied(self) -> npt.NDArray[np.float32]:
        """Checkpoints of a run that differ from each checkpoint, shape (2, n, R)."""
        return self._compared[1]

    @functools.cached_property
    def _compared(self) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
        above, untied = (np.empty((2, len(self._x), len(self._starts)), np.float32) for _ in range(2))
        for k, values in enumerate((self._x, self._y)):
            for r, of_run in enumerate(np.split(values, self._starts[1:])):
                ordered = np.sort(of_run)
                less, not_more = (np.searchsorted(ordered, values, side) for side in ("left", "right"))
                more = len(of_run) - not_more
                above[k, :, r], untied[k, :, r] = less - more, less + more
        return above, untied


def _signs(u: Array, v: Array) -> npt.NDArray[np.int8]:
    """Signs of the differences of all elements of two arrays, shape (U, V)."""
    return np.asarray((u[:, None] > v).view(np.int8) - (u[:, None] < v).view(np.int8))


def _ratio(numerator: Array, square: Array) -> Array:
    """Return numerator / sqrt(square), NaN where that is not positive."""
    root = np.sqrt(np.where(square > 0, square, np.nan))
    return np.asarray(np.clip(numerator / root, -1, 1))


def _slope(sums: Sequence[Array], slopes: Sequence[Array]) -> Array:
    """Return the derivatives, shape (B, R), of ``a / sqrt(b c)`` from those of a, b and c, shape (B,) each."""
    a, b, c = (np.where(total == 0, np.nan, total)[:, None] for total in sums)
    value = np.nan_to_num(a) / np.sqrt(b * c)
    return np.asarray(slopes[0] / np.sqrt(b * c) - value / 2 * (slopes[1] / b + slopes[2] / c))
