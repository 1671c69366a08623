"""Files in directories that others filled: regular ones alone, and nothing through a link."""

import json
import math
import os
import socket
import subprocess
import sys
import time
import zipfile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nacme.system import files

UNUSUAL = {
    "directory": lambda path, outside: path.mkdir(),
    "pipe": lambda path, outside: os.mkfifo(path),
    "link": lambda path, outside: path.symlink_to(outside),
    "dangling link": lambda path, outside: path.symlink_to(outside.with_name("nowhere")),
    "loop": lambda path, outside: path.symlink_to(path),
    "device": lambda path, outside: path.symlink_to("/dev/zero"),
}


@pytest.fixture
def outside(tmp_path):
    path = tmp_path / "outside"
    path.write_bytes(b"precious")
    return path


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", UNUSUAL)
def test_only_files_are_written_and_what_stands_there_is_left(kind, tmp_path, outside):
    path = tmp_path / "name"
    UNUSUAL[kind](path, outside)
    for write in (
        lambda: files.replace(path, lambda file: file.write(b"x")),
        lambda: os.close(files.open_regular(path, os.O_WRONLY | os.O_CREAT)),
    ):
        with pytest.raises(OSError, match=r"it is a (directory|pipe|symbolic link|device), not a file") as error:
            write()
        assert error.value.strerror
    assert outside.read_bytes() == b"precious"
    assert {entry.name for entry in tmp_path.iterdir()} == {"name", "outside"}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["directory", "pipe", "dangling link", "loop", "device"])
def test_reading_never_waits(kind, tmp_path, outside):
    path = tmp_path / "name"
    UNUSUAL[kind](path, outside)
    with pytest.raises(OSError, match=r"not a file|No such file|Too many levels"):
        files.read_bytes(path)


@pytest.mark.timeout(10)
def test_a_socket_and_a_name_with_a_null_are_no_files(tmp_path):
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(tmp_path / "s"))
        with pytest.raises(OSError, match="a socket, not a file"):
            files.read_bytes(tmp_path / "s")
    with pytest.raises(OSError, match="null"):
        files.read_bytes(f"{tmp_path}/a\0b")


def test_what_fails_to_be_written_leaves_nothing(tmp_path):
    (tmp_path / "name").write_bytes(b"old")
    with pytest.raises(ZeroDivisionError):
        files.replace(tmp_path / "name", lambda file: 1 / 0)
    assert [path.name for path in tmp_path.iterdir()] == ["name"]
    files.replace(tmp_path / "name", lambda file: file.write(b"new"))
    assert (tmp_path / "name").read_bytes() == b"new"
    assert files.own(os.open(tmp_path / "name", os.O_RDONLY))
    (tmp_path / "name").write_bytes(b"changed by another")
    assert not files.own(os.open(tmp_path / "name", os.O_RDONLY))


def test_only_what_a_killed_process_left_is_cleaned_away(tmp_path):
    script = (
        "import os, signal, sys; from nacme.system import files;"
        "files.replace(sys.argv[1], lambda file: os.kill(os.getpid(), signal.SIGKILL))"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path / "nac.jsonl")], check=False)
    (left,) = tmp_path.iterdir()
    for name in ("thesis.tmp", "nac.jsonl.tmp", ".thesis.nacme.tmp", left.name.replace(".nacme.tmp", ".tmp")):
        (tmp_path / name).write_text("mine")
    elsewhere = tmp_path / f".nac.jsonl.00000000-1-12345678{files.TEMPORARY}"
    elsewhere.write_text("another machine is writing it")
    ours = tmp_path / f".nac.jsonl.{files._host()}-{os.getpid()}-12345678{files.TEMPORARY}"
    ours.write_text("this process is writing it")
    files.clean(tmp_path)
    names = {path.name for path in tmp_path.iterdir()}
    assert left.name not in names
    assert len(names) == 6
    os.utime(elsewhere, (time.time() - 2 * files.STALE,) * 2)
    files.clean(tmp_path)
    assert not elsewhere.exists()


@given(st.text(), st.text())
def test_names_become_file_names_that_differ_as_they_do(a, b):
    names = [files.file_name(text) for text in (a, b)]
    assert (names[0] == names[1]) == (a == b)
    for name in names:
        assert 0 < len(name) <= 100
        assert set(name) <= set("-._0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
        assert name[0] not in ".-"


def test_plain_names_stay_and_others_cannot_leave_the_directory():
    assert files.file_name("RotatedMNIST", "nac_me") == "RotatedMNIST_nac_me"
    assert files.file_name("../../x").startswith("x-") or "/" not in files.file_name("../../x")
    assert files.file_name("a/b") != files.file_name("a-b") == "a-b"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(json_values)
def test_every_json_parses_strictly(value):
    def refuse(token):
        raise AssertionError(token)

    read = json.loads(files.to_json(value), parse_constant=refuse)
    if not isinstance(value, float):
        assert type(read) is type(value)
    elif math.isfinite(value):
        assert read == value
    else:
        assert read is None


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["empty", "text", "cut off", "objects", "bomb", "pipe", "another array"])
def test_arrays_are_read_or_refused(kind, tmp_path):
    path = tmp_path / "coverage.npz"
    np.savez(path, counts=np.arange(1000))
    assert files.read_arrays(path)["counts"].tolist() == list(range(1000))
    whole = path.read_bytes()
    if kind == "objects":
        np.savez(path, counts=np.array([print, None]))
    elif kind == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file, file.open("a.npy", "w") as member:
            for _ in range(2**7):
                member.write(bytes(2**23 + 1))
    elif kind == "another array":
        np.save(path.with_suffix(".npy"), np.arange(3))
        os.replace(path.with_suffix(".npy"), path)
    elif kind == "pipe":
        path.unlink()
        os.mkfifo(path)
    else:
        path.write_bytes({"empty": b"", "text": b"text", "cut off": whole[: len(whole) // 2]}[kind])
    with pytest.raises((OSError, ValueError), match=r"no file of arrays|a pipe, not a file"):
        files.read_arrays(path)


def test_inside_follows_links(tmp_path):
    (tmp_path / "sweep" / "run").mkdir(parents=True)
    (tmp_path / "other").mkdir()
    (tmp_path / "sweep" / "link").symlink_to(tmp_path / "other")
    (tmp_path / "sweep" / "near").symlink_to("run")
    sweep = tmp_path / "sweep"
    said = {name: files.inside(sweep, sweep / name) for name in ("run", "link", "near", "../other", "..")}
    assert said == {"run": True, "link": False, "near": True, "../other": False, "..": False}
