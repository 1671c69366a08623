"""Sweeps on a real Slurm, which runs on this machine for the tests."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from domainbed_plugins.runs import paths
from domainbed_plugins.runs.lock import lock_note
from domainbed_plugins.sweep.commands import read_status, run_sweep
from domainbed_plugins.sweep.jobs import Resources, SweepSpec, make_jobs
from domainbed_plugins.sweep.launchers import slurm
from domainbed_plugins.sweep.launchers.local import LocalLauncher
from nacme.errors import ConfigError, NacmeError
from nacme.settings import CoverageSettings

SCRIPT = Path(__file__).parents[3] / "slurm" / "start.sh"
SPEC = SweepSpec(
    ["RotatedDigits"],
    ["ERM", "CORAL"],
    hparams_seeds=[0, 1],
    test_envs=[[0], [2], [5]],
    steps=7,
    checkpoint_freq=3,
    settings=CoverageSettings(alpha=10.0, fill=0.1),
)


@pytest.fixture(scope="module")
def real_slurm(tmp_path_factory):
    """A Slurm of one node, without accounting storage."""
    if os.geteuid() or not all(map(shutil.which, ("slurmctld", "slurmd", "munged"))):
        pytest.skip("needs root and Slurm: apt-get install slurm-wlm munge")
    pytest.importorskip("submitit")
    directory = tmp_path_factory.mktemp("slurm")
    started = subprocess.run(["bash", SCRIPT, "start", directory], capture_output=True, text=True, check=False)
    if started.returncode:
        subprocess.run(["bash", SCRIPT, "stop", directory], check=False)
        pytest.skip(f"Slurm does not start here: {started.stderr.strip().splitlines()[-1]}")
    os.environ["SLURM_CONF"] = str(directory / "slurm.conf")
    yield
    subprocess.run(["scancel", "--user", "root"], check=False)
    subprocess.run(["bash", SCRIPT, "stop", directory], check=True)
    del os.environ["SLURM_CONF"]


@pytest.fixture(autouse=True)
def quick_polls(monkeypatch):
    monkeypatch.setattr(slurm, "POLL", 0.5)


def states(spec, sweep):
    return [status.state for status in read_status(spec, sweep)]


def wait_until(condition, seconds=240):
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.3)
    return found


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_twelve_runs_through_slurm_equal_local_ones(real_slurm, tmp_path, read_records, capfd):
    run_sweep(SPEC, tmp_path / "slurm", launcher="slurm", processes=2)
    told = capfd.readouterr().err
    assert len(told.splitlines()) == 2, told  # no storm of warnings for want of accounting storage
    assert "12 jobs submitted, 0 in the queue already" in told
    assert states(SPEC, tmp_path / "slurm") == ["done"] * 12
    jobs = make_jobs(SPEC, tmp_path / "local", None)
    assert {o.state for o in LocalLauncher(SPEC.train_options(), parallel=2).run(jobs)} == {"done"}
    for job in jobs:
        assert read_records(tmp_path / "slurm" / job.name) == read_records(job.output_dir)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_cancelled_killed_and_preempted_jobs_are_finished(real_slurm, tmp_path, read_records):
    long = SweepSpec(**{**vars(SPEC), "algorithms": ["ERM"], "hparams_seeds": [0], "steps": 1500})
    long = SweepSpec(**{**vars(long), "checkpoint_freq": 400})
    sweep = tmp_path / "slurm"
    run_sweep(long, sweep, launcher="slurm", processes=3, wait=False)
    assert "queued" in states(long, sweep) or "running" in states(long, sweep)
    cancelled, killed, preempted = make_jobs(long, sweep, None)
    run_sweep(long, sweep, launcher="slurm", wait=False)  # submits nothing twice
    assert len(slurm.SlurmLauncher.scheduled_runs(sweep)) == 3
    numbers = slurm._numbers(sweep)

    def training(job):
        note = lock_note(job.output_dir / paths.LOCK)
        return note and note.get("step", 0) > 20 and note

    wait_until(lambda: training(cancelled))
    subprocess.run(["scancel", numbers[cancelled.name]], check=True)
    os.kill(wait_until(lambda: training(killed))["pid"], signal.SIGKILL)
    wait_until(lambda: training(preempted))
    subprocess.run(["scancel", "--signal=USR2", numbers[preempted.name]], check=True)
    wait_until(lambda: "Resumed before step" in (preempted.output_dir / "out.txt").read_text())
    wait_until(lambda: not slurm.SlurmLauncher.scheduled_runs(sweep))
    assert states(long, sweep) == ["interrupted", "interrupted", "done"]
    assert (cancelled.output_dir / paths.STATE).exists()

    run_sweep(long, sweep, launcher="slurm", processes=3)
    assert states(long, sweep) == ["done"] * 3
    assert "Resumed before step" in (cancelled.output_dir / "out.txt").read_text()
    jobs = make_jobs(long, tmp_path / "local", None)
    LocalLauncher(long.train_options(), parallel=2).run(jobs)
    for job in jobs:
        assert read_records(sweep / job.name) == read_records(job.output_dir)


@pytest.mark.slow
def test_what_slurm_refuses_is_one_line(real_slurm, tmp_path):
    spec = SweepSpec(**{**vars(SPEC), "resources": Resources(partition="nowhere")})
    with pytest.raises(NacmeError, match=r"Slurm refused the jobs .*check the specification's resources"):
        run_sweep(spec, tmp_path / "sweep", launcher="slurm")


def test_without_slurm_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    pytest.importorskip("submitit")
    with pytest.raises(ConfigError, match="there is no sbatch here; use --launcher local"):
        run_sweep(SPEC, tmp_path / "sweep", launcher="slurm")


def test_without_submitit_the_remedy_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(ConfigError, match=r"pip install 'nacme\[slurm\]'"):
        run_sweep(SPEC, tmp_path / "sweep", launcher="slurm")
