"""Kinds of damage to a sweep, each with the answer that is expected of the commands that meet it.

A sweep has three finished runs of three checkpoints. Each kind spoils one of them, or something beside them, and
says which of its steps are left to choose from, what standard error has to name, and whether ``--strict`` refuses.
"""

from __future__ import annotations

import gzip
import json
import os
import pickle
import socket
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ALL = (0, 10, 20)


@dataclass(frozen=True)
class Damage:
    """One kind.

    Attributes
    ----------
    name : str
    apply : callable
        Is given the spoiled run's directory, and a directory outside that nothing may change.
    left : tuple of int
        The run's steps that `select` still chooses among.
    said : str, optional
        A pattern that standard error of ``select`` holds; None: nothing is said.
    strict : bool
        Whether ``--strict`` refuses the sweep.
    """

    name: str
    apply: Callable[[Path, Path], object]
    left: tuple[int, ...] = ALL
    said: str | None = None
    strict: bool = False


class Canary:
    """Leaves a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.path,)


def put_line(line: bytes, file: str = "results.jsonl", at: int = 1) -> Callable[[Path, Path], object]:
    """Insert a line."""

    def apply(run: Path, outside: Path) -> None:
        path = run / file
        lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
        path.write_bytes(b"".join([*lines[:at], line + b"\n", *lines[at:]]))

    return apply


def put_value(value: Any, *keys: str, step: int = 10) -> Callable[[Path, Path], object]:
    """Change a value of one record; ``...`` takes the key away."""

    def apply(run: Path, outside: Path) -> None:
        records = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
        for record in records:
            if record["step"] == step:
                place = record
                for key in keys[:-1]:
                    place = place.setdefault(key, {})
                if value is ...:
                    del place[keys[-1]]
                else:
                    place[keys[-1]] = value
        (run / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))

    return apply


def put_bytes(change: Callable[[bytes], bytes], file: str = "results.jsonl") -> Callable[[Path, Path], object]:
    """Change a file as a whole."""

    def apply(run: Path, outside: Path) -> None:
        path = run / file
        path.write_bytes(change(path.read_bytes() if path.exists() else b""))

    return apply


def unusual(kind: str, file: str) -> Callable[[Path, Path], object]:
    """Put something that is no file where a file belongs."""

    def apply(run: Path, outside: Path) -> None:
        path = run / file
        if path.exists():
            path.unlink()
        if kind == "directory":
            path.mkdir()
        elif kind == "pipe":
            os.mkfifo(path)
        elif kind == "socket":
            here = os.getcwd()
            os.chdir(run)  # a socket's path is short
            with socket.socket(socket.AF_UNIX) as listening:
                listening.bind(file)
            os.chdir(here)
        else:
            path.symlink_to({"dangling": outside / "nowhere", "loop": path, "device": Path("/dev/zero")}[kind])

    return apply


def pickled(file: str) -> Callable[[Path, Path], object]:
    """Put a pickle that runs when it is read."""
    return lambda run, outside: (run / file).write_bytes(pickle.dumps(Canary(outside / "canary")))


LINES = r"results\.jsonl, lines? [\d, ]+: "
ADDED = r"nac\.jsonl, lines? 1[\d, ]*: "
JUNK: dict[str, bytes] = {
    "text": b"junk",
    "open brace": b"{",
    "array": b"[1, 2]",
    "number": b"7",
    "null": b"null",
    "string": b'"step"',
    "empty object": b"{}",
    "invalid UTF-8": b'{"step": 10, "x": "\xff"}',
    "null bytes": b"\0" * 100,
    "deep": b"[" * 2000 + b"]" * 2000,
    "deep object": b'{"a":' * 2000 + b"1" + b"}" * 2000,
    "long number": b'{"step": ' + b"9" * 5000 + b"}",
    "step as text": b'{"step": "10"}',
    "step as null": b'{"step": null}',
    "step as list": b'{"step": [10]}',
    "step as infinity": b'{"step": Infinity}',
    "step as NaN": b'{"step": NaN}',
    "step as fraction": b'{"step": 1.5}',
    "step as boolean": b'{"step": true}',
    "negative step": b'{"step": -5}',
    "huge step": b'{"step": 1e300}',
    "two in one": b'{"step": 5}{"step": 6}',
    "interleaved": b'{"step": 5, "args": {"step": 6, "args": {"data',
    "carriage returns": b"\r\r{\r",
    "pickle": pickle.dumps({"step": 10}),
    "escape sequence": b"\x1b]0;owned\x07\x1b[2J",
    "comment": b"# nothing",
    "YAML": b"step: !!python/object/apply:os.system [id]",
}
BLANK: dict[str, bytes] = {"blank": b"", "spaces": b"  \t ", "carriage return": b"\r"}

#: Of one record: the keys that lead to the value, the value, and what is said of it; None: it is read anyway.
VALUES: dict[str, tuple[tuple[str, ...], Any, str | None]] = {
    "accuracy in percent": (("env1_out_acc",), 57.9, r"env1_out_acc is 57\.9, not in \[0, 1\]"),
    "negative accuracy": (("env0_in_acc",), -5, r"env0_in_acc is -5, not in \[0, 1\]"),
    "infinite accuracy": (("env0_in_acc",), float("inf"), r"env0_in_acc is inf, not in"),
    "accuracy as text": (("env1_out_acc",), "0.5", "env1_out_acc is '0.5', not a number"),
    "accuracy as list": (("env1_out_acc",), [0.5], "not a number"),
    "accuracy true": (("env1_out_acc",), True, "not a number"),
    "accuracy missing": (("env0_in_acc",), ..., "'env0_in_acc' is missing"),
    "accuracy beyond doubles": (("env1_out_acc",), 10**400, "corrupt record"),
    "criterion as text": (("nac_me",), "high", "nac_me is 'high', not a number"),
    "criterion as object": (("nac_me",), {"a": 1}, "not a number"),
    "criterion infinite": (("val_loss",), float("inf"), None),
    "criterion null": (("val_loss",), None, None),
    "args missing": (("args",), ..., "'args' is missing"),
    "args as list": (("args",), [], "args is no object"),
    "args null": (("args",), None, "args is no object"),
    "data set missing": (("args", "dataset"), ..., "'dataset' is missing"),
    "data set as list": (("args", "dataset"), ["a"], "dataset is .*no name"),
    "data set of 200 kB": (("args", "dataset"), "x" * 200_000, "no name of at most 255 characters"),
    "algorithm as number": (("args", "algorithm"), 3, "algorithm is 3, no name"),
    "test_envs as text": (("args", "test_envs"), "0", "test_envs is '0', no list"),
    "test_envs empty": (("args", "test_envs"), [], "test_envs names no environment"),
    "test_envs of text": (("args", "test_envs"), ["0"], "no whole number"),
    "test_envs unknown": (("args", "test_envs"), [99], "'env99_in_acc' is missing"),
    "test_envs null": (("args", "test_envs"), None, "test_envs is None, no list"),
    "trial_seed of 30 digits": (("args", "trial_seed"), 10**30, "trial_seed is .*no whole number of 64 bits"),
    "trial_seed as fraction": (("args", "trial_seed"), 0.7, r"trial_seed is 0\.7, no whole number"),
    "seed null": (("args", "seed"), None, "seed is None"),
    "hparams_seed true": (("args", "hparams_seed"), True, "hparams_seed is True"),
    "hparams as list": (("hparams",), [1], None),
    "hparams missing": (("hparams",), ..., None),
    "nac as text": (("nac",), "x", "not a DomainBed record"),
    "nac as list": (("nac",), [1], "not a DomainBed record"),
    "grid names val_acc": (("nac",), {"grid": {"val_acc": {}, "step": {}, "test_acc": {}, "run": {}}}, None),
    "grid as number": (("nac",), {"grid": 7}, "nac.grid names no settings"),
    "degenerate as text": (("nac",), {"degenerate": "yes"}, "degenerate is 'yes', not a number"),
    "ood as number": (("ood",), 7, "not a DomainBed record"),
    "half a character": (("note",), "\ud800", None),
    "ten thousand keys": (("more",), {str(i): i for i in range(10_000)}, None),
}


def _copy_of_last(run: Path, outside: Path) -> None:
    with (run / "results.jsonl").open("ab") as file:
        file.write((run / "results.jsonl").read_bytes().splitlines(keepends=True)[-1])


def _elsewhere(run: Path, outside: Path) -> None:
    os.rename(run, outside / "run")
    run.symlink_to(outside / "run")


def _million(run: Path, outside: Path) -> None:
    with (run / "results.jsonl").open("ab") as file:
        file.write(b"junk\n" * 10**6)


def _no_run(name: bytes) -> Callable[[Path, Path], object]:
    return lambda run, outside: os.mkdir(os.path.join(os.fsencode(run.parent), name))


DAMAGES: list[Damage] = [
    *(
        Damage(f"line: {name}, {place}", put_line(line, at=at), said=LINES, strict=True)
        for name, line in JUNK.items()
        for place, at in (("first", 0), ("last", 3))
    ),
    *(Damage(f"line: {name}", put_line(line)) for name, line in BLANK.items()),
    *(
        Damage(f"nac.jsonl: {name}", put_line(line, "nac.jsonl"), said=ADDED, strict=True)
        for name, line in JUNK.items()
    ),
    *(
        Damage(
            f"record: {name}",
            put_value(value, *keys),
            ALL if said is None else (0, 20),
            said and f"results\\.jsonl, line 2: .*{said}",
            said is not None,
        )
        for name, (keys, value, said) in VALUES.items()
    ),
    Damage("record: accuracy null", put_value(None, "env1_out_acc"), ALL, "val_acc, per run: undefined at 1"),
    Damage("record: accuracy NaN", put_value(float("nan"), "env1_out_acc"), ALL, "undefined at 1 checkpoint"),
    Damage("nac.jsonl: value of a wrong type", put_line(b'{"step": 10, "ece": "x"}', "nac.jsonl"), ALL,
           r"nac\.jsonl, line 1: not a record of nacme \(ece is 'x'", True),
    Damage("nac.jsonl: unknown step", put_line(b'{"step": 11, "ece": 1}', "nac.jsonl"), ALL, "does not have"),
    Damage("file: cut off", put_bytes(lambda old: old[:-20]), (0, 10), "line 3: truncated record", True),
    Damage("file: tail of nulls", put_bytes(lambda old: old + b"\0" * 4096), ALL, "line 4: null bytes", True),
    Damage("file: nulls before a record", put_bytes(lambda old: b"\0" * 512 + old)),
    Damage("file: byte order mark", put_bytes(lambda old: b"\xef\xbb\xbf" + old)),
    Damage("file: UTF-16", put_bytes(lambda old: old.decode().encode("utf-16")), (), "is UTF-16 text", True),
    Damage("file: gzip", put_bytes(gzip.compress), (), "is a gzip file", True),
    Damage("file: empty", put_bytes(lambda old: b""), (), "without a readable record"),
    Damage("file: Windows line ends", put_bytes(lambda old: old.replace(b"\n", b"\r\n"))),
    Damage("file: no last newline", put_bytes(lambda old: old[:-1])),
    Damage("file: a million lines of junk", _million, ALL, "lines 4, 5, 6 and 999997 more: corrupt", True),
    Damage("file: last record twice", _copy_of_last, ALL, "more than once"),
    Damage("file: a model of a later step", put_value(500, "args", "steps", step=20), ALL, "is of step 499", True),
    *(
        Damage(f"results.jsonl: {kind}", unusual(kind, "results.jsonl"), (), r"s\.jsonl cannot be read", True)
        for kind in ("directory", "pipe", "socket", "dangling", "loop", "device")
    ),
    *(
        Damage(f"{file}: {kind}", unusual(kind, file), ALL, rf"{file} cannot be read", True)
        for file in ("nac.jsonl", "ood.jsonl")
        for kind in ("directory", "pipe", "socket", "dangling", "loop", "device")
    ),
    *(
        Damage(f"{file}: {kind}", unusual(kind, file))
        for file in (".lock", "failed", "out.txt", "err.txt", "model.pkl", "model_step10.pkl", "coverage.npz")
        for kind in ("directory", "pipe", "dangling", "loop", "device")
    ),
    *(Damage(f"{file}: pickle", pickled(file)) for file in ("model.pkl", "model_step10.pkl", "state.pt")),
    Damage("model.pkl: empty", put_bytes(lambda old: b"", "model.pkl")),
    Damage("model.pkl: cut off", put_bytes(lambda old: old[: len(old) // 2], "model.pkl")),
    Damage("model.pkl: flipped bytes", put_bytes(lambda old: old[:200] + b"\xff" * 50 + old[250:], "model.pkl")),
    Damage("model.pkl: another object", lambda run, outside: torch.save([1, 2], run / "model.pkl")),
    Damage(
        "model.pkl: runs when read",
        lambda run, outside: torch.save({"model_dict": {}, "x": Canary(outside / "canary")}, run / "model.pkl"),
    ),
    Damage("model of a huge step", lambda run, outside: (run / f"model_step{10**15}.pkl").touch()),
    Damage("models of strange names", lambda run, outside: [(run / f"model_step{n}.pkl").touch() for n in "x-²"]),
    Damage("run: a link out of the sweep", _elsewhere),
    Damage("beside: a loop of links", lambda run, outside: (run.parent / "loop").symlink_to("loop"), ALL,
           "loop cannot be read", True),
    Damage("beside: a pipe", lambda run, outside: os.mkfifo(run.parent / "pipe")),
    Damage("beside: an empty directory", _no_run(b"empty"), ALL, "without results.jsonl: empty"),
    Damage("beside: a name of escape sequences", _no_run(b"\x1b[2J\x1b]0;owned\x07"), ALL, r"\\x1b\[2J"),
    Damage("beside: a name with a newline", _no_run(b"two\nlines"), ALL, r"two\\nlines"),
    Damage("beside: an undecodable name", _no_run(b"\xff\xfe"), ALL, r"\\udcff"),
    Damage("beside: a name of 255 bytes", _no_run(b"x" * 255), ALL, "x{255}"),
    Damage("beside: a formula", _no_run(b"=cmd()"), ALL, "=cmd"),
]  # fmt: skip
