"""What a training run leaves behind, and how mistakes are told."""

import json
import os
import subprocess
import sys

import pytest
import torch

import nacme
from domainbed_plugins.train import main
from nacme.errors import CriterionError, NacmeError

FLAGS = ["--dataset", "RotatedDigits", "--steps", "7", "--checkpoint_freq", "3", "--test_envs", "2"]
FLAGS += ["--nac_alpha", "10", "--nac_fill", "0.1"]


def train(output, *flags):
    main([*FLAGS, *flags, "--output_dir", str(output)])


def test_the_command_writes_domainbeds_files(tmp_path):
    command = [sys.executable, "-m", "domainbed_plugins.train", *FLAGS, "--output_dir", str(tmp_path / "run")]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    run = tmp_path / "run"
    assert {"results.jsonl", "out.txt", "err.txt", "done", "model.pkl"} <= set(os.listdir(run))
    assert (run / "done").read_text() == "done"
    assert (run / "out.txt").read_text() == ended.stdout
    assert ended.stdout.startswith("Environment:\n\tPython: ")
    records = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    assert [record["step"] for record in records] == [0, 3, 6]
    stock = {"step", "epoch", "loss", "step_time", "mem_gb", "hparams", "args"}
    stock |= {f"env{env}_{split}_acc" for env in range(6) for split in ("in", "out")}
    for record in records:
        assert stock | {"nac_me", "val_loss", "nac"} <= record.keys()
        assert 0 <= record["nac_me"] <= 1
        assert record["args"]["test_envs"] == [2]
    model = torch.load(run / "model.pkl", weights_only=True)
    names = {"args", "model_input_shape", "model_num_classes", "model_num_domains", "model_hparams", "model_dict"}
    names |= {"step"}
    assert model.keys() == names
    assert (model["model_num_domains"], model["model_num_classes"]) == (5, 10)


def test_every_checkpoint_is_saved_on_request_and_none_if_asked(tmp_path):
    train(tmp_path / "every", "--save_model_every_checkpoint")
    assert {path.name for path in (tmp_path / "every").glob("*.pkl")} == {
        "model.pkl",
        *(f"model_step{step}.pkl" for step in (0, 3, 6)),
    }
    train(tmp_path / "none", "--skip_model_save")
    assert not list((tmp_path / "none").glob("*.pkl"))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--dataset", "RotatedDigit", "--domainbed", "/nowhere"], "'RotatedDigits'"),
        (["--algorithm", "EMR"], "--algorithm 'EMR' is unknown to embedded; did you mean 'ERM'"),
        (["--test_envs", "6"], "--test_envs 6 is out of range: RotatedDigits has envs 0 to 5"),
        (["--test_envs", "0", "1", "2", "3", "4", "5"], "names every environment"),
        (["--hparams", "{lr: 1}"], "--hparams is not JSON"),
        (["--hparams", "[1]"], "--hparams must be a JSON object"),
        (["--hparams", '{"lrr": 1}'], "--hparams 'lrr' is read by nothing; did you mean 'lr'"),
        (["--hparams", '{"batch_size": 5000}'], "batch_size 5000 is larger than env0_in"),
        (["--holdout_fraction", "0"], "--holdout_fraction 0.0 leaves env 0"),
        (["--task", "domain_adaptation"], "set --uda_holdout_fraction above 0"),
        (["--nac_layers", "nonsense"], "nonsense"),
        (["--nac_grid", "alhpa=1"], "'alhpa' is unknown; did you mean 'alpha'"),
        (["--keep", "best:nacme"], "did you mean 'nac_me'"),
    ],
)
def test_a_mistake_is_one_line_and_loses_nothing(flags, message, tmp_path):
    with pytest.raises(NacmeError) as error:
        train(tmp_path / "run", *flags)
    assert message in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run" / "results.jsonl").exists()
    train(tmp_path / "run")  # the directory serves once the mistake is mended
    assert (tmp_path / "run" / "done").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--steps", "500"], "steps = 7, not 500"),
        (["--nac_alpha", "1"], "alpha = 10.0, not 1.0"),
        (["--nac_split", "in"], 'split = "out", not "in"'),
        (["--nac_layers", "nonsense"], 'not ["nonsense"]'),
        (["--nac_grid", "alpha=1"], "nac_grid = "),
        (["--criteria", "sharpness"], 'criteria = "without it", not "sharpness"'),
        (["--hparams", '{"lrr": 1}'], 'hparams = {}, not {"lrr": 1}'),
        (["--average", "sma"], 'average = "without it", not ["sma"]'),
    ],
)
def test_a_finished_run_is_not_taken_for_another(flags, message, finished_run, capsys):
    before = (finished_run / "results.jsonl").read_bytes()
    with pytest.raises(NacmeError, match="is done, and was trained with") as error:
        train(finished_run, *flags)
    assert message in str(error.value)
    assert (finished_run / "results.jsonl").read_bytes() == before
    train(finished_run)
    assert "is done; nothing to train" in capsys.readouterr().err


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    train(tmp_path_factory.mktemp("finished") / "run")
    return next(tmp_path_factory.getbasetemp().glob("finished*/run"))


