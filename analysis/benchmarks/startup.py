"""How long it takes to start: imports and the command line, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from analysis.benchmarks.timing import Times

_DATA = """
import torch
model = torch.nn.Sequential(torch.nn.Linear(64, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))
data = [(torch.randn(8, 64), torch.randint(10, (8,))) for _ in range(3)]
"""
#: The plain pass is what a user would write; the other the first measurement in a process.
_PLAIN = """
with torch.no_grad():
    logits = [(model(x), y) for x, y in data]
    sum(torch.nn.functional.cross_entropy(z, y, reduction="sum").item() for z, y in logits)
    sum((z.argmax(1) == y).sum().item() for z, y in logits)
"""
_FIRST = """
import nacme
nacme.measure(model, data, alpha=10.0, bins=10, fill=1, correct_only=False)
"""
COMMANDS = {
    "import torch": [sys.executable, "-c", "import torch"],
    "import nacme": [sys.executable, "-c", "import nacme"],
    "from nacme import measure": [sys.executable, "-c", "from nacme import measure"],
    "import torch, a plain pass": [sys.executable, "-c", _DATA + _PLAIN],
    "import torch, the first nacme.measure": [sys.executable, "-c", _DATA + _FIRST],
    "nacme --help": [sys.executable, "-m", "nacme.cli", "--help"],
}


def measure_startup(repeats: int) -> Times:
    """Time every command.

    Parameters
    ----------
    repeats : int
        Rounds that count, after one that does not.

    Returns
    -------
    Times
        ``processor`` is the child's processor time, user and system.
    """
    wall: dict[str, list[float]] = {name: [] for name in COMMANDS}
    processor: dict[str, list[float]] = {name: [] for name in COMMANDS}
    for number in range(-1, repeats):
        for name, command in COMMANDS.items():
            clock, before = time.perf_counter(), os.times()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=Path(__file__).parents[2])
            elapsed, after = time.perf_counter() - clock, os.times()
            if number >= 0:
                wall[name].append(elapsed)
                spent = after.children_user + after.children_system
                processor[name].append(spent - before.children_user - before.children_system)
    return Times(wall, processor)
