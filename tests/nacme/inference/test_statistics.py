from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from nacme.inference import statistics

GOLDEN = sorted((Path(__file__).parents[2] / "golden").glob("rank_correlation_*.npz"))

# Few distinct values, so that ties are common.
tied = st.lists(st.tuples(st.integers(-3, 3), st.integers(-3, 3)), min_size=0, max_size=12).map(
    lambda pairs: np.array(pairs, float).reshape(-1, 2)
)


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_golden_pairs(path: Path) -> None:
    golden = np.load(path, allow_pickle=False)
    assert len(golden["kind"]) > 0
    for i, kind in enumerate(golden["kind"]):
        x, y = golden[f"x{i}"], golden[f"y{i}"]
        rho, tau = statistics.spearman_rho(x, y), statistics.kendall_tau(x, y)
        assert rho == pytest.approx(golden["spearmanr"][i], abs=1e-12, nan_ok=True)
        assert tau == pytest.approx(golden["kendalltau_b"][i], abs=1e-12, nan_ok=True)
        if kind.startswith("noties"):
            assert rho == pytest.approx(golden["official"][i], abs=1e-12)
        if kind.startswith("constant"):
            assert np.isnan(rho)
            assert np.isnan(tau)


@given(tied)
def test_tau_and_rho_are_scipys_ties_included(data: np.ndarray) -> None:
    x, y = data.T
    constant = len(data) < 2 or np.ptp(x) == 0 or np.ptp(y) == 0
    tau, rho = statistics.kendall_tau(x, y), statistics.spearman_rho(x, y)
    if constant:
        assert np.isnan(tau)
        assert np.isnan(rho)
    else:
        assert tau == pytest.approx(scipy.stats.kendalltau(x, y).statistic, abs=1e-12)
        assert rho == pytest.approx(scipy.stats.spearmanr(x, y).statistic, abs=1e-12)


@given(tied)
@pytest.mark.parametrize("statistic", [statistics.kendall_tau, statistics.spearman_rho, statistics.weighted_tau])
def test_only_order_matters_and_turning_the_criterion_turns_the_sign(statistic, data: np.ndarray) -> None:
    x, y = data.T
    value = statistic(x, y)
    assert statistic(np.exp(x), y**3) == pytest.approx(value, abs=1e-12, nan_ok=True)
    assert statistic(-x, y) == pytest.approx(-value, abs=1e-12, nan_ok=True)
    assert np.isnan(value) or -1 <= value <= 1


@given(tied)
@pytest.mark.parametrize("statistic", [statistics.kendall_tau, statistics.spearman_rho])
def test_tau_and_rho_are_symmetric(statistic, data: np.ndarray) -> None:
    x, y = data.T
    assert statistic(x, y) == pytest.approx(statistic(y, x), abs=1e-12, nan_ok=True)


@given(st.permutations(range(9)), st.permutations(range(9)))
def test_weighted_tau_without_ties_is_scipys_ranked_by_accuracy(x: list[int], y: list[int]) -> None:
    ours = statistics.weighted_tau(x, y)
    assert ours == pytest.approx(scipy.stats.weightedtau(y, x, rank=None).statistic, abs=1e-12)


def test_weighted_tau_by_hand() -> None:
    # Accuracies best first 4 3 2 1 have weights 1, 1/2, 1/3, 1/4; a pair weighs the sum of its two.
    # Swapping the best two turns the pair of weight 3/2 of a total 3 * (1 + 1/2 + 1/3 + 1/4) = 25/4.
    assert statistics.weighted_tau([3, 4, 2, 1], [4, 3, 2, 1]) == pytest.approx(1 - 2 * (3 / 2) / (25 / 4))
    # Swapping the worst two turns 1/3 + 1/4 only.
    assert statistics.weighted_tau([4, 3, 1, 2], [4, 3, 2, 1]) == pytest.approx(1 - 2 * (7 / 12) / (25 / 4))
    # Ties in accuracy share a weight: 1, 1 and 1/2. Of the three pairs one is untied in both, with weight 3/2.
    assert statistics.weighted_tau([0, 0, 1], [0, 1, 1]) == pytest.approx(1.5 / np.sqrt(3.5 * 3))


def test_tau_b_by_hand() -> None:
    # Pairs of (x, y) = (1,1) (2,1) (2,3) (3,2): concordant (1,3) (1,4) (2,4); discordant (3,4); tied in x
    # (2,3), tied in y (1,2). tau-b = (3 - 1) / sqrt(5 * 5).
    assert statistics.kendall_tau([1, 2, 2, 3], [1, 1, 3, 2]) == pytest.approx(2 / 5)


