"""GReg against ERM: as accurate on the training domains' validation splits, better at noticing outliers."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[2] / "analysis"))

import greg_study

pytestmark = pytest.mark.filterwarnings("ignore::nacme.errors.NacmeWarning")
HELD_OUT = ["noise: FPR95", "photographs: FPR95"]


def _found(out, *flags):
    args = greg_study.parser().parse_args(["--out", str(out), *flags])
    found = greg_study.study(args)
    mean = {
        algorithm: {key: float(np.mean([one[key] for one in seeds])) for key in seeds[0]}
        for algorithm, seeds in found.items()
    }
    return found, mean["ERM"], mean["GReg"], greg_study.table(found, args)


@pytest.mark.long
def test_on_the_embedded_testbed(tmp_path, monkeypatch):
    monkeypatch.delenv("NACME_DATA", raising=False)
    found, erm, greg, table = _found(tmp_path, "--steps", "200")
    assert greg["validation accuracy"] >= erm["validation accuracy"] - 0.02
    for key in HELD_OUT:
        assert greg[key] < erm[key]
    assert len(found["GReg"]) == 3
    assert f"| validation accuracy | {100 * erm['validation accuracy']:.1f} ±" in table


@pytest.mark.long
@pytest.mark.domainbed
@pytest.mark.data
def test_on_rotated_mnist(tmp_path, domainbed, nacme_data, monkeypatch):
    monkeypatch.delenv("NACME_DATA", raising=False)
    flags = ["--dataset", "RotatedMNIST", "--data_dir", str(nacme_data / "mnist10k"), "--steps", "600"]
    found, erm, greg, _ = _found(tmp_path, *flags, "--hparams", '{"batch_size": 8}')
    assert len(found["GReg"]) == 3
    assert greg["validation accuracy"] >= erm["validation accuracy"] - 0.02
    assert greg["noise: FPR95"] < erm["noise: FPR95"] - 0.3
    assert greg["photographs: FPR95"] <= erm["photographs: FPR95"]


@pytest.mark.domainbed
def test_reports_on_domainbed_and_trains_nothing_twice(tmp_path, domainbed, monkeypatch):
    monkeypatch.delenv("NACME_DATA", raising=False)
    flags = ["--dataset", "Debug28", "--steps", "4", "--seeds", "2", "--hparams", '{"batch_size": 4}']
    found, erm, greg, table = _found(tmp_path, *flags)
    assert set(erm) == set(greg)
    assert all(0 <= value <= 1 for mean in (erm, greg) for value in mean.values())
    assert 'Debug28, test env 0, 2 seeds, 4 steps, default hyper-parameters but {"batch_size": 4}' in table
    written = [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*/results.jsonl"))]
    assert _found(tmp_path, *flags)[0] == found
    assert written == [path.stat().st_mtime_ns for path in sorted(tmp_path.glob("*/results.jsonl"))]
