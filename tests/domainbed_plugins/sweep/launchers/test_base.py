"""A launcher of one's own is found by its name, runs the sweep, and is asked by ``nacme sweep status``."""

import os
import subprocess
import sys

import pytest

from domainbed_plugins.sweep.commands import read_status, run_sweep
from domainbed_plugins.sweep.jobs import SweepSpec
from domainbed_plugins.sweep.launchers import find_launcher, launchers
from domainbed_plugins.sweep.launchers.base import REGISTERED, Launcher, Outcome, register, train_job
from nacme.errors import ConfigError
from nacme.settings import CoverageSettings

SPEC = SweepSpec(
    ["RotatedDigits"],
    ["ERM"],
    hparams_seeds=[0, 1],
    test_envs=[[0]],
    steps=2,
    checkpoint_freq=1,
    settings=CoverageSettings(alpha=10.0, fill=0.1),
)
PLUGIN = """
from domainbed_plugins.sweep.launchers.base import Launcher, register, train_job

@register
class Backwards(Launcher):
    name = "backwards"

    def run(self, jobs, on_progress=None):
        missing = [job for job in reversed(jobs) if job.state != "done"]
        print("training", [job.args["hparams_seed"] for job in missing])
        return [train_job(job, self.train_options, self.domainbed) for job in missing]
"""


@pytest.fixture
def toy():
    """A launcher that trains one run a call, and holds the others in a queue of its own."""

    @register
    class Toy(Launcher):
        name = "toy"

        def run(self, jobs, on_progress=None):
            waiting = [job for job in jobs if job.state != "done"]
            (jobs[0].output_dir.parent / "toy.txt").write_text("\n".join(job.name for job in waiting[1:]))
            outcome = train_job(waiting[0], self.train_options, self.domainbed)
            return [outcome] if self.wait else []

        @classmethod
        def scheduled_runs(cls, sweep_dir):
            note = sweep_dir / "toy.txt"
            return dict.fromkeys(note.read_text().split(), "queued") if note.exists() else {}

    yield Toy
    del REGISTERED["toy"]


def test_a_registered_launcher_runs_a_sweep_and_is_asked_how_far_it_is(toy, tmp_path):
    run_sweep(SPEC, tmp_path, launcher="toy", wait=False)
    assert [status.state for status in read_status(SPEC, tmp_path)] == ["done", "queued"]
    run_sweep(SPEC, tmp_path, launcher="toy")
    assert [status.state for status in read_status(SPEC, tmp_path)] == ["done", "done"]


def test_a_name_is_given_once(toy):
    with pytest.raises(ConfigError, match=r"'toy' is taken by .*test_base"):

        @register
        class Other(Launcher):
            name = "toy"

    assert find_launcher("toy") is toy


def test_an_unknown_launcher_is_refused_before_anything_is_written(tmp_path):
    assert {"local", "slurm", "debug"} <= launchers().keys()
    with pytest.raises(ConfigError, match=r"--launcher 'slrm' is unknown; did you mean 'slurm'"):
        run_sweep(SPEC, tmp_path / "sweep", launcher="slrm")
    assert not (tmp_path / "sweep").exists()


def test_an_installed_launcher_is_found_by_its_entry_point(tmp_path):
    (tmp_path / "backwards.py").write_text(PLUGIN)
    info = tmp_path / "backwards-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: backwards\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[nacme.launchers]\nbackwards = backwards\n")
    spec = tmp_path / "spec.yaml"
    spec.write_text(
        "datasets: [RotatedDigits]\nalgorithms: [ERM]\ntest_envs: [[0]]\nhparams_seeds: 2\nsteps: 2\n"
        "checkpoint_freq: 1\nnac: {alpha: 10.0, fill: 0.1}\n"
    )
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    command = [sys.executable, "-m", "nacme.cli", "sweep", "run", spec, "--output_dir", tmp_path / "sweep"]
    done = subprocess.run(
        [*command, "--launcher", "backwards"],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "training [1, 0]" in done.stdout
    assert len(list((tmp_path / "sweep").glob("*/done"))) == 2


def test_outcomes_that_are_not_done_are_told(tmp_path):
    class Refusing(Launcher):
        name = "refusing"

        def run(self, jobs, on_progress=None):
            return [Outcome(job, "failed", "no room") for job in jobs]

    register(Refusing)
    try:
        with pytest.raises(Exception, match=r"2 of 2 runs did not end \(failed: .*: no room\)"):
            run_sweep(SPEC, tmp_path, launcher="refusing")
    finally:
        del REGISTERED["refusing"]