def test_partial_spearman_is_the_correlation_of_what_the_step_leaves() -> None:
    rng = np.random.default_rng(0)
    step = np.arange(40.0)
    x, y = step + rng.normal(0, 15, 40), step + rng.normal(0, 15, 40)
    ranks = [scipy.stats.rankdata(v) for v in (x, y, step)]
    design = np.c_[np.ones(40), ranks[2]]
    left = [r - design @ np.linalg.lstsq(design, r, rcond=None)[0] for r in ranks[:2]]
    expected = scipy.stats.pearsonr(*left).statistic
    assert statistics.partial_spearman(x, y, step) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("x", "y"),
    [([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]), ([2, 1, 4, 3, 5], [5, 4, 3, 2, 1]), ([2, 2, 2, 2, 2], [2, 1, 4, 3, 5])],
    ids=["criterion follows the step", "accuracy follows the step", "constant"],
)
def test_partial_spearman_is_undefined_where_the_step_explains_all(x: list[int], y: list[int]) -> None:
    assert np.isnan(statistics.partial_spearman(x, y, [0, 1, 2, 3, 4]))


def test_partial_spearman_of_three_points_is_undefined() -> None:
    assert np.isnan(statistics.partial_spearman([1, 3, 2], [2, 3, 1], [0, 1, 2]))


@settings(max_examples=50)
@given(st.lists(tied, min_size=1, max_size=5), st.sampled_from([1, 4_000_000]))
def test_all_runs_at_once_are_each_run_alone(runs: list[np.ndarray], chunk: int) -> None:
    x, y = np.concatenate(runs).T
    step = np.concatenate([100.0 * np.arange(len(run)) for run in runs])
    run = np.repeat(np.arange(len(runs)), [len(run) for run in runs])
    with pytest.MonkeyPatch.context() as patch:  # whatever the size of the temporary arrays
        patch.setattr(statistics, "_CHUNK", chunk)
        found = statistics.within_runs(x, y, step, run, len(runs))
    for r in range(len(runs)):
        a, b, c = x[run == r], y[run == r], step[run == r]
        alone = {
            "kendall_tau": statistics.kendall_tau(a, b),
            "spearman_rho": statistics.spearman_rho(a, b),
            "weighted_tau": statistics.weighted_tau(a, b),
            "partial_spearman_step": statistics.partial_spearman(a, b, c),
        }
        assert {name: values[r] for name, values in found.items()} == pytest.approx(alone, abs=1e-9, nan_ok=True)


@settings(max_examples=50)
@given(st.integers(0, 10_000), st.integers(1, 5))
def test_run_pairs_equal_scipy_on_repeated_runs(seed: int, n_runs: int) -> None:
    rng = np.random.default_rng(seed)
    run = np.concatenate([np.arange(n_runs), rng.integers(0, n_runs, 12)])
    x, y = rng.integers(0, 5, len(run)).astype(float), rng.integers(0, 5, len(run)).astype(float)
    weights = rng.multinomial(n_runs, np.full(n_runs, 1 / n_runs), size=4).astype(float)
    pairs = statistics.RunPairs(x, y, run)
    tau, rho = pairs.kendall(weights), pairs.spearman(weights)
    for b, counts in enumerate(weights):
        # The resample written out: the checkpoints of run r, counts[r] times.
        again = np.repeat(np.arange(len(run)), counts[run].astype(int))
        if np.ptp(x[again]) == 0 or np.ptp(y[again]) == 0:
            assert np.isnan(tau[b])
            assert np.isnan(rho[b])
        else:
            assert tau[b] == pytest.approx(scipy.stats.kendalltau(x[again], y[again]).statistic, abs=1e-12)
            assert rho[b] == pytest.approx(scipy.stats.spearmanr(x[again], y[again]).statistic, abs=1e-12)


def residual_correlation(x: np.ndarray, y: np.ndarray, *given: np.ndarray) -> float:
    """Correlate, the long way, what a linear fit on the ranks of others leaves of two variables' ranks."""
    design = np.column_stack([np.ones(len(x)), *(scipy.stats.rankdata(g) for g in given)])
    left = []
    for values in (x, y):
        ranks = scipy.stats.rankdata(values)
        left.append(ranks - design @ np.linalg.lstsq(design, ranks, rcond=1e-10)[0])
    spread = np.sqrt((left[0] @ left[0]) * (left[1] @ left[1]))
    return float(left[0] @ left[1] / spread) if spread > 1e-6 else float("nan")


quads = st.lists(st.tuples(*[st.integers(-3, 3)] * 3), min_size=0, max_size=12).map(
    lambda rows: np.array(rows, float).reshape(-1, 3)
)


@given(quads)
def test_the_partial_given_two_is_the_correlation_of_residuals(data: np.ndarray) -> None:
    x, y, also = data.T
    step = np.arange(len(x), dtype=float)
    value = statistics.partial_spearman_both(x, y, step, also)
    if len(x) < 5:
        assert np.isnan(value)
    else:
        assert value == pytest.approx(residual_correlation(x, y, step, also), abs=1e-6, nan_ok=True)