def test_another_algorithms_hyper_parameters_pass(tmp_path):
    train(tmp_path / "run", "--hparams", '{"irm_lambda": 2}')
    assert (tmp_path / "run" / "done").exists()


def test_a_mistake_exits_with_1(tmp_path):
    command = [sys.executable, "-m", "domainbed_plugins.train", *FLAGS, "--output_dir", str(tmp_path / "run")]
    ended = subprocess.run([*command, "--algorithm", "EMR"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")
    assert ended.stderr.startswith("nacme: --algorithm 'EMR'")
    assert ended.stderr.count("\n") == 1


def test_a_directory_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(NacmeError, match=r"--output_dir .*file/run cannot be written: .*; choose another"):
        train(tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_directory_is_told(tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    with pytest.raises(NacmeError, match="cannot be written: Permission denied"):
        train(tmp_path / "locked" / "run")


def test_recording_more_changes_no_training_number(tmp_path):
    train(tmp_path / "plain")
    train(tmp_path / "more", "--nac_grid", "alpha=1,auto", "bins=20", "--keep", "last")
    plain, more = (
        [json.loads(line) for line in (tmp_path / name / "results.jsonl").read_text().splitlines()]
        for name in ("plain", "more")
    )
    for a, b in zip(plain, more):
        for key in a.keys() - {"step_time", "args", "nac"}:
            assert a[key] == b[key], key
        assert len(b["nac"]["grid"]) == 2


def test_unknown_criteria_are_refused_before_training(tmp_path):
    with pytest.raises(CriterionError):
        train(tmp_path / "run", "--keep", "best:nothing")
    assert not (tmp_path / "run").exists()


@pytest.mark.filterwarnings("ignore")
def test_a_run_that_diverges_records_null_accuracies_and_strict_json(tmp_path, train_run):
    flags = ["--dataset", "RotatedDigits", "--steps", "4", "--checkpoint_freq", "1", "--hparams", '{"lr": 1e30}']
    train_run(tmp_path / "run", *flags, "--test_envs", "0", keep=("best:val_acc",))

    def refuse(constant):
        raise AssertionError(f"{constant} is no JSON")

    lines = (tmp_path / "run" / "results.jsonl").read_text().splitlines()
    last = [json.loads(line, parse_constant=refuse) for line in lines][-1]
    assert last["env0_in_acc"] is last["env1_out_acc"] is last["loss"] is last["nac_me"] is None
    # no criterion makes a number of what is none
    assert {
        name for name in ("ece", "entropy", "atc", "mmd", "nac_me_robust") if last.get(name) is not None
    } == set()
    assert nacme.load_sweep(tmp_path / "run")["val_acc"].isna().all()
