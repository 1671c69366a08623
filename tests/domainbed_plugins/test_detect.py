"""``nacme detect`` on runs of both testbeds: its numbers, its records and its refusals."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

pytest.importorskip("pytorch_ood")

from pytorch_ood.detector import EnergyBased

import nacme
from domainbed_plugins import detect, train
from domainbed_plugins.backends import find as backends
from domainbed_plugins.detection.fit_samples import balanced
from domainbed_plugins.detection.options import DETECTORS, DetectOptions
from domainbed_plugins.runs.checkpoints import CheckpointError
from nacme.errors import ConfigError, LayerError, NacmeWarning, SweepError

pytestmark = pytest.mark.filterwarnings("ignore::nacme.errors.NacmeWarning")
QUICK = ["--n_boot", "50", "--fit_samples", "200"]


def _train(run, *flags):
    train.main(["--dataset", "RotatedDigits", "--test_envs", "1", "--output_dir", str(run), *flags])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run = tmp_path_factory.mktemp("sweep") / "run"
    _train(run, "--steps", "61", "--checkpoint_freq", "30", "--save_model_every_checkpoint", "--trial_seed", "2")
    return run


@pytest.fixture
def run(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "sweep" / "run")


def _detect(capsys, *args):
    detect.main([*map(str, args), *QUICK, "--format", "json"])
    return json.loads(capsys.readouterr().out)


def test_energy_is_what_one_computes_by_hand(run, capsys):
    (row,) = _detect(capsys, run, "--detector", "energy")
    testbed = backends.embedded()
    dataset = testbed.datasets.RotatedDigits(None, [1], {})
    model = testbed.algorithms.ERM((1, 16, 16), 10, 5, testbed.hparams_registry.default_hparams("ERM", "x"))
    model.load_state_dict(torch.load(run / "model_step60.pkl", weights_only=True)["model_dict"])
    detector = EnergyBased(model.predict)
    scores, truth = [], []
    for i, env in enumerate(dataset):
        out, _ = testbed.misc.split_dataset(env, int(len(env) * 0.2), testbed.misc.seed_hash(2, i))
        part = env if i == 1 else out
        scores.append(detector.predict(torch.stack([x for x, _ in part])).detach())
        truth += [i == 1] * len(part)
    assert row["auroc"] == pytest.approx(roc_auc_score(truth, torch.cat(scores)), abs=1e-9)
    assert (row["step"], row["shift"], row["ood"], row["test_envs"]) == (60, "covariate", "env1", "1")
    assert row["n_in"] + row["n_out"] == len(truth)


def test_every_detector_and_both_shifts_join_the_sweeps_table(run, capsys):
    results = (run / "results.jsonl").read_bytes()
    rows = _detect(capsys, run, "--ood", "ColoredDigits", "--ood_samples", "300", "--out", run.parent / "png")
    assert [(row["detector"], row["ood"]) for row in rows] == [
        (name, ood) for name in DETECTORS for ood in ("env1", "ColoredDigits")
    ]
    for row in rows:
        for metric in ("auroc", "aupr", "fpr95"):
            assert 0 <= row[f"{metric}_low"] <= row[metric] + 1e-9 <= row[f"{metric}_high"] + 2e-9 <= 1 + 3e-9
    assert (run.parent / "png" / "run_step60.png").read_bytes().startswith(b"\x89PNG")
    assert (run / "results.jsonl").read_bytes() == results
    df = nacme.load_sweep(run.parent, cache=False).set_index("step")
    for row in rows:
        end = ("covariate" if row["shift"] == "covariate" else row["ood"]) + f"_{row['detector']}"
        assert df.loc[60, f"auroc_{end}"] == row["auroc"]
        assert df.loc[60, f"fpr95_{end}"] == row["fpr95"]
    assert df[["auroc_covariate_vim", "aupr_covariate_vim"]].notna().sum().tolist() == [1, 1]


def test_same_seed_same_numbers_and_other_detectors_stay_on_record(run, capsys):
    first = _detect(capsys, run, "--detector", "nacue", "msp")
    before = [json.loads(line) for line in (run / "ood.jsonl").read_text().splitlines()]
    assert _detect(capsys, run, "--detector", "nacue", "msp") == first
    _detect(capsys, run, "--detector", "nap", "--search", "none")
    (after,) = (json.loads(line) for line in (run / "ood.jsonl").read_text().splitlines())
    assert after["auroc_covariate_nacue"] == before[0]["auroc_covariate_nacue"]
    assert after["ood"]["covariate_nap"]["settings"] == {"energy_weight": 0.0, "eps": 1.0}
    assert set(after["ood"]["covariate_nacue"]["settings"]) == {"alpha", "bins", "fill", "search_auroc"}


def test_a_checkpoint_a_run_or_every_checkpoint(run, capsys):
    options = ("--detector", "msp")
    (one,) = _detect(capsys, run / "model_step30.pkl", *options)
    (last,) = _detect(capsys, run / "model.pkl", *options)
    every = _detect(capsys, run.parent, "--every_checkpoint", *options)
    assert [row["step"] for row in every] == [0, 30, 60]
    assert every[1:] == [one, last]
    assert [json.loads(line)["step"] for line in (run / "ood.jsonl").read_text().splitlines()] == [0, 30, 60]
    df = nacme.load_sweep(run.parent, cache=False)
    assert df["auroc_covariate_msp"].tolist() == [row["auroc"] for row in every]


def test_fit_sample_is_balanced_whatever_the_data(run):
    labels = torch.tensor([0] * 60 + [1] * 30 + [2] * 3)
    x = torch.arange(93.0)[:, None]
    loaders = [[(x[:50], labels[:50])], [(x[50:80], labels[50:80]), (x[80:], labels[80:])]]
    batches = balanced(loaders, 33, np.random.default_rng(0))
    drawn = torch.cat([y for _, y in batches])
    assert drawn.bincount().tolist() == [15, 15, 3]
    images = torch.cat([x for x, _ in batches])[:, 0].long()
    assert torch.equal(labels[images], drawn)
    assert len(set(images.tolist())) == 33
    assert len(torch.cat([y for _, y in balanced(loaders, 500, np.random.default_rng(0))])) == 93


@pytest.mark.parametrize(
    ("flags", "fault"),
    [
        (["--detector", "nacu"], "--detector 'nacu' is unknown; did you mean 'nacue'"),
        (["--fit_samples", "2"], "--fit_samples 2 must be at least 4"),
        (["--data_dir", "nowhere"], "--data_dir nowhere is not a directory"),
        (["--ood", "RotatedDigits"], "--ood RotatedDigits is what .* was trained on"),
        (["--ood", "ColordDigits"], "did you mean 'ColoredDigits'"),
    ],
)
def test_a_wrong_flag_is_named(run, flags, fault, monkeypatch):
    monkeypatch.delenv("DOMAINBED_ROOT", raising=False)
    with pytest.raises(ConfigError, match=fault):
        detect.main([str(run), *flags])
    assert not (run / "ood.jsonl").exists()


def test_a_wrong_path_or_file_is_named(run, tmp_path):
    with pytest.raises(SweepError, match=r"nowhere does not exist"):
        detect.detect(tmp_path / "nowhere", None)
    (tmp_path / "alone.pkl").write_bytes(b"")
    with pytest.raises(SweepError, match=r"lies beside no results\.jsonl"):
        detect.detect(tmp_path / "alone.pkl", None)
    with pytest.raises(SweepError, match="is not named as a saved model is"):
        detect.detect(run / "out.txt", None)
    (run / "model_step60.pkl").write_bytes(b"cut off")
    with pytest.raises(CheckpointError, match="model_step60"):
        detect.detect(run, None)


def test_a_network_whose_outputs_are_nan_is_named(run):
    content = torch.load(run / "model_step60.pkl", weights_only=True)
    content["model_dict"] = {key: value * torch.nan for key, value in content["model_dict"].items()}
    torch.save(content, run / "model_step60.pkl")
    with pytest.raises(nacme.NacmeError, match="msp scores NaN: the network's outputs are not finite"):
        detect.detect(run, None, DetectOptions(detectors=("msp",), n_boot=10))


def test_detectors_that_a_network_does_not_allow_are_left_out_and_said(run, monkeypatch):
    class Flat(torch.nn.Module):
        n_outputs = 64

        def __init__(self, input_shape, hparams):
            super().__init__()
            self.linear = torch.nn.Linear(256, 64)

        def forward(self, x):
            return self.linear(x.flatten(1)).relu()

    testbed = backends.embedded()
    monkeypatch.setattr(testbed.algorithms.networks, "Featurizer", Flat)
    flat = run.parent / "flat"
    _train(flat, "--steps", "3", "--checkpoint_freq", "2")
    options = DetectOptions(n_boot=10, fit_samples=100)
    with pytest.warns(NacmeWarning, match="left out: nap: the model has no feature map"):
        table = detect.detect(flat, None, options)
    assert table["detector"].tolist() == [name for name in DETECTORS if name != "nap"]
    with pytest.raises(LayerError, match="no feature map"):
        detect.detect(flat, None, DetectOptions(detectors=("nap",)))


@pytest.mark.domainbed
def test_domainbeds_own_data_sets(domainbed, tmp_path, capsys):
    run = tmp_path / "run"
    flags = ["--dataset", "Debug28", "--algorithm", "GReg", "--test_envs", "0", "--steps", "3"]
    flags += ["--checkpoint_freq", "2", "--hparams", '{"batch_size": 4}', "--n_workers", "0"]
    train.main([*flags, "--output_dir", str(run)])
    capsys.readouterr()
    rows = _detect(capsys, run, "--ood", "RotatedDigits", "--ood_samples", "40")
    assert {row["n_out"] for row in rows} == {16, 40}
    assert len(rows) == 2 * len(DETECTORS)
