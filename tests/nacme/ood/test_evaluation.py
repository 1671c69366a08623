"""The metrics of detection against pytorch-ood's, and their intervals against simulation."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nacme.errors import ConfigError
from nacme.ood.evaluation import METRICS, bootstrap_intervals, detection_metrics


def _reference(inside, outside):
    metrics = pytest.importorskip("pytorch_ood.metrics").OODMetrics()
    scores = torch.tensor([*inside, *outside], dtype=torch.float64)
    metrics.update(scores, torch.tensor([0] * len(inside) + [-1] * len(outside)))
    found = metrics.compute()
    return {"auroc": found["AUROC"], "aupr": found["AUPR-OUT"], "fpr95": found["FPR95TPR"]}


scores = st.lists(st.integers(0, 8).map(float), min_size=1, max_size=40)


@pytest.mark.filterwarnings("ignore:AUTC is undefined")
@settings(deadline=None, max_examples=60)
@given(scores, scores)
def test_equals_pytorch_ood_with_ties(inside, outside):
    found = detection_metrics(inside, outside)
    for name, value in _reference(inside, outside).items():
        assert found[name] == pytest.approx(float(value), abs=1e-12)


def test_perfect_and_useless_scores():
    assert detection_metrics(np.arange(10), np.arange(10, 20)) == {"auroc": 1, "aupr": 1, "fpr95": 0}
    assert detection_metrics(np.ones(30), np.ones(10)) == {"auroc": 0.5, "aupr": pytest.approx(0.625), "fpr95": 1}


def test_intervals_cover_the_truth_as_often_as_they_say():
    # unit normals one apart: AUROC is the normal distribution at 1 / sqrt(2)
    truth, covered = 0.7602, 0
    rng = np.random.default_rng(0)
    for _ in range(200):
        low, high = bootstrap_intervals(rng.normal(0, 1, 80), rng.normal(1, 1, 60), rng, n_boot=300)["auroc"]
        covered += low <= truth <= high
    assert 0.90 <= covered / 200 <= 0.99


def test_same_seed_same_intervals_other_seed_others():
    rng = np.random.default_rng(3)
    inside, outside = rng.normal(0, 1, 50), rng.normal(1, 1, 50)
    first = bootstrap_intervals(inside, outside, np.random.default_rng(1), n_boot=50)
    assert first == bootstrap_intervals(inside, outside, np.random.default_rng(1), n_boot=50)
    assert first != bootstrap_intervals(inside, outside, np.random.default_rng(2), n_boot=50)
    point = detection_metrics(inside, outside)
    assert set(first) == set(METRICS)
    assert all(low <= point[name] <= high for name, (low, high) in first.items())


def test_bad_scores_are_named():
    with pytest.raises(ConfigError, match="outside scores are empty"):
        detection_metrics([1.0], [])
    with pytest.raises(ConfigError, match="inside scores hold NaN"):
        detection_metrics([np.nan], [1.0])
    low, high = bootstrap_intervals([1.0], [2.0, 3.0], np.random.default_rng(0))["auroc"]
    assert np.isnan(low)
    assert np.isnan(high)
