"""The network behind the comparison of detectors."""

from __future__ import annotations

import os
import sys
from pathlib import Path

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
