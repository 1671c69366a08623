"""The one way in which records are read: lines of JSON, each of which is read, or named with its reason."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import orjson

from nacme.system import files

#: A step beyond is no count of anything, and no number that a table of doubles tells from the next.
MOST_STEPS = 2**53
_NAMED_LINES = 3
#: What Python writes and strict JSON does not know: no number, infinity, half of a pair of surrogates.
_PYTHONS = (b"NaN", b"Infinity", b"\\u")
#: First bytes of what is no text in UTF-8, and what to call it.
_FOREIGN = ((b"\xff\xfe", "UTF-16 text"), (b"\xfe\xff", "UTF-16 text"), (b"\x1f\x8b", "a gzip file"))


@dataclass
class Faults:
    """What could not be read: a line of text for each file and reason, however many lines it concerns."""

    _lines: dict[tuple[str, str], list[int]] = field(default_factory=dict)
    _counts: dict[tuple[str, str], int] = field(default_factory=dict)

    def add(self, path: str, number: int | None, reason: str) -> None:
        """Note a line, or, without a number, a whole file."""
        key = path, reason
        self._counts[key] = self._counts.get(key, 0) + 1
        numbers = self._lines.setdefault(key, [])
        if number is not None and len(numbers) < _NAMED_LINES:
            numbers.append(number)

    def texts(self) -> list[str]:
        """Say it."""
        said = []
        for (path, reason), numbers in self._lines.items():
            more = self._counts[path, reason] - len(numbers)
            if not numbers:
                said.append(f"{path} {reason}")
                continue
            where = f"line{'s' * (len(numbers) + more > 1)} {', '.join(map(str, numbers))}"
            said.append(f"{path}, {where}{f' and {more} more' if more else ''}: {reason}")
        return said


def read_lines(path: str, faults: Faults) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield line number and record of each line of a file that is a record: an object with a step.

    Parameters
    ----------
    path : str
        Of a file that exists.
    faults : Faults
        Receives the other lines, or the file if it cannot be read at all. Blank lines count as nothing.

    Yields
    ------
    int
        From 1.
    dict
        ``step`` is a whole number from 0.
    """
    try:
        content = files.read_bytes(path)
    except OSError as error:
        faults.add(path, None, f"cannot be read ({error.strerror}); skipped")
        return
    for start, what in _FOREIGN:
        if content.startswith(start):
            faults.add(path, None, f"is {what}, not lines of JSON; skipped")
            return
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if not (text := line.strip(b" \t\r\0")):
            faults.add(path, number, "null bytes, as a crash leaves them; skipped, the rest is kept")
            continue
        record = parse(text)
        if record is None:
            # a line that is whole ends in a newline, so something would follow it in the split
            fault = "truncated" if number == len(lines) else "corrupt"
            faults.add(path, number, f"{fault} record; skipped, the rest is kept")
            continue
        step = as_step(record.get("step"))
        if step is None:
            fault = "its step is no whole number from 0" if "step" in record else "it has no step"
            faults.add(path, number, f"corrupt record ({fault}); skipped, the rest is kept")
            continue
        record["step"] = step
        yield number, record


def parse(text: bytes) -> dict[str, Any] | None:
    """Read a JSON object; None for anything else."""
    if not text.startswith(b"{"):
        return None
    value: Any
    try:
        value = orjson.loads(text)
    except ValueError:
        if not any(token in text for token in _PYTHONS):
            return None
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def as_step(value: object) -> int | None:
    """Read a step; None for what is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    whole = 0 <= value < MOST_STEPS and value == int(value)
    return int(value) if whole else None
