"""How well scores tell in- from out-of-distribution samples, with bootstrap intervals. Needs numpy alone."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from nacme.errors import ConfigError
from nacme.inference.bootstrap import percentile_interval

Array = npt.NDArray[np.float64]

METRICS = ("auroc", "aupr", "fpr95")
_CHUNK = 4_000_000  # numbers held at once while resampling


def detection_metrics(inside: npt.ArrayLike, outside: npt.ArrayLike) -> dict[str, float]:
    """AUROC, AUPR and FPR95 of scores that are higher where a sample looks more out-of-distribution.

    Parameters
    ----------
    inside : array-like, shape [n]
        Scores of in-distribution samples.
    outside : array-like, shape [m]
        Scores of out-of-distribution samples.

    Returns
    -------
    dict of str to float
        ``auroc``: chance that an OOD sample scores above an InD sample, ties counting half. ``aupr``: area under
        the precision-recall curve with OOD as the positive class, by the trapezoidal rule; guessing gives
        ``m / (n + m)``. ``fpr95``: share of InD samples flagged where 95% of OOD samples are.

    Raises
    ------
    ConfigError
        If a side is empty or a score is NaN.

    Notes
    -----
    The numbers are those of ``pytorch_ood.metrics.OODMetrics`` (``AUROC``, ``AUPR-OUT``, ``FPR95TPR``), and
    OpenOOD's. Papers that call InD the positive class report another FPR95: the share of OOD samples accepted
    where 95% of InD samples are, which is `detection_metrics` with both sides exchanged and negated.
    """
    ranked = _Ranked(inside, outside)
    return {name: float(values[0]) for name, values in ranked.metrics(np.ones((1, ranked.count))).items()}


def bootstrap_intervals(
    inside: npt.ArrayLike,
    outside: npt.ArrayLike,
    rng: np.random.Generator,
    n_boot: int = 1000,
    confidence: float = 0.95,
) -> dict[str, tuple[float, float]]:
    """Intervals of `detection_metrics` by resampling the samples of each side.

    Parameters
    ----------
    inside, outside : array-like
        As for `detection_metrics`.
    rng : numpy.random.Generator
        Source of randomness.
    n_boot : int
        Number of resamples.
    confidence : float
        Between 0 and 1.

    Returns
    -------
    dict of str to (float, float)
        NaN where a side has a single sample.

    Notes
    -----
    It says how much the figures of *this* network move with the images drawn, and nothing of how much they move
    with the training seed.
    """
    ranked = _Ranked(inside, outside)
    n, m = ranked.num_inside, ranked.count - ranked.num_inside
    if min(n, m) < 2:
        return dict.fromkeys(METRICS, (float("nan"), float("nan")))
    found: dict[str, list[Array]] = {name: [] for name in METRICS}
    rows = max(1, _CHUNK // ranked.count)
    for start in range(0, n_boot, rows):
        size = min(rows, n_boot - start)
        weights = np.concatenate(
            [rng.multinomial(k, np.full(k, 1 / k), size=size) for k in (n, m)], axis=1, dtype=np.float64
        )
        for name, values in ranked.metrics(weights).items():
            found[name].append(values)
    return {
        name: percentile_interval(np.concatenate(values), confidence, min(n, m)) for name, values in found.items()
    }


class _Ranked:
    """Scores of both sides in descending order, for metrics under any weights of the samples."""

    def __init__(self, inside: npt.ArrayLike, outside: npt.ArrayLike) -> None:
        scores = [np.asarray(side, dtype=np.float64).ravel() for side in (inside, outside)]
        for name, side in zip(("inside", "outside"), scores):
            if not len(side) or np.isnan(side).any():
                fault = "are empty" if not len(side) else "hold NaN"
                raise ConfigError(f"the {name} scores {fault}: nothing can be told apart by them")
        self.num_inside = len(scores[0])
        both = np.concatenate(scores)
        self.count = len(both)
        self._order = np.argsort(-both, kind="stable")
        ranked = both[self._order]
        # a threshold lies behind each run of equal scores, never within
        self._starts = np.flatnonzero(np.concatenate([[True], ranked[1:] != ranked[:-1]]))
        self._outside = self._order >= self.num_inside

    def metrics(self, weights: Array) -> dict[str, Array]:
        """Compute each metric for each row of weights ``[rows, samples]``."""
        ranked = weights[:, self._order]

        def flagged(which: npt.NDArray[np.bool_]) -> Array:
            counts = np.add.reduceat(ranked * which, self._starts, axis=1).cumsum(axis=1)
            return np.concatenate([np.zeros((len(counts), 1)), counts], axis=1)

        hits, alarms = flagged(self._outside), flagged(~self._outside)
        recall, fpr = hits / hits[:, -1:], alarms / alarms[:, -1:]
        total = hits + alarms
        # nothing flagged: precision 1 by convention, as scikit-learn's curve ends
        precision = np.divide(hits, total, out=np.ones_like(hits), where=total > 0)
        first = (recall >= 0.95).argmax(axis=1)
        return {
            "auroc": _area(fpr, recall),
            "aupr": _area(recall, precision),
            "fpr95": np.take_along_axis(fpr, first[:, None], axis=1)[:, 0],
        }


def _area(x: Array, y: Array) -> Array:
    area: Array = (np.diff(x, axis=1) * (y[:, 1:] + y[:, :-1]) / 2).sum(axis=1)
    return area