def test_what_is_constant_or_the_step_itself_holds_nothing_more_fixed() -> None:
    rng = np.random.default_rng(0)
    x, y, step = rng.normal(size=12), rng.normal(size=12), np.arange(12.0)
    alone = statistics.partial_spearman(x, y, step)
    assert statistics.partial_spearman_both(x, y, step, np.ones(12)) == pytest.approx(alone, abs=1e-12)
    assert statistics.partial_spearman_both(x, y, step, step**3) == pytest.approx(alone, abs=1e-12)
    assert np.isnan(statistics.partial_spearman_both(x, y, step, x))
    assert np.isnan(statistics.partial_spearman_both(step, y, step, x))


@given(st.lists(quads, min_size=1, max_size=4))
def test_within_runs_gives_the_partial_given_two_of_each(runs: list[np.ndarray]) -> None:
    x, y, also = np.concatenate(runs).T
    run = np.repeat(np.arange(len(runs)), [len(r) for r in runs])
    step = np.concatenate([np.arange(len(r), dtype=float) for r in runs])
    found = statistics.within_runs(x, y, step, run, len(runs), also)
    plain = statistics.within_runs(x, y, step, run, len(runs))
    assert "partial_spearman_step_val_acc" not in plain
    for number, rows in enumerate(runs):
        expected = statistics.partial_spearman_both(rows[:, 0], rows[:, 1], np.arange(len(rows)), rows[:, 2])
        assert found["partial_spearman_step_val_acc"][number] == pytest.approx(expected, abs=1e-9, nan_ok=True)
    for name, values in plain.items():
        np.testing.assert_array_equal(found[name], values)


@pytest.mark.parametrize("kind", ["kendall", "spearman"])
def test_the_influence_of_a_run_is_the_derivative_by_its_weight(kind: str) -> None:
    rng = np.random.default_rng(0)
    run = np.repeat(np.arange(5), 6)
    x, y = rng.integers(0, 9, 30), rng.integers(0, 9, 30)
    pairs = statistics.RunPairs(x, y, run)
    weights = rng.integers(0, 3, (4, 5)).astype(float)
    values, slopes = getattr(pairs, f"{kind}_influence")(weights)
    plain = getattr(pairs, kind)
    np.testing.assert_allclose(values, plain(weights))
    nudge = 1e-3
    for r in range(5):
        step = nudge * np.eye(5)[r]
        numeric = (plain(weights + step) - plain(weights - step)) / (2 * nudge)
        np.testing.assert_allclose(slopes[:, r], numeric, atol=1e-3)


@settings(max_examples=60)
@given(st.integers(0, 10_000), st.integers(1, 7), st.integers(1, 40), st.sampled_from([1, 50, 400_000]))
def test_sums_over_runs_equal_the_resample_written_out(seed: int, n_runs: int, distinct: int, chunk: int) -> None:
    """Whatever the ties, the runs' lengths and the chunks; the slopes against rho and tau of the resample too."""
    rng = np.random.default_rng(seed)
    run = np.concatenate([np.arange(n_runs), rng.integers(0, n_runs, rng.integers(1, 30))])
    x, y = rng.integers(0, distinct, len(run)), rng.integers(0, 6, len(run)) / 7
    weights = rng.multinomial(n_runs, np.full(n_runs, 1 / n_runs), size=5).astype(float)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(statistics, "_CACHED", chunk)
        pairs = statistics.RunPairs(x, y, run)
        found = {kind: getattr(pairs, kind)(weights) for kind in ("kendall", "spearman")}
        slopes = {kind: getattr(pairs, f"{kind}_influence")(weights) for kind in found}
    alone = {"kendall": statistics.kendall_tau, "spearman": statistics.spearman_rho}
    for kind, values in found.items():
        expected = [
            alone[kind](*(v[np.repeat(np.arange(len(run)), times[run].astype(int))] for v in (x, y)))
            for times in weights
        ]
        np.testing.assert_allclose(values, expected, atol=1e-12)
        np.testing.assert_array_equal(slopes[kind][0], values)
        # both statistics stay the same when every run counts c times, so the slopes along the weights cancel
        along = np.einsum("br,br->b", slopes[kind][1], weights)
        np.testing.assert_allclose(along[np.isfinite(values)], 0, atol=1e-9)


def test_long_runs_do_not_overflow_the_sums_of_signs() -> None:
    x = np.arange(600.0)
    pairs = statistics.RunPairs(x, x, np.repeat([0, 1], 300))
    assert pairs.kendall(np.array([[1.0, 1.0], [2.0, 0.0]])).tolist() == pytest.approx([1, 1], abs=1e-15)
