"""Keeping only the checkpoints that a criterion may choose, and handing one on."""

import json

import pytest
import torch

import nacme
from domainbed_plugins.runs.export import export
from domainbed_plugins.runs.keep import check_keep, kept_steps, prune
from domainbed_plugins.sweep.jobs import SweepSpec, make_jobs
from domainbed_plugins.sweep.launchers.local import LocalLauncher
from nacme.errors import ConfigError, CriterionError, SweepError
from nacme.settings import CoverageSettings

KEEP = ["best:nac_me", "best:val_loss", "best:val_acc", "last"]
FLAGS = ["--dataset", "RotatedDigits", "--steps", "31", "--checkpoint_freq", "3"]


def on_disk(sweep):
    return {str(path) for path in sweep.glob("*/model*.pkl")}


def selectable(sweep, keep):
    names = [what.removeprefix("best:") for what in keep]
    return set(nacme.select(nacme.load_sweep(sweep), names, per="run")["checkpoint"])


@pytest.mark.parametrize("keep", [KEEP, ["best:nac_me"], ["last"], ["best:val_acc", "last"]])
def test_what_stays_is_exactly_what_select_can_name(keep, tmp_path):
    spec = SweepSpec(
        ["RotatedDigits"],
        ["ERM"],
        test_envs=[[0], [5]],
        hparams={"lr": 0.03},
        steps=31,
        checkpoint_freq=3,
        settings=CoverageSettings(alpha=10.0, fill=0.1),
        keep=keep,
    )
    outcomes = LocalLauncher(spec.train_options(), parallel=1).run(make_jobs(spec, tmp_path, None))
    assert [outcome.state for outcome in outcomes] == ["done", "done"]
    assert on_disk(tmp_path) == selectable(tmp_path, keep)
    assert selectable(tmp_path, keep) >= set(
        nacme.select(nacme.load_sweep(tmp_path), [w.removeprefix("best:") for w in keep], per="sweep")[
            "checkpoint"
        ]
    )


def test_the_kept_weights_are_those_of_their_step(train_run, tmp_path):
    train_run(tmp_path / "all", *FLAGS, keep=["all"])
    train_run(tmp_path / "few", *FLAGS, keep=KEEP)
    assert len(list((tmp_path / "all").glob("model_step*.pkl"))) == 11
    for path in (tmp_path / "few").glob("model_step*.pkl"):
        a, b = (torch.load(run, weights_only=True)["model_dict"] for run in (path, tmp_path / "all" / path.name))
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_prune_says_first_and_deletes_when_told(train_run, tmp_path, capsys):
    train_run(tmp_path / "sweep" / "run", *FLAGS, keep=["all"])
    train_run(tmp_path / "few" / "run", *FLAGS, keep=KEEP)
    before = on_disk(tmp_path / "sweep")
    capsys.readouterr()
    found = prune(tmp_path / "sweep", KEEP)
    out, err = capsys.readouterr()
    assert out.splitlines() == [str(leftover.path) for leftover in found]
    assert "would be deleted" in err
    assert on_disk(tmp_path / "sweep") == before
    prune(tmp_path / "sweep", KEEP, yes=True)
    assert on_disk(tmp_path / "sweep") == selectable(tmp_path / "sweep", KEEP)
    names = [{path.name for path in (tmp_path / sweep / "run").glob("*.pkl")} for sweep in ("sweep", "few")]
    assert names[0] == names[1]
    assert prune(tmp_path / "sweep", KEEP, yes=True) == []


def test_prune_leaves_unfinished_runs_and_undefined_criteria_alone(train_run, crash, tmp_path, capsys):
    run = tmp_path / "sweep" / "run"
    with pytest.raises(crash.error):
        train_run(run, *FLAGS, keep=["all"], after={20: crash})
    assert prune(tmp_path / "sweep", ["last"], yes=True) == []
    assert "1 runs that are not done were left alone" in capsys.readouterr().err
    train_run(run, *FLAGS, keep=["all"])
    lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    (run / "results.jsonl").write_text("".join(json.dumps({**line, "nac_me": None}) + "\n" for line in lines))
    before = on_disk(tmp_path / "sweep")
    with pytest.raises(SweepError, match="holds no value of nac_me"):
        prune(tmp_path / "sweep", ["best:nac_me"], yes=True)
    assert on_disk(tmp_path / "sweep") == before


