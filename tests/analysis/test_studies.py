"""A study is kept, analysed to the same bytes, checked by SciPy alone and trained again to the same numbers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import nacme

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from analysis.studies import records, rerun  # noqa: E402


@pytest.fixture(scope="module")
def study(small_sweep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    records.main(small_sweep / "sweep", small_sweep / "spec.yaml", folder / "digits")
    return folder


def script(name, *arguments):
    command = [sys.executable, "-m", f"analysis.studies{name}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_kept_is_what_was_recorded(study, small_sweep):
    about = json.loads((study / "digits" / "about.json").read_text())
    assert (about["runs"], about["checkpoints"]) == (4, 20)
    assert about["versions"]["Testbed"].startswith("embedded")
    kept = pd.read_parquet(study / "digits" / "records.parquet")
    there = nacme.load_sweep(small_sweep / "sweep")
    pd.testing.assert_frame_equal(kept.drop(columns="checkpoint"), there.drop(columns="checkpoint"))


def test_the_same_records_give_the_same_bytes_and_scipy_agrees(study):
    script("", study)
    once = files(study)
    assert Path("overview.svg") in once
    script("", study)
    assert files(study) == once
    said = script(".check", study / "digits")
    worst = [float(part.split()[-1]) for part in said.splitlines()[-1].split(": ", 1)[1].split(",")]
    assert max(worst) < 1e-6


def test_a_slice_trained_again_has_the_stored_records(study, monkeypatch, capsys):
    monkeypatch.setattr(rerun, "HERE", study)
    monkeypatch.setattr(sys, "argv", ["rerun", "digits", "--data_dir", os.devnull, "--test_env", "1"])
    rerun.main()
    shown = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: float(line.split()[1]) for line in shown[1:]}
    assert {"nac_me", "test_acc", "val_acc"} <= set(table)
    assert np.nanmax(list(table.values())) == 0


def test_no_study_is_one_line(tmp_path):
    command = [sys.executable, "-m", "analysis.studies", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr == f"{tmp_path} holds no NAME/records.parquet; python -m analysis.studies.records makes one\n"
    )
