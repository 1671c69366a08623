"""Locks, also where the file system has none."""

import errno
import fcntl
import json
import multiprocessing
import os
import socket
import time

import pytest

from domainbed_plugins.runs import lock as run_lock
from domainbed_plugins.runs.lock import BusyError, lock_note, locked
from nacme.errors import NacmeError


@pytest.fixture(params=["with locks", "without locks"])
def file_system(request, monkeypatch):
    monkeypatch.setattr(run_lock, "PATIENCE", 0.2)
    if request.param == "without locks":

        def no_locks(*_):
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "lockf", no_locks)
    return request.param


def hold(directory, ready):
    with locked(directory) as lock:
        lock._write({"step": 3, "steps": 10, "rate": 1.5})
        ready.set()
        time.sleep(60)


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock of ``tmp_path``."""
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready))
    process.start()
    assert ready.wait(30)
    yield process
    process.kill()
    process.join()


@pytest.mark.usefixtures("file_system")
def test_one_process_trains_a_run_and_others_see_which(holder, tmp_path):
    assert lock_note(tmp_path / ".lock") == {
        "host": socket.gethostname(),
        "pid": holder.pid,
        "step": 3,
        "steps": 10,
        "rate": 1.5,
    }
    with pytest.raises(BusyError, match=f"is being trained by process {holder.pid} on "), locked(tmp_path):
        pass


@pytest.mark.usefixtures("file_system")
def test_the_lock_of_a_killed_process_is_free_at_once(holder, tmp_path):
    holder.kill()
    holder.join()
    assert lock_note(tmp_path / ".lock") is None
    with locked(tmp_path):
        assert json.loads((tmp_path / ".lock").read_text())["pid"] == os.getpid()
    (tmp_path / "done").touch()
    with locked(tmp_path):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {"done"}


def test_without_locks_another_machine_counts_as_gone_after_minutes_of_silence(tmp_path, monkeypatch):
    monkeypatch.setattr(run_lock, "PATIENCE", 0.1)

    def no_locks(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "lockf", no_locks)
    held = tmp_path / ".lock.held"
    held.write_text("elsewhere 1 token")
    (tmp_path / ".lock").write_text('{"host": "elsewhere", "pid": 1}')
    assert lock_note(tmp_path / ".lock") == {"host": "elsewhere", "pid": 1}
    with pytest.raises(BusyError, match="process 1 on elsewhere"), locked(tmp_path):
        pass
    os.utime(held, (time.time() - 2 * run_lock.STALE,) * 2)
    assert lock_note(tmp_path / ".lock") is None
    monkeypatch.setattr(run_lock, "TOUCH", 0.02)
    with locked(tmp_path) as lock:
        age = held.stat().st_mtime
        deadline = time.monotonic() + 10
        while held.stat().st_mtime == age and time.monotonic() < deadline:
            time.sleep(0.01)
        assert held.stat().st_mtime > age
        held.write_text("elsewhere 1 token")  # taken over while this process slept
        while not lock._touching.lost and time.monotonic() < deadline:
            time.sleep(0.01)
        lock._noted = 0.0
        with pytest.raises(BusyError, match="taken over"):
            lock.note(1, 2, 1.0)
    assert held.read_text() == "elsewhere 1 token"


@pytest.mark.timeout(20)
@pytest.mark.parametrize("kind", ["link", "pipe", "directory"])
def test_a_lock_file_that_is_no_file_is_refused(kind, tmp_path):
    outside = tmp_path / "outside"
    outside.write_text("precious")
    run = tmp_path / "run"
    run.mkdir()
    make = {"link": lambda p: p.symlink_to(outside), "pipe": os.mkfifo, "directory": os.mkdir}
    make[kind](run / ".lock")
    with pytest.raises(NacmeError, match=r"\.lock cannot be locked: it is a "), locked(run):
        pass
    assert lock_note(run / ".lock") is None
    assert outside.read_text() == "precious"


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"pid": "x", "step": null}', b"\xff\xfe", b"[" * 9000])
def test_a_note_of_any_content_is_read(content, holder, tmp_path):
    (tmp_path / ".lock").write_bytes(content)
    assert lock_note(tmp_path / ".lock") == {}
