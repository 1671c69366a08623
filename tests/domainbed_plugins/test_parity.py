"""Recording changes no training number: stock DomainBed against ours, to the last digit."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from domainbed_plugins import score
from domainbed_plugins.runs.checkpoints import load_checkpoint
from domainbed_plugins.train import main as train
from nacme.settings import CoverageSettings

pytestmark = [pytest.mark.domainbed, pytest.mark.filterwarnings("ignore")]

#: Algorithms that stock DomainBed cannot train on a CPU, or with any backpack that runs on today's torch.
NOT_ON_CPU = {"TRM", "RDM"}
NOT_AT_ALL = {"Fishr"}
#: Predicting draws random numbers, so a value measured again is another draw.
RANDOM = {"MTL"}

DEBUG = ["--dataset", "Debug28", "--data_dir", "unused", "--steps", "7", "--checkpoint_freq", "3"]
DEBUG += ["--hparams", '{"batch_size": 8}', "--test_envs", "1", "--save_model_every_checkpoint"]
SETTINGS = CoverageSettings(10.0, 50, 2)
FLAGS = ["--nac_alpha", "10", "--nac_fill", "2"]

ALGORITHMS = [
    "ERM",
    "ERMPlusPlus",
    "Fish",
    "IRM",
    "GroupDRO",
    "Mixup",
    "MLDG",
    "CORAL",
    "MMD",
    "DANN",
    "CDANN",
    "MTL",
    "SagNet",
    "ARM",
    "VREx",
    "RSC",
    "SD",
    "ANDMask",
    "SANDMask",
    "IGA",
    "SelfReg",
    "IB_ERM",
    "IB_IRM",
    "CAD",
    "CondCAD",
    "Transfer",
    "CausIRL_CORAL",
    "CausIRL_MMD",
    "EQRM",
    "ADRMX",
    "URM",
]


def equal_models(stock, ours):
    theirs, mine = (load_checkpoint(run / "model.pkl")["model_dict"] for run in (stock, ours))
    return theirs.keys() == mine.keys() and all(torch.equal(theirs[key], mine[key]) for key in theirs)


def test_every_algorithm_is_named(domainbed):
    own = {"GReg"}  # registered by the plugin
    assert set(domainbed.algorithms.ALGORITHMS) - own == {*ALGORITHMS, *NOT_ON_CPU, *NOT_AT_ALL}
    assert len(ALGORITHMS) == 31


@pytest.mark.parametrize("name", ALGORITHMS)
def test_debug28(name, stock_train, unequal_keys, records, tmp_path):
    stock, ours = tmp_path / "stock", tmp_path / "ours"
    stock_train([*DEBUG, "--algorithm", name, "--output_dir", str(stock)])
    train([*DEBUG, "--algorithm", name, "--output_dir", str(ours), *FLAGS])
    assert unequal_keys(stock, ours) == set()
    assert equal_models(stock, ours)

    outcome = score.score(stock, None, score.ScoreOptions(SETTINGS))
    assert outcome.failures == []
    assert outcome.measured == 3
    for in_run, post_hoc in zip(records(ours), records(stock, "nac.jsonl"), strict=True):
        assert in_run["nac_me"] > 0
        assert in_run["step"] == post_hoc["step"]
        if name not in RANDOM:
            assert post_hoc["nac_me"] == pytest.approx(in_run["nac_me"], abs=1e-6)
            assert post_hoc["val_loss"] == pytest.approx(in_run["val_loss"], abs=1e-6)
            assert outcome.accuracy_gap == 0


@pytest.mark.parametrize("name", ALGORITHMS)
def test_averages_change_no_number(name, unequal_keys, in_process, records, tmp_path):
    plain, averaged = tmp_path / "plain", tmp_path / "averaged"
    flags = [*DEBUG, "--algorithm", name, *FLAGS]
    train([*flags, "--output_dir", str(plain)])
    train([*flags, "--output_dir", str(averaged), "--average", "sma", "ema", "--average_from", "2"])
    assert unequal_keys(plain, averaged) == set()
    assert equal_models(plain, averaged)
    found = records(averaged, "averages.jsonl")
    assert [(record["step"], record["candidate"]) for record in found] == [
        (step, kind) for step in (3, 6) for kind in ("sma", "ema")
    ]
    assert all(record["nac_me"] > 0 and 0 <= record["env1_in_acc"] <= 1 for record in found)
    before, own, mean = (
        load_checkpoint(averaged / f"model_{name}.pkl")["model_dict"] for name in ("step3", "step6", "step6_sma")
    )
    assert mean.keys() == own.keys()
    # two algorithms do not move in so few steps of these sizes
    moved = any(not torch.equal(before[key], own[key]) for key, value in own.items() if value.is_floating_point())
    assert moved or name in ("MLDG", "SANDMask")
    assert any(not torch.equal(mean[key], own[key]) for key in own) == moved


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_command_line_with_stock_workers(domainbed, unequal_keys, tmp_path):
    environment = {**os.environ, "PYTHONPATH": os.environ["DOMAINBED_ROOT"], "OMP_NUM_THREADS": "1"}
    for module, flags in (("domainbed.scripts.train", []), ("domainbed_plugins.train", FLAGS)):
        command = [sys.executable, "-m", module, *DEBUG, "--output_dir", str(tmp_path / module), *flags]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    stock, ours = tmp_path / "domainbed.scripts.train", tmp_path / "domainbed_plugins.train"
    assert unequal_keys(stock, ours) == set()
    assert equal_models(stock, ours)


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["ERM", "VREx", "MTL"])
def test_rotated_mnist(name, stock_train, unequal_keys, nacme_data, tmp_path):
    stock, ours = tmp_path / "stock", tmp_path / "ours"
    argv = ["--dataset", "RotatedMNIST", "--data_dir", str(nacme_data / "mnist10k"), "--algorithm", name]
    argv += ["--steps", "4", "--checkpoint_freq", "3", "--hparams", '{"batch_size": 16}']
    stock_train([*argv, "--output_dir", str(stock)])
    train([*argv, "--output_dir", str(ours)])
    assert unequal_keys(stock, ours) == set()
    assert equal_models(stock, ours)


@pytest.mark.parametrize("name", ["ERM", "DANN"])
def test_domain_adaptation(name, stock_train, unequal_keys, records, tmp_path):
    stock, ours = tmp_path / "stock", tmp_path / "ours"
    argv = [*DEBUG, "--algorithm", name, "--task", "domain_adaptation", "--uda_holdout_fraction", "0.7"]
    stock_train([*argv, "--output_dir", str(stock)])
    train([*argv, "--output_dir", str(ours), *FLAGS])
    assert unequal_keys(stock, ours) == set()
    # DomainBed counts uda splits, not environments
    assert "env0_uda_acc" in records(ours)[0]
    assert equal_models(stock, ours)


def test_random_hparams(stock_train, unequal_keys, records, tmp_path):
    stock, ours = tmp_path / "stock", tmp_path / "ours"
    argv = [*DEBUG, "--hparams_seed", "3", "--trial_seed", "2", "--seed", "5", "--holdout_fraction", "0.3"]
    stock_train([*argv, "--output_dir", str(stock)])
    train([*argv, "--output_dir", str(ours), *FLAGS])
    assert unequal_keys(stock, ours) == set()
    score.score(stock, None, score.ScoreOptions(SETTINGS))
    for in_run, post_hoc in zip(records(ours), records(stock, "nac.jsonl"), strict=True):
        assert post_hoc["nac_me"] == pytest.approx(in_run["nac_me"], abs=1e-6)


def test_fast_evaluation_leaves_out_training_splits_alone(in_process, records, tmp_path):
    for splits in ("all", "fast"):
        train([*DEBUG, "--output_dir", str(tmp_path / splits), "--eval_splits", splits, *FLAGS])
    for full, fast in zip(records(tmp_path / "all"), records(tmp_path / "fast"), strict=True):
        assert full.keys() - fast.keys() == {"env0_in_acc", "env2_in_acc"}
        assert fast.keys() <= full.keys()
    in_split = tmp_path / "in"
    train([*DEBUG, "--output_dir", str(in_split), "--eval_splits", "fast", "--nac_split", "in", *FLAGS])
    assert records(in_split)[0].keys() == full.keys()
    assert records(in_split)[0]["nac"]["split"] == "in"


def test_the_number_of_workers_is_the_users(stock_train, unequal_keys, in_process, tmp_path, monkeypatch, capsys):
    stock, ours = tmp_path / "stock", tmp_path / "ours"
    stock_train([*DEBUG, "--output_dir", str(stock)])
    # from here on the data set asks for more
    monkeypatch.setattr(in_process.datasets.MultipleDomainDataset, "N_WORKERS", 10_000)
    train([*DEBUG, "--output_dir", str(ours), "--n_workers", "0", *FLAGS])
    assert "workers for each" not in capsys.readouterr().err
    assert unequal_keys(stock, ours) == set()


def test_the_two_lines_for_forks(in_process, stock_train, unequal_keys, records, tmp_path, monkeypatch):
    """The documented lines, put into DomainBed's own script, record and change no number."""
    documented = (Path(__file__).parents[2] / "docs" / "domainbed.md").read_text()
    setup, use = (
        re.search(rf"```python\n({start}.*?)```", documented, re.DOTALL)[1]
        for start in ("from nacme import Recorder", "results.update")
    )
    script = (Path(in_process.misc.__file__).parents[1] / "scripts" / "train.py").read_text()
    for line, added in (("    algorithm.to(device)\n", setup), ("            results.update({\n", use)):
        assert script.count(line) == 1
        margin = line[: len(line) - len(line.lstrip())]
        indented = "".join(margin + part for part in added.splitlines(keepends=True))
        script = script.replace(line, line + indented if added is setup else indented + line)
    stock, fork = tmp_path / "stock", tmp_path / "fork"
    stock_train([*DEBUG, "--output_dir", str(stock)])
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["train", *DEBUG, "--output_dir", str(fork)])
        patch.setattr(sys, "stdout", sys.stdout)
        patch.setattr(sys, "stderr", sys.stderr)
        exec(compile(script, "train.py", "exec"), {"__name__": "__main__"})
    assert unequal_keys(stock, fork) == set()
    assert all(record["nac_me"] > 0 for record in records(fork))
    json.dumps(records(fork), allow_nan=False)
