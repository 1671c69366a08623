"""What an earlier version left on disk is read, continued and measured with equal numbers: see fixtures/begun."""

import json
import tarfile
from pathlib import Path

import pytest

import nacme
from domainbed_plugins.scoring.options import ScoreOptions
from domainbed_plugins.scoring.run import score
from domainbed_plugins.sweep.commands import _open_sweep, read_status, run_sweep
from domainbed_plugins.sweep.jobs import make_jobs
from domainbed_plugins.sweep.spec_file import load_spec
from domainbed_plugins.training.options import TrainOptions, comparable
from nacme.measurement import CoverageSettings

BEGUN = Path(__file__).parent / "fixtures" / "begun"
#: Of the machine and the day.
CLOCKS = ("step_time", "mem_gb", "args")

pytestmark = pytest.mark.filterwarnings("ignore::nacme.errors.NacmeWarning")


def read_lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def assert_equal_numbers(found, expected):
    """Compare records: keys and settings exactly, numbers up to another machine's rounding."""
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected):
        assert theirs.keys() <= ours.keys()
        for key in theirs.keys() - set(CLOCKS):
            if isinstance(theirs[key], float):
                assert ours[key] == pytest.approx(theirs[key], rel=1e-4, abs=1e-7), key
            elif key == "nac":
                assert theirs[key].items() <= {**ours[key], **same_measures(ours[key], theirs[key])}.items()
            else:
                assert ours[key] == theirs[key], key


def same_measures(ours, theirs):
    """The parts of a record's ``nac`` that are computed, as they were recorded before, where they are close."""
    names = [key for key in theirs if key in ("per_layer", "alpha_per_layer") or isinstance(theirs[key], float)]
    return {key: theirs[key] for key in names if ours[key] == pytest.approx(theirs[key], rel=1e-4)}


@pytest.fixture
def spec():
    return load_spec(BEGUN / "spec.yaml")


@pytest.fixture
def sweep(tmp_path):
    """A copy at another place than where it was begun."""
    with tarfile.open(BEGUN / "begun.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "begun"


def score_options(spec):
    return ScoreOptions(settings=spec.settings, grid=spec.grid, layers=spec.layers, criteria=spec.criteria)


def runs(spec, sweep):
    return sorted(make_jobs(spec, sweep, None), key=lambda job: job.args["hparams_seed"])


def test_a_sweep_is_read(spec, sweep):
    frame = nacme.load_sweep(sweep)
    assert {run: set(rows["step"]) for run, rows in frame.groupby("run")} == {
        job.name: steps for job, steps in zip(runs(spec, sweep), ({0, 4, 8}, {0, 4}))
    }
    records = read_lines(sweep / runs(spec, sweep)[0].name / "results.jsonl")
    ours = frame[frame["run"] == runs(spec, sweep)[0].name].sort_values("step")
    assert list(ours["test_acc"]) == [record["env2_in_acc"] for record in records]
    for key in ("nac_me", "entropy", "nac_me_aauto_m20_o0p1", "val_loss"):
        assert list(ours[key]) == [record[key] for record in records]


def test_the_state_of_each_run_is_known(spec, sweep):
    assert [(status.job.name, status.state, status.step) for status in read_status(spec, sweep)] == [
        (job.name, state, step)
        for job, state, step in zip(make_jobs(spec, sweep, None), ("done", "interrupted"), (9, 5))
    ]


def test_a_sweep_continues_and_its_runs_end_as_if_never_stopped(spec, sweep):
    whole, stopped = runs(spec, sweep)
    before = (whole.output_dir / "results.jsonl").read_bytes()
    run_sweep(spec, sweep, launcher="debug")
    assert (whole.output_dir / "results.jsonl").read_bytes() == before
    assert "Resumed before step 5 of 9" in (stopped.output_dir / "out.txt").read_text()
    assert_equal_numbers(
        read_lines(stopped.output_dir / "results.jsonl"), read_lines(BEGUN / "whole_results.jsonl")
    )


def test_measured_checkpoints_are_not_measured_again(spec, sweep):
    outcome = score(sweep, None, score_options(spec), models=1)
    assert (outcome.measured, outcome.skipped, outcome.failures) == (0, 2, [])


def test_checkpoints_are_measured_with_equal_numbers(spec, sweep):
    _, stopped = runs(spec, sweep)
    measured = stopped.output_dir / "nac.jsonl"
    expected = read_lines(measured)
    measured.unlink()
    score(stopped.output_dir, None, score_options(spec), models=1)
    assert_equal_numbers(read_lines(measured), expected)
    run_sweep(spec, sweep, launcher="debug")
    score(stopped.output_dir, None, score_options(spec), models=1)
    assert_equal_numbers(read_lines(measured)[-1:], read_lines(BEGUN / "whole_nac.jsonl"))


@pytest.fixture(scope="module")
def settings():
    return json.loads((BEGUN / "settings.json").read_text())


@pytest.fixture
def given():
    coverage = CoverageSettings(alpha="auto", bins=30, fill=0.2, correct_only=False)
    return {
        "settings": coverage,
        "grid": (coverage, CoverageSettings(layer="featurizer.conv3")),
        "layers": ["featurizer.conv2"],
        "split": "in",
        "criteria": ["mmd", "entropy"],
        "target_unlabeled": True,
    }


def test_a_runs_settings_are_compared_as_before(settings, given):
    job = make_jobs(load_spec("demo_quick"), Path("sweep"), None)[0]
    assert comparable(job.args, TrainOptions()) == settings["comparable"]["default"]
    more = {"eval_splits": "fast", "n_workers": 2, "keep": ["last", "best:nac_me"]}
    assert comparable(job.args, TrainOptions(**given, **more)) == settings["comparable"]["all"]


def test_what_is_asked_of_score_is_written_as_before(settings, given):
    assert ScoreOptions(CoverageSettings()).asked() == settings["asked"]["default"]
    assert ScoreOptions(**given).asked() == settings["asked"]["all"]


def test_a_sweeps_settings_are_written_as_before(settings, spec, tmp_path):
    _open_sweep(spec, tmp_path)
    assert json.loads((tmp_path / "sweep.json").read_text()) == settings["sweep"]
