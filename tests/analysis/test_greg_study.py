"""GReg against ERM: as accurate on the training domains' validation splits, better at noticing outliers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "analysis"))

import greg_study

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore::nacme.errors.NacmeWarning")]
HELD_OUT = ["noise: FPR95", "photographs: FPR95"]


def _found(out, *flags):
    args = greg_study.parser().parse_args(["--out", str(out), *flags])
    found = greg_study.study(args)
    mean = {
        algorithm: {key: float(np.mean([one[key] for one in seeds])) for key in seeds[0]}
        for algorithm, seeds in found.items()
    }
    return found, mean["ERM"], mean["GReg"], greg_study.table(found, args)


def test_on_the_embedded_testbed(tmp_path, monkeypatch):
    monkeypatch.delenv("NACME_DATA", raising=False)
    found, erm, greg, table = _found(tmp_path, "--steps", "200")
    assert greg["validation accuracy"] >= erm["validation accuracy"] - 0.02
    for key in HELD_OUT:
        assert greg[key] < erm[key]
    assert len(found["GReg"]) == 3
    assert f"| validation accuracy | {100 * erm['validation accuracy']:.1f} ±" in table


@pytest.mark.domainbed
@pytest.mark.data
def test_on_domainbed(tmp_path, domainbed, nacme_data):
    data_dir = str(nacme_data / "mnist10k")
    flags = ["--dataset", "RotatedMNIST", "--data_dir", data_dir, "--batch_size", "8"]
    _, erm, greg, _ = _found(tmp_path, *flags, "--steps", "60", "--seeds", "1")
    assert greg["validation accuracy"] >= erm["validation accuracy"] - 0.05  # one short run of each
    assert greg["photographs: FPR95"] < erm["photographs: FPR95"]
