"""A small finished sweep, a way to run commands in this process, and what is watched meanwhile."""

import contextlib
import io
import json
import os
import shutil
import sys
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from nacme.cli import app
from nacme.output import report_errors

SPEC = """\
datasets: [RotatedDigits]
algorithms: [ERM]
test_envs: [[0]]
hparams_seeds: 3
steps: 21
checkpoint_freq: 10
"""
#: No command may take longer.
PATIENCE = 10.0


@dataclass(frozen=True)
class Answer:
    code: int
    out: str
    err: str
    seconds: float

    def is_clean(self, what=""):
        """Whether it is an answer: an exit status that is promised, one line that says why, and no traceback."""
        assert self.code in (0, 1, 2), (what, self.code, self.err)
        assert "Traceback" not in self.err + self.out, (what, self.err)
        assert self.seconds < PATIENCE, (what, self.seconds)
        assert "\x1b" not in self.out + self.err, (what, self.err)
        if self.code == 1:
            assert self.err.strip().splitlines()[-1].startswith("nacme: "), (what, self.err)
        return True


def run(*argv, encoding="utf-8"):
    """Run a command as the program does, with streams of its own."""
    streams = [io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2)]
    before, began = sys.argv, time.monotonic()
    sys.argv = ["nacme", *map(str, argv)]
    code = 0
    environment = dict(os.environ)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(streams[0]),
            contextlib.redirect_stderr(streams[1]),
        ):
            warnings.simplefilter("default")
            for category in (DeprecationWarning, SyntaxWarning):  # of a DomainBed clone that is imported
                warnings.simplefilter("ignore", category)
            report_errors(app)
    except SystemExit as stop:
        code = stop.code or 0
    finally:
        sys.argv = before
        os.environ.clear()
        os.environ.update(environment)
    texts = []
    for stream in streams:
        stream.flush()
        texts.append(stream.buffer.getvalue().decode(encoding))
    return Answer(code, *texts, time.monotonic() - began)


@pytest.fixture(scope="session")
def nacme():
    return run


def snapshot(directory):
    """What is in a directory: kinds, contents, times."""
    return {
        str(path): (path.lstat().st_mode, path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(directory.rglob("*"))
    }


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Three finished runs as ``nacme sweep`` names them, with models that are too small to be networks."""
    from domainbed_plugins.sweep.jobs import make_jobs
    from domainbed_plugins.sweep.spec_file import load_spec

    root = tmp_path_factory.mktemp("whole")
    (root / "spec.yaml").write_text(SPEC)
    jobs = make_jobs(load_spec(root / "spec.yaml"), root / "sweep", None)
    for number, job in enumerate(jobs):
        directory = Path(job.output_dir)
        directory.mkdir(parents=True)
        records = []
        for step in (0, 10, 20):
            accuracies = {
                f"env{env}_{part}_acc": 0.3 + 0.01 * step + 0.05 * ((env + number) % 3)
                for env in range(6)
                for part in ("in", "out")
            }
            more = {"nac_me": 0.1 + 0.001 * step, "val_loss": 1.0 - 0.01 * step, "loss": 0.5}
            records.append({"step": step, "args": job.args, "hparams": {"lr": 0.1}, **accuracies, **more})
            content = {"model_dict": {"weight": torch.full((2,), float(step))}, "args": job.args, "step": step}
            torch.save(content, directory / f"model_step{step}.pkl")
        os.rename(directory / "model_step20.pkl", directory / "model.pkl")
        (directory / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        (directory / "out.txt").write_text("trained\n")
        (directory / "done").write_text("done")
    return root


@dataclass(frozen=True)
class Place:
    spec: Path
    sweep: Path
    run: Path
    outside: Path


@pytest.fixture
def place(whole, tmp_path, monkeypatch):
    """A copy of it, a directory outside, and a working directory of its own."""
    shutil.copytree(whole, tmp_path / "root")
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "precious").write_text("precious")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    sweep = tmp_path / "root" / "sweep"
    return Place(tmp_path / "root" / "spec.yaml", sweep, min(sweep.iterdir()), tmp_path / "outside")


@pytest.fixture(scope="session")
def choices(whole):
    """What select chooses in each run of the whole sweep."""
    answer = run("select", whole / "sweep", "--per", "run", "--format", "json", "--criterion", "nac_me,val_acc")
    assert answer.code == 0, answer.err
    return json.loads(answer.out)