def test_ties_go_to_the_earliest_and_undefined_values_are_never_chosen():
    records = [{"step": step, "nac_me": value} for step, value in enumerate([0.1, 0.5, None, 0.5, float("nan")])]
    assert kept_steps(records, ["best:nac_me"]) == {1}
    assert kept_steps(records, ["best:nac_me", "last"]) == {1, 4}
    records = [{"step": step, "val_loss": value} for step, value in enumerate([3.0, 1.0, 2.0])]
    assert kept_steps(records, ["best:val_loss"]) == {1}


@pytest.mark.parametrize(
    ("keep", "error", "message"),
    [
        (["best:nacme"], CriterionError, "did you mean 'nac_me'"),
        (["first"], ConfigError, "'first' is unknown; use best:CRITERION"),
        (["best:leave_one_out"], ConfigError, "keep all"),
        (["best:rank_mean(nac_me, val_acc)"], ConfigError, "keep all"),
        (["best:oracle"], ConfigError, "depends on other checkpoints or on test labels"),
    ],
)
def test_a_policy_that_cannot_be_followed_is_refused(keep, error, message):
    with pytest.raises(error, match=message):
        check_keep(keep)
    check_keep(KEEP)


def test_nothing_is_kept_of_what_is_not_saved(train_run, tmp_path):
    with pytest.raises(ConfigError, match="leave out --skip_model_save"):
        train_run(tmp_path / "run", *FLAGS, "--skip_model_save", keep=["last"])
    assert not (tmp_path / "run").exists()


def test_an_exported_model_is_plain_and_says_where_it_comes_from(train_run, tmp_path):
    run = tmp_path / "run"
    train_run(run, *FLAGS, "--test_envs", "2", keep=["all"])
    card = json.loads(export(run, 12, tmp_path / "out").read_text())
    weights = torch.load(tmp_path / "out" / "model.pt", weights_only=True)
    saved = torch.load(run / "model_step12.pkl", weights_only=True)["model_dict"]
    assert weights.keys() == saved.keys()
    assert all(torch.equal(weights[key], saved[key]) for key in saved)
    record = json.loads((run / "results.jsonl").read_text().splitlines()[4])
    assert (card["dataset"], card["algorithm"], card["test_envs"], card["step"]) == (
        "RotatedDigits",
        "ERM",
        [2],
        12,
    )
    assert card["hparams"] == record["hparams"]
    assert card["values"]["nac_me"] == record["nac_me"]
    assert card["splits_hash"] == record["nac"]["splits_hash"]
    # the last step's checkpoint may be model.pkl alone
    (run / "model_step30.pkl").unlink()
    assert json.loads(export(run, 30, tmp_path / "last").read_text())["step"] == 30
    (run / "model_step9.pkl").unlink()
    with pytest.raises(SweepError, match="holds no checkpoint of step 9"):
        export(run, 9, tmp_path / "none")
    with pytest.raises(SweepError, match="has no record of step 10"):
        export(run, 10, tmp_path / "none")


def test_the_splits_hash_tells_splits_apart(train_run, tmp_path):
    def splits(name, *flags):
        train_run(tmp_path / name, "--dataset", "RotatedDigits", "--steps", "1", *flags)
        return json.loads((tmp_path / name / "results.jsonl").read_text())["nac"]["splits_hash"]

    first = splits("a")
    assert splits("b", "--algorithm", "CORAL", "--seed", "5", "--test_envs", "1") == first
    assert splits("c", "--trial_seed", "1") != first
    assert splits("d", "--holdout_fraction", "0.3") != first
