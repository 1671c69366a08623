"""Locales, pipes, full disks, hostile working directories, targets that are no files, caches of any content."""

import io
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

import nacme.records.load as load
from nacme.children import leave_working_directory

from .conftest import snapshot
from .damage import Canary, unusual

ROOT = Path(load.__file__).parents[2]


def program(*argv, cwd, shell=None, **environment):
    """Run the command as a program, its words through a shell's line if there is one."""
    words = [sys.executable, "-c", "from nacme.__main__ import main; main()", *map(str, argv)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONSAFEPATH": "1", **environment}
    if shell:
        words = ["bash", "-c", shell, "bash", *words]
    began = time.monotonic()
    done = subprocess.run(words, cwd=cwd, env=environment, capture_output=True, timeout=60, check=False)
    assert b"Traceback" not in done.stderr + done.stdout, done.stderr.decode()
    assert b"Exception ignored" not in done.stderr
    return done, time.monotonic() - began


@pytest.mark.parametrize(
    ("shell", "code", "said"),
    [
        ('"$@" >&-', 1, "standard output is closed"),
        ('"$@" > /dev/full', 1, "standard output: No space left on device"),
        ('"$@" 2>&-', 0, ""),
        ('"$@" | head -c 1 > /dev/null; exit ${PIPESTATUS[0]}', 0, ""),
        ('unset HOME; "$@" > /dev/null', 0, ""),
        ('mkdir gone; cd gone; rmdir ../gone; "$@" > /dev/null', 0, ""),
    ],
    ids=["closed", "full", "no standard error", "reader that has enough", "no home", "no working directory"],
)
def test_output_that_cannot_be_written_is_one_line(shell, code, said, place):
    done, _ = program("select", place.sweep, cwd=place.outside.parent / "here", shell=shell)
    assert done.returncode == code, done.stderr
    assert said in done.stderr.decode()
    assert len(done.stderr.splitlines()) == bool(said)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-16"])
@pytest.mark.parametrize("command", ["select", "correlate", "criteria"])
def test_every_encoding_takes_every_table(encoding, command, place, nacme):
    records = (place.run / "results.jsonl").read_text()
    (place.run / "results.jsonl").write_text(records.replace("RotatedDigits", "Ziffern\\u2460\\u00e4\\ud83d"))
    argv = [command] if command == "criteria" else [command, place.sweep]
    for form in ("table", "csv", "json"):
        answer = nacme(*argv, "--format", form, encoding=encoding)
        assert answer.is_clean()
        assert answer.code == 0


def test_an_ascii_locale_is_enough(place):
    done, _ = program(
        "select", place.sweep, cwd=place.outside, LC_ALL="C", PYTHONUTF8="0", PYTHONCOERCECLOCALE="0"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()


def test_a_hostile_working_directory_is_neither_code_nor_configuration(place):
    hostile = place.sweep  # as by cd SWEEP && nacme select .
    for name in ("orjson", "pickle", "typer", "pandas", "submitit", "site", "nacme_user", "matplotlib", "evil"):
        (hostile / f"{name}.py").write_text(f"open({str(place.outside / 'canary')!r}, 'w').close()\n")
    (hostile / "matplotlibrc").write_bytes(b"backend: module://evil\ntext.usetex: True\nfont.size: \xff\n")
    (hostile / "sitecustomize.py").write_text("")
    outside = snapshot(place.outside)
    out = place.sweep.parent / "report.html"
    path = os.pathsep.join([str(ROOT), ""])
    done, _ = program("report", ".", "--out", out, cwd=hostile, PYTHONPATH=path)
    assert done.returncode == 0, done.stderr
    assert snapshot(place.outside) == outside
    assert b"<svg" in out.read_bytes() or b"data:image/svg" in out.read_bytes()


@pytest.mark.parametrize("kind", ["directory", "pipe", "dangling", "loop", "device", "link", "null device"])
def test_a_report_replaces_no_link_and_no_device(kind, place, nacme):
    target = place.sweep.parent / "report.html"
    if kind == "link":
        target.symlink_to(place.outside / "precious")
    elif kind == "null device":
        target = Path("/dev/null")
    else:
        unusual(kind, target.name)(target.parent, place.outside)
    outside, before = snapshot(place.outside), target.lstat()
    answer = nacme("report", place.sweep, "--out", target)
    assert answer.is_clean()
    assert answer.code == 1
    assert "cannot write" in answer.err
    assert snapshot(place.outside) == outside
    assert target.lstat().st_mode == before.st_mode


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "content",
    [b"", {"step": 20, "fill": 1.0}, {"step": 20, "counts_a": [1, 2], "fill": 1.0}, {"step": "x"}, "pipe"],
    ids=["empty", "no counts", "flat counts", "step as text", "pipe"],
)
def test_counts_of_any_content_cost_their_picture_alone(content, place, nacme):
    for run in place.sweep.iterdir():
        if isinstance(content, dict):
            np.savez(run / "coverage.npz", **content)
        elif content == "pipe":
            os.mkfifo(run / "coverage.npz")
        else:
            (run / "coverage.npz").write_bytes(content)
    answer = nacme("report", place.sweep, "--out", place.sweep.parent / "report.html")
    assert answer.is_clean()
    assert answer.code == 0, answer.err
    assert "coverage.npz holds no counts" in answer.err


def test_a_report_goes_to_standard_output_and_its_export_stays_in_its_folder(place, nacme):
    records = (place.run / "results.jsonl").read_text()
    (place.run / "results.jsonl").write_text(records.replace("RotatedDigits", "../../$\\\\frac{x_1}$"))
    exported = place.sweep.parent / "a" / "b" / "exported"
    answer = nacme("report", place.sweep, "--out", "-", "--export", exported)
    assert answer.code == 0, answer.err
    assert answer.out.startswith("<!DOCTYPE html>")
    assert answer.out.rstrip().endswith("</html>")
    everything = {
        path for path in place.sweep.parent.rglob("*") if path.suffix in (".png", ".pdf", ".csv", ".tex")
    }
    assert everything == set(exported.iterdir()) != set()


def outside(path):
    return path.parents[2] / "outside"


CACHES = {
    "empty": lambda path, whole: path.write_bytes(b""),
    "text": lambda path, whole: path.write_bytes(b"text"),
    "head of a zip file": lambda path, whole: path.write_bytes(b"PK\x03\x04"),
    "cut off": lambda path, whole: path.write_bytes(whole[: len(whole) // 2]),
    "flipped bytes": lambda path, whole: path.write_bytes(whole[:300] + bytes(400) + whole[700:]),
    "another array": lambda path, whole: np.savez(path, a=1),
    "objects": lambda path, whole: np.savez(
        path, about=np.array([Canary(path.parents[2] / "outside" / "canary")])
    ),
    "7 TiB": lambda path, whole: huge(path),
    "compressed": lambda path, whole: np.savez_compressed(path, about=np.zeros(10**6)),
    "directory": lambda path, whole: path.mkdir(),
    "pipe": lambda path, whole: os.mkfifo(path),
    "dangling": lambda path, whole: path.symlink_to(outside(path) / "nowhere"),
    "device": lambda path, whole: path.symlink_to("/dev/zero"),
}


def huge(path):
    """An array that says to have a million million numbers."""
    content = io.BytesIO()
    np.save(content, np.zeros(1))
    import zipfile

    with zipfile.ZipFile(path, "w") as file:
        header = content.getvalue().replace(b"(1,), }            ", b"(1000000000000,), }")
        file.writestr("about.npy", header)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", CACHES)
def test_a_cache_of_any_content_gives_way_to_the_files(kind, place, nacme, monkeypatch, choices):
    monkeypatch.setattr(load, "CACHE_FROM", 1)
    select = ("select", place.sweep, "--per", "run", "--format", "json", "--criterion", "nac_me,val_acc")
    assert nacme(*select).code == 0
    cache = place.sweep / ".nacme_cache.npz"
    whole = cache.read_bytes()
    cache.unlink()
    CACHES[kind](cache, whole)
    before = snapshot(place.outside)
    answer = nacme(*select)
    assert answer.is_clean()
    assert answer.code == 0
    assert [row["step"] for row in json.loads(answer.out)] == [row["step"] for row in choices]
    assert "is no cache of records" in answer.err or kind == "dangling"
    assert len(answer.err.splitlines()) <= 1
    assert snapshot(place.outside) == before


def test_a_cache_never_answers_for_other_files(place, nacme, monkeypatch):
    """A file of equal size, its time set back; a cache that came with a copied sweep."""
    monkeypatch.setattr(load, "CACHE_FROM", 1)
    select = ("select", place.sweep, "--per", "run", "--format", "json", "--criterion", "oracle")

    def best():
        return {row["run"]: row["test_acc"] for row in json.loads(nacme(*select).out)}[place.run.name]

    before = best()
    path = place.run / "results.jsonl"
    state, text = path.stat(), path.read_text()
    changed = text.replace(f'"env0_in_acc": {before}', f'"env0_in_acc": 0.9{"0" * (len(str(before)) - 3)}')
    assert len(changed) == len(text)
    assert changed != text
    path.write_text(changed)
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert best() == 0.9
    copied = place.sweep.parent / "copied"
    shutil.copytree(place.sweep, copied)
    assert (copied / ".nacme_cache.npz").exists()
    other = copied / place.run.name / "results.jsonl"
    other.write_text(text)
    for name in ("results.jsonl", ".."):
        os.utime(other.parent / name, ns=(state.st_atime_ns, state.st_mtime_ns))
    rows = json.loads(nacme("select", copied, *select[2:]).out)
    assert {row["run"]: row["test_acc"] for row in rows}[place.run.name] == before


def test_leaving_the_working_directory_keeps_what_the_user_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(ROOT)]))
    leave_working_directory()
    assert str(tmp_path) in sys.path
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(["", str(ROOT)]))
    leave_working_directory()
    assert str(tmp_path) not in sys.path
    assert os.environ["PYTHONPATH"] == str(ROOT)
