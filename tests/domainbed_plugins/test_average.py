"""Candidates of a sweep that is trained, and what DomainBed sees of them: nothing."""

import json
import shutil

import pytest
import torch

import nacme
from domainbed_plugins.average import AverageOptions, average, main
from domainbed_plugins.recording.options import RecordOptions
from domainbed_plugins.runs.checkpoints import load_checkpoint
from domainbed_plugins.sweep.jobs import SweepSpec, make_jobs
from domainbed_plugins.sweep.launchers.local import LocalLauncher
from nacme.candidates import kinds, of_kinds
from nacme.errors import ConfigError, NacmeWarning, SweepError
from nacme.settings import CoverageSettings

pytestmark = pytest.mark.filterwarnings("ignore::nacme.errors.NacmeWarning")

SETTINGS = CoverageSettings(alpha=10.0, fill=0.1)


def options(**changed):
    return AverageOptions(RecordOptions(SETTINGS, layers="penultimate"), **changed)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Three runs of one test env, all of whose checkpoints are kept, with averages."""
    sweep = tmp_path_factory.mktemp("averaging") / "sweep"
    spec = SweepSpec(
        ["RotatedDigits"],
        ["ERM"],
        test_envs=[[1]],
        hparams_seeds=(0, 1, 2),
        steps=31,
        checkpoint_freq=6,
        hparams={"lr": 0.01, "batch_size": 32},
        keep=["all"],
        eval_splits="fast",
        average=["sma"],
    )
    jobs = make_jobs(spec, sweep, None)
    outcomes = LocalLauncher(spec.train_options(), parallel=1).run(jobs)
    assert {outcome.state for outcome in outcomes} == {"done"}
    return sweep


@pytest.fixture
def sweep(trained, tmp_path):
    return shutil.copytree(trained, tmp_path / "sweep")


def candidates(sweep):
    return {p.stem.rpartition("-")[0]: json.loads(p.read_text()) for p in (sweep / "candidates").glob("*.json")}


def test_ensembles_and_soups_of_a_sweep(sweep):
    before = {path: path.read_bytes() for path in sweep.glob("*/*.jsonl")}
    outcome = average(sweep, None, options())
    assert (outcome.made, outcome.skipped, outcome.failures) == (3, 0, [])
    made = candidates(sweep)
    assert made.keys() == {"ensemble", "soup-uniform", "soup-greedy"}
    assert [member["weight"] for member in made["soup-uniform"]["members"]] == [pytest.approx(1 / 3)] * 3
    assert (made["ensemble"]["networks"], made["soup-greedy"]["networks"]) == (3, 1)
    assert made["ensemble"]["nac_me"] is None
    assert made["soup-uniform"]["nac_me"] > 0
    df = nacme.load_sweep(sweep)
    assert kinds(df) == ["raw", "ensemble", "sma", "soup:greedy", "soup:uniform"]
    greedy = df[df["candidate"] == "soup:greedy"].iloc[0]
    raw = df[df["candidate"] == "raw"]
    assert greedy["val_acc"] >= raw["val_acc"].max() - 1e-9  # the best-validated member is the first tried
    assert 0 < greedy["test_acc"] <= 1
    assert {path: path.read_bytes() for path in sweep.glob("*/*.jsonl")} == before
    again = average(sweep, None, options())
    assert (again.made, again.skipped) == (0, 3)


def test_members_are_the_best_validated(sweep):
    average(sweep, None, options(kinds=["ensemble"]))
    df = of_kinds(nacme.load_sweep(sweep), ["raw"])
    best = df.sort_values(["val_acc", "step"], ascending=[False, True]).drop_duplicates("run")
    members = {m["run"]: m["step"] for m in candidates(sweep)["ensemble"]["members"]}
    assert members == dict(zip(best["run"], best["step"]))


def test_members_may_be_averages(sweep):
    average(sweep, None, options(kinds=["soup"], members=["sma"]))
    made = candidates(sweep)
    assert made.keys() == {"soup-uniform-sma", "soup-greedy-sma"}
    assert {m["candidate"] for m in made["soup-uniform-sma"]["members"]} == {"sma"}


def test_one_model_a_run_is_enough(sweep):
    for path in sweep.glob("*/model_*.pkl"):
        path.unlink()
    average(sweep, None, options())
    assert {m["checkpoint"] for m in candidates(sweep)["soup-uniform"]["members"]} == {"model.pkl"}


def test_a_soup_of_copies_and_an_ensemble_of_copies_are_their_member(sweep):
    """Of three runs, two are made copies of the first's weights: every record of theirs is its own."""
    first, *others = sorted(path.parent for path in sweep.glob("*/model.pkl"))
    for path in sweep.glob("*/model_*.pkl"):
        path.unlink()
    for other in others:
        shutil.copyfile(first / "model.pkl", other / "model.pkl")
    average(sweep, None, options(members=["last"]))
    record = json.loads((first / "results.jsonl").read_text().splitlines()[-1])
    made = candidates(sweep)
    for name in ("soup-uniform-last", "soup-greedy-last", "ensemble-last"):
        for env in range(6):
            assert made[name][f"env{env}_out_acc"] == pytest.approx(record[f"env{env}_out_acc"], abs=1e-9)
        assert made[name]["env1_in_acc"] == pytest.approx(record["env1_in_acc"], abs=1e-9)
        assert made[name]["val_loss"] == pytest.approx(record["val_loss"], abs=1e-5)


