"""The network and the figures behind the comparison of detectors."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("pytorch_ood")
sys.path.insert(0, str(Path(__file__).parents[2] / "analysis"))

import ood_cifar10


@pytest.mark.data
def test_the_rebuilt_network_is_as_accurate_as_stated():
    if not os.environ.get("NACME_DATA"):
        pytest.skip("needs the small real data sets: set NACME_DATA")
    root = Path(os.environ["NACME_DATA"]) / "cifar10"
    images, labels = ood_cifar10.arrays(root / "test_2000.npz")
    model = ood_cifar10.load(root / "resnet20.npz")
    with torch.no_grad():
        correct = int((torch.cat([model(part) for part in images.split(500)]).argmax(1) == labels).sum())
    assert abs(correct - 1606) <= 2


def test_metrics_of_scores_that_overlap_by_half():
    inside, outside = np.arange(100.0), np.arange(50.0, 150.0)
    found = ood_cifar10.metrics(inside, outside)
    assert found["auroc"] == pytest.approx(0.5 * 1 + 0.5 * 0.75)  # ties count half
    assert found["fpr95"] == pytest.approx(0.45)  # 50 to 94 lie below the 95th percentile
    assert ood_cifar10.metrics(inside, inside + 1000) == {"auroc": 1.0, "fpr95": 0.0}
