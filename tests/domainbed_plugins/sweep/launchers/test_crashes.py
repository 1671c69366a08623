"""Sweeps that are killed again and again, and disks that run full."""

import json
import os
import random
import signal
import subprocess
import sys
import time

import pytest
import torch

from domainbed_plugins.runs import files as run_files
from domainbed_plugins.runs import paths
from domainbed_plugins.runs.lock import lock_note
from domainbed_plugins.sweep.jobs import make_jobs
from domainbed_plugins.sweep.spec_file import load_spec
from nacme.errors import NacmeError

KILLS = 30


def start(spec, sweep):
    command = [sys.executable, "-m", "nacme.cli", "sweep", "run", spec, "--output_dir", sweep, "--jobs", "2"]
    pipe = subprocess.PIPE
    return subprocess.Popen(list(map(str, command)), stdout=pipe, stderr=pipe, text=True, start_new_session=True)


def training(jobs):
    """The processes that are making steps."""
    notes = [lock_note(job.output_dir / paths.LOCK) for job in jobs]
    return [note["pid"] for note in notes if note and note.get("step")]


@pytest.mark.long
@pytest.mark.timeout(3000)
def test_thirty_kills_change_no_record(tmp_path, read_records):
    """Workers, or the whole sweep at once, die at random moments; the same command is run again."""
    spec = tmp_path / "spec.yaml"
    content = {"datasets": ["RotatedDigits"], "algorithms": ["ERM", "CORAL"], "test_envs": [[0], [3], [5]]}
    content |= {"hparams_seeds": 2, "steps": 1001, "checkpoint_freq": 100, "nac": {"alpha": 10, "fill": 0.1}}
    spec.write_text(json.dumps({**content, "keep": ["best:nac_me", "last"]}))
    draw = random.Random(0)
    jobs = make_jobs(load_spec(spec), tmp_path / "killed", None)
    assert len(jobs) == 12
    process, kills = start(spec, tmp_path / "killed"), 0
    while kills < KILLS:
        time.sleep(draw.uniform(0.05, 0.5))
        if process.poll() is not None:  # all that could be done is done: some runs failed with their workers
            process.communicate()
            assert not all(job.state == "done" for job in jobs), f"the sweep ended after {kills} kills"
            process = start(spec, tmp_path / "killed")
        candidates = training(jobs)
        if not candidates:
            continue
        if draw.random() < 0.25:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        else:
            os.kill(draw.choice(candidates), signal.SIGKILL)
        kills += 1
    process.communicate()
    for _ in range(2):  # the first may find runs that failed with their workers only after it has begun
        process = start(spec, tmp_path / "killed")
        _, told = process.communicate()
    assert process.returncode == 0, told

    whole = start(spec, tmp_path / "whole")
    assert (whole.communicate(), whole.returncode)[1] == 0
    resumed = 0
    for job in jobs:
        undisturbed = tmp_path / "whole" / job.name
        assert read_records(job.output_dir) == read_records(undisturbed)
        steps = [json.loads(line)["step"] for line in read_records(job.output_dir)]
        assert steps == list(range(0, 1001, 100))
        resumed += (job.output_dir / "out.txt").read_text().count("Resumed before step")
        models = {path.name for path in job.output_dir.glob("model*.pkl")}
        assert models == {path.name for path in undisturbed.glob("model*.pkl")}
        for name in models:
            a, b = (
                torch.load(run / name, weights_only=True)["model_dict"] for run in (job.output_dir, undisturbed)
            )
            assert all(torch.equal(a[key], b[key]) for key in a)
        left = {path.name for path in job.output_dir.iterdir()}
        assert not {name for name in left if name.endswith(".tmp")} | ({paths.STATE, paths.FAILED} & left)
    assert resumed > 5


@pytest.fixture
def small_disk(tmp_path):
    """A file system of one megabyte and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1536k", "tmpfs", str(disk)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False) if not os.geteuid() else None
    if mounted is None or mounted.returncode:
        pytest.skip(f"needs the right to mount a tmpfs: {mounted.stderr.strip() if mounted else 'not root'}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def fill(disk, leave):
    """Fill a disk up to some bytes."""
    free = os.statvfs(disk)
    with (disk / "filler").open("wb") as file:
        file.write(b"x" * (free.f_bavail * free.f_frsize - leave))


@pytest.mark.parametrize("leave", [0, 8192, 200_000], ids=["nothing", "a little", "room for the model"])
def test_a_full_disk_costs_nothing_that_was_saved(leave, small_disk, train_run, read_records, tmp_path):
    flags = ["--dataset", "RotatedDigits", "--steps", "9", "--checkpoint_freq", "3"]
    options = {"keep": ["best:val_acc", "last"]}
    train_run(tmp_path / "whole", *flags, **options)
    run = small_disk / "run"
    with pytest.raises(NacmeError, match="No space left on device; free space") as error:
        train_run(run, *flags, after={4: lambda: fill(small_disk, leave)}, **options)
    assert "\n" not in str(error.value)
    assert run_files.load_state(run)["step"] == 4
    assert len(read_records(run)) == 2
    assert (run / "results.jsonl").read_bytes().endswith(b"\n")
    for path in run.glob("*.pkl"):
        assert torch.load(path, weights_only=True)["model_dict"]
    assert not list(run.glob("*.tmp"))
    (small_disk / "filler").unlink()
    train_run(run, *flags, **options)
    assert read_records(run) == read_records(tmp_path / "whole")