def test_averages_along_runs(sweep):
    outcome = average(sweep, None, options(kinds=["average", "swad"]))
    made = [json.loads(path.read_text()) for path in (sweep / "candidates").glob("average-*.json")]
    assert len(made) == 3
    for record in made:
        assert [m["step"] for m in record["members"]].sort() == [12, 18, 24, 30].sort()
        assert len({m["run"] for m in record["members"]}) == 1
        assert record["args"]["hparams_seed"] in (0, 1, 2)
    assert outcome.made + len(outcome.failures) == 6


def test_a_group_whose_members_do_not_fit_is_refused_with_the_reason(sweep):
    run = next(sweep.glob("*/model.pkl")).parent
    for path in run.glob("model*.pkl"):
        content = load_checkpoint(path)
        content["model_dict"]["classifier.weight"] = torch.zeros(10, 3)
        torch.save(content, path)
    outcome = average(sweep, None, options(kinds=["soup"]))
    assert outcome.made == 0
    assert len(outcome.failures) == 2
    assert all("classifier.weight has shape" in failure for failure in outcome.failures)


def test_classifiers_that_started_apart_are_warned_of(sweep):
    with pytest.warns(NacmeWarning, match="started at different places"):
        average(sweep, None, options(kinds=["soup"]))


def test_test_labels_may_not_order_members(sweep):
    with pytest.raises(ConfigError, match="nothing but InD data may decide"):
        average(sweep, None, options(order="oracle"))


def test_a_sweep_without_pairs_of_runs_says_so(sweep):
    for run in sorted(path.parent for path in sweep.glob("*/results.jsonl"))[1:]:
        shutil.rmtree(run)
    with pytest.raises(SweepError, match="no two runs with saved checkpoints"):
        average(sweep, None, options())


def test_runs_that_are_not_finished_have_no_part(sweep):
    run = next(sweep.glob("*/done")).parent
    (run / "done").unlink()
    outcome = average(sweep, None, options(kinds=["ensemble"]))
    assert outcome.failures == [f"{run.name}: not finished, so it is no member"]
    assert candidates(sweep)["ensemble"]["networks"] == 2


def test_the_command_prints_what_each_kind_gains(sweep, capsys):
    main([str(sweep), "--kinds", "soup", "--nac_layers", "penultimate", "--format", "json"])
    out, err = capsys.readouterr()
    rows = {row["candidate"]: row for row in json.loads(out)}
    assert {"raw", "sma", "soup:uniform", "soup:greedy", "one network", "any"} == rows.keys()
    assert rows["raw"]["gain"] == 0
    assert "2 candidates made, 0 done before" in err


@pytest.mark.domainbed
@pytest.mark.filterwarnings("ignore")
def test_a_sweep_that_stock_domainbed_trained(stock_train, tmp_path, domainbed):
    """Nothing but one model a run; DomainBed's own reader finds no more runs than before."""
    for seed in (0, 1):
        argv = ["--dataset", "Debug28", "--data_dir", "unused", "--steps", "4", "--checkpoint_freq", "3"]
        argv += ["--test_envs", "1", "--hparams_seed", str(seed), "--hparams", '{"batch_size": 8}']
        stock_train([*argv, "--output_dir", str(tmp_path / "sweep" / f"run{seed}")])
    outcome = average(tmp_path / "sweep", None, options())
    assert (outcome.made, outcome.failures) == (3, [])
    df = nacme.load_sweep(tmp_path / "sweep")
    assert kinds(df) == ["raw", "ensemble", "soup:greedy", "soup:uniform"]
    assert df[df["candidate"] != "raw"]["test_acc"].between(0, 1).all()
    reporting = pytest.importorskip("domainbed.lib.reporting")
    assert len(reporting.load_records(str(tmp_path / "sweep"))) == len(of_kinds(df, ["raw"]))


@pytest.mark.domainbed
@pytest.mark.filterwarnings("ignore")
def test_images_drawn_by_a_runs_seed_are_no_common_ground(stock_train, tmp_path):
    """Each member would be tested on images that another was trained on."""
    for seed in (0, 1):
        argv = ["--dataset", "Debug28", "--data_dir", "unused", "--steps", "2", "--seed", str(seed)]
        argv += ["--hparams_seed", str(seed), "--hparams", '{"batch_size": 8}']
        stock_train([*argv, "--output_dir", str(tmp_path / "sweep" / f"run{seed}")])
    outcome = average(tmp_path / "sweep", None, options())
    assert outcome.made == 0
    assert all("draws the images of its environments by a run's seed" in failure for failure in outcome.failures)
    assert len(outcome.failures) == 3
