"""Sweeps: their runs, launching them, their status, deleting what did not end."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from domainbed_plugins.runs import paths
from domainbed_plugins.runs.lock import BusyError, lock_note, locked
from domainbed_plugins.sweep import commands as sweep_commands
from domainbed_plugins.sweep.commands import StoppedSweep, delete_command, read_status, run_sweep
from domainbed_plugins.sweep.jobs import SweepSpec, make_jobs
from domainbed_plugins.sweep.launchers.local import LocalLauncher
from nacme.errors import ConfigError, NacmeError
from nacme.settings import CoverageSettings

SETTINGS = CoverageSettings(alpha=10.0, fill=0.1)


def make_spec(**changes):
    values = {"test_envs": [[0], [1]], "steps": 7, "checkpoint_freq": 3, "settings": SETTINGS}
    return SweepSpec(**{"datasets": ["RotatedDigits"], "algorithms": ["ERM"], **values, **changes})


def states(spec, sweep):
    return [status.state for status in read_status(spec, sweep)]


def write_yaml(path, **changes):
    content = {"datasets": ["RotatedDigits"], "algorithms": ["ERM"], "test_envs": [[0], [1]], "steps": 7}
    path.write_text(json.dumps({**content, "checkpoint_freq": 3, "nac": {"alpha": 10, "fill": 0.1}, **changes}))
    return str(path)


def nacme(*arguments, **options):
    command = [sys.executable, "-m", "nacme.cli", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_environments_are_left_out_as_domainbed_does(tmp_path):
    single, pairs = (make_jobs(make_spec(test_envs=e), tmp_path, None) for e in ("single", "pairs"))
    assert [job.args["test_envs"] for job in single] == [[0], [1], [2], [3], [4], [5]]
    assert len(pairs) == 6 + 15
    assert len({job.output_dir for job in pairs}) == 21
    only, sources = (make_jobs(make_spec(test_envs=e), tmp_path, None) for e in ("pairs_only", "single_source"))
    both = [job.name for job in pairs if len(job.args["test_envs"]) == 2]
    assert [job.name for job in only] == both
    assert [job.args["test_envs"] for job in sources] == [[e for e in range(6) if e != s] for s in range(6)]


def test_each_environment_alone(tmp_path, capsys):
    spec = make_spec(test_envs="single_source", datasets=["ColoredDigits"], keep=["best:val_acc", "last"])
    run_sweep(spec, tmp_path / "sweep", launcher="debug")
    capsys.readouterr()
    jobs = make_jobs(spec, tmp_path / "sweep", None)
    assert states(spec, tmp_path / "sweep") == ["done"] * len(jobs)
    for source, job in enumerate(jobs):
        assert source not in job.args["test_envs"]
        last = json.loads((job.output_dir / "results.jsonl").read_text().splitlines()[-1])
        assert last["nac"]["num_samples"] == pytest.approx(599 * 0.2, abs=1)
        assert 1 <= len(list(job.output_dir.glob("model*.pkl"))) <= 2


@pytest.mark.domainbed
def test_runs_are_named_as_domainbed_names_them(domainbed, tmp_path, monkeypatch):
    from domainbed.scripts import sweep as stock

    arguments = stock.make_args_list(
        n_trials=2,
        dataset_names=["Debug28"],
        algorithms=["ERM", "IRM"],
        n_hparams_from=0,
        n_hparams=2,
        steps=11,
        data_dir="data",
        task="domain_generalization",
        holdout_fraction=0.2,
        single_test_envs=True,
        hparams=None,
    )
    theirs = [stock.Job(args, str(tmp_path)) for args in arguments]
    spec = SweepSpec(["Debug28"], ["ERM", "IRM"], hparams_seeds=[0, 1], trial_seeds=[0, 1], steps=11)
    ours = make_jobs(spec, tmp_path, "data")
    assert [str(job.output_dir) for job in ours] == [job.output_dir for job in theirs]
    assert all(
        job.args[key] == value for job, their in zip(ours, theirs) for key, value in their.train_args.items()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"algorithms": ["EMR"]}, "'EMR' is unknown.*did you mean 'ERM'"),
        ({"hparams": {"lrr": 1}}, "'lrr' is read by nothing; did you mean 'lr'"),
        ({"test_envs": [[6]]}, "6 is out of range"),
        ({"test_envs": [[0, 1, 2, 3, 4, 5]]}, "names every environment"),
    ],
)
def test_what_no_run_could_do_is_told_before_any_starts(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        run_sweep(make_spec(**changes), tmp_path / "sweep", launcher="debug")
    assert not (tmp_path / "sweep").exists()


def test_debug_and_local_give_the_same_records_and_only_what_is_missing_runs(tmp_path, read_records):
    spec = make_spec()
    run_sweep(spec, tmp_path / "debug", launcher="debug")
    run_sweep(spec, tmp_path / "local", launcher="local", processes=2)
    assert states(spec, tmp_path / "local") == ["done", "done"]
    times = {}
    for job in make_jobs(spec, tmp_path / "local", None):
        assert read_records(job.output_dir) == read_records(tmp_path / "debug" / job.name)
        times[job.name] = (job.output_dir / "done").stat().st_mtime_ns
    more = make_spec(test_envs=[[0], [1], [2]])
    assert states(more, tmp_path / "local") == ["done", "done", "not launched"]
    run_sweep(more, tmp_path / "local", launcher="debug")
    assert states(more, tmp_path / "local") == ["done"] * 3
    for name, before in times.items():
        assert (tmp_path / "local" / name / "done").stat().st_mtime_ns == before


def test_a_failure_stops_no_other_run_and_is_told_with_its_last_lines(tmp_path, capsys):
    spec = make_spec(test_envs=[[0], [1]], layers=["nonsense"])
    with pytest.raises(NacmeError, match=r"2 of 2 runs did not end .*run the same command again"):
        run_sweep(spec, tmp_path / "sweep", processes=1)
    told = capsys.readouterr().err
    assert told.count("failed: RotatedDigits ERM") == 2
    assert told.count("    ") >= 2
    assert "nonsense" in told
    assert states(spec, tmp_path / "sweep") == ["failed", "failed"]
    assert "nonsense" in read_status(spec, tmp_path / "sweep")[0].detail


def test_a_worker_that_dies_fails_its_run_alone(tmp_path):
    spec = make_spec(steps=60, checkpoint_freq=10)
    jobs = make_jobs(spec, tmp_path, None)
    killed = []

    def kill_first(progress):
        note = lock_note(jobs[0].output_dir / paths.LOCK)
        if not killed and note and "pid" in note:
            killed.append(note["pid"])
            os.kill(note["pid"], signal.SIGKILL)

    outcomes = LocalLauncher(spec.train_options(), parallel=1).run(jobs, on_progress=kill_first)
    assert [(outcome.state, outcome.job.name) for outcome in outcomes] == [
        ("failed", jobs[0].name),
        ("done", jobs[1].name),
    ]
    assert "exit code -9" in outcomes[0].reason
    assert [status.state for status in read_status(spec, tmp_path)] == ["failed", "done"]
    assert [o.state for o in LocalLauncher(spec.train_options(), parallel=1).run(jobs)] == ["done"]


def test_a_sweep_that_measures_otherwise_is_not_mixed_in(tmp_path):
    run_sweep(make_spec(test_envs=[[0]]), tmp_path / "sweep", launcher="debug")
    with pytest.raises(ConfigError, match=r"holds a sweep with settings = .*'alpha': 10.0.* not .*'alpha': 1.0"):
        run_sweep(make_spec(settings=CoverageSettings(1.0, fill=0.1)), tmp_path / "sweep", launcher="debug")


def test_an_edited_specification_is_not_trained_beside_what_it_was(tmp_path):
    spec = make_spec(test_envs=[[0]])
    run_sweep(spec, tmp_path / "sweep", launcher="debug")
    for changes, message in (
        (
            {"steps": spec.steps + 1},
            f"was trained with steps = {spec.steps}, not {spec.steps + 1}; choose another",
        ),
        ({"hparams": {"lr": 0.5}}, 'was trained with hparams = .*, not {"lr": 0.5}; choose another'),
    ):
        with pytest.raises(ConfigError, match=message):
            run_sweep(replace(spec, **changes), tmp_path / "sweep", launcher="debug")
    assert states(spec, tmp_path / "sweep") == ["done"]
    assert len(list((tmp_path / "sweep").glob("*/done"))) == 1


def test_an_unwritable_directory_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"--output_dir .* cannot be written"):
        run_sweep(make_spec(), tmp_path / "file" / "sweep", launcher="debug")


def test_status_tells_running_queued_and_interrupted_runs_apart(tmp_path):
    spec = write_yaml(tmp_path / "spec.yaml", steps=100_000)
    sweep = tmp_path / "sweep"
    process = nacme("sweep", "run", spec, "--output_dir", sweep, "--jobs", 1)
    loaded = sweep_commands.load_spec(spec)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        first, second = read_status(loaded, sweep) if sweep.exists() else (None, None)
        if first and first.state == "running" and first.rate:
            break
        time.sleep(0.2)
    assert (first.state, second.state) == ("running", "queued")
    assert first.rate > 0
    assert 0 < first.step < first.steps == 100_000
    assert str(os.getpid()) not in first.detail
    with pytest.raises(BusyError):
        run_files_locked(first.job.output_dir)
    delete_command(spec, sweep, None, None, True)  # neither is deleted
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=90)
    assert process.returncode == StoppedSweep.exit_code
    assert "run the same command again: it continues" in told
    assert states(loaded, sweep) == ["interrupted", "not launched"]
    assert (first.job.output_dir / paths.STATE).exists()
    with pytest.raises(ConfigError, match="add --yes"):
        delete_command(spec, sweep, None, None, False)
    delete_command(spec, sweep, None, None, True)
    assert states(loaded, sweep) == ["not launched", "not launched"]


def run_files_locked(run):
    with locked(run):
        pass


def test_two_launches_share_the_runs(tmp_path, read_records):
    spec = write_yaml(tmp_path / "spec.yaml", test_envs=[[0], [1], [2], [3]], steps=60)
    sweep = tmp_path / "sweep"
    launches = [nacme("sweep", "run", spec, "--output_dir", sweep, "--jobs", 1) for _ in range(2)]
    for launch in launches:
        out, err = launch.communicate(timeout=200)
        assert (launch.returncode, out) == (0, ""), err
    loaded = sweep_commands.load_spec(spec)
    assert states(loaded, sweep) == ["done"] * 4
    for job in make_jobs(loaded, sweep, None):
        steps = [json.loads(line)["step"] for line in read_records(job.output_dir)]
        assert steps == [*range(0, 60, 3), 59]
        assert (job.output_dir / "out.txt").read_text().count("Environment:") == 1  # trained once


@pytest.mark.domainbed
def test_a_run_that_stock_domainbed_left_is_not_thrown_away(domainbed, tmp_path):
    spec = make_spec(test_envs=[[0]])
    (job,) = make_jobs(spec, tmp_path, None)
    job.output_dir.mkdir()
    (job.output_dir / "out.txt").write_text("")
    (job.output_dir / "results.jsonl").write_text('{"step": 0}\n')
    with pytest.raises(NacmeError, match="no state to go on from"):
        run_sweep(spec, tmp_path, launcher="debug")
    assert (job.output_dir / "results.jsonl").read_text() == '{"step": 0}\n'


def test_plan_counts_what_the_sweep_makes(tmp_path, capsys):
    spec = write_yaml(tmp_path / "spec.yaml", datasets=["RotatedDigits", "ColoredDigits"])
    sweep_commands.plan_command(spec, None, None, None, "json")
    digits, coloured, total = json.loads(capsys.readouterr().out)
    assert (digits["runs"], digits["steps"], digits["checkpoints"]) == (2, 14, 6)
    assert coloured["dataset"] == "ColoredDigits"
    assert total["runs"] == 4
    assert total["hours"] > 0


def test_plan_counts_each_file_that_is_kept(tmp_path, capsys):
    gigabytes = []
    for keep in (["last"], ["best:nac_me", "last"], "all"):
        spec = write_yaml(tmp_path / "spec.yaml", keep=keep)
        sweep_commands.plan_command(spec, None, None, None, "json")
        gigabytes.append(json.loads(capsys.readouterr().out)[0]["gigabytes"])
    # two runs of three checkpoints, of which the last is model.pkl as well
    assert gigabytes == pytest.approx([2 * files * 1e-4 for files in (1, 2, 4)])


def test_plan_counts_averages(tmp_path, capsys):
    rows = []
    for averages in ({}, {"average": ["sma"]}, {"average": ["sma", "ema"], "average_from": 0.9}):
        spec = write_yaml(tmp_path / "spec.yaml", keep=["last"], steps=500, checkpoint_freq=5, **averages)
        sweep_commands.plan_command(spec, None, None, None, "json")
        rows.append(json.loads(capsys.readouterr().out)[0])
    plain, one, late = rows
    assert [row["gigabytes"] / plain["gigabytes"] for row in rows] == pytest.approx([1, 2, 3])
    assert plain["hours"] < late["hours"] < one["hours"]


@pytest.mark.domainbed
def test_plan_says_what_it_does_not_know(domainbed, tmp_path, capsys):
    spec = write_yaml(
        tmp_path / "spec.yaml", datasets=["SpawriousO2O_easy", "WILDSFMoW", "Debug28"], test_envs=[[0]]
    )
    sweep_commands.plan_command(spec, None, "data", None, "json")
    printed = capsys.readouterr()
    rows = {row["dataset"]: row for row in json.loads(printed.out)}
    for dataset in ("SpawriousO2O_easy", "WILDSFMoW", "all"):
        assert rows[dataset]["hours"] is None
        assert rows[dataset]["steps"] > 0
    assert rows["Debug28"]["hours"] > 0
    assert rows["Debug28"]["network"] == "MNIST CNN"
    assert "hours are unknown for SpawriousO2O_easy, WILDSFMoW" in printed.err
    for dataset in domainbed.datasets.DATASETS:
        known = sweep_commands.load_spec(write_yaml(tmp_path / "spec.yaml", datasets=[dataset], test_envs=[[0]]))
        assert known.datasets == [dataset]
        sweep_commands.plan_command(str(tmp_path / "spec.yaml"), None, "data", None, "json")
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["hours"] is None) == dataset.startswith(("WILDS", "Spawrious"))


@pytest.mark.domainbed
def test_plan_knows_image_folders_of_any_size(domainbed, tmp_path, capsys):
    hours = {}
    for dataset, network in (
        ("PACS64", "ResNet-10 at 64 px"),
        ("PACS96", "efficientnet_lite0 at 96 px"),
        ("EMOJI96", "efficientnet_lite0 at 96 px"),
        ("EMOJI", "ResNet-50"),
    ):
        spec = write_yaml(tmp_path / "spec.yaml", datasets=[dataset], test_envs=[[0]])
        sweep_commands.plan_command(spec, None, "data", None, "json")
        (row,) = json.loads(capsys.readouterr().out)
        assert row["network"] == network
        hours[dataset] = row["hours"]
    assert hours["PACS64"] < hours["EMOJI96"] < hours["PACS96"] < hours["EMOJI"]
