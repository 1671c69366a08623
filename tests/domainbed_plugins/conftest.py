"""Fixtures for running training in tests, here and in a DomainBed clone."""

import json
import math
import runpy
import sys

import numpy as np
import pytest
from PIL import Image

from domainbed_plugins.backends import find as backends
from domainbed_plugins.backends.arguments import STOCK_FLAGS
from domainbed_plugins.train import parser
from domainbed_plugins.training.options import TrainOptions
from domainbed_plugins.training.run import train
from nacme.settings import CoverageSettings

#: What two runs of the same training may differ in.
CLOCKS = {"step_time", "mem_gb"}


def _records(directory, name="results.jsonl"):
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def _same(a, b):
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


@pytest.fixture(scope="session")
def records():
    """Read a run's records."""
    return _records


@pytest.fixture(scope="session")
def unequal_keys():
    """Name the keys of a stock run whose values are others in ours, to the last digit."""

    def compare(stock, ours):
        theirs, mine = _records(stock), _records(ours)
        assert len(theirs) == len(mine) > 1
        unequal = set()
        for a, b in zip(theirs, mine):
            a["args"].pop("output_dir"), b["args"].pop("output_dir")
            unequal |= {key for key in a.keys() - CLOCKS if key not in b or not _same(a[key], b[key])}
        return unequal

    return compare


@pytest.fixture
def in_process(domainbed, monkeypatch):
    """DomainBed with loaders that work in this process, which gives the same numbers on data in memory."""
    monkeypatch.setattr(domainbed.datasets.MultipleDomainDataset, "N_WORKERS", 0)
    return domainbed


@pytest.fixture
def stock_train(in_process, monkeypatch, capsys):
    """DomainBed's own training script, run in this process."""

    def train(argv):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["train", *argv])
            # the script puts its own in their place
            patch.setattr(sys, "stdout", sys.stdout)
            patch.setattr(sys, "stderr", sys.stderr)
            runpy.run_module("domainbed.scripts.train", run_name="__main__")
        capsys.readouterr()

    return train


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory):
    """Images of two colours, in the folders of PACS; none is square."""
    root = tmp_path_factory.mktemp("data")
    generator = np.random.default_rng(0)
    for domain in ("art_painting", "cartoon", "photo", "sketch"):
        for name, colour in (("dog", (200, 60, 60)), ("elephant", (60, 60, 200))):
            (root / "PACS" / domain / name).mkdir(parents=True)
            for i in range(20):
                pixels = generator.normal(colour, 20, (72, 80, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(root / "PACS" / domain / name / f"{i}.png")
    return root


class Crash(BaseException):
    """Stands for a process that dies: nothing catches it."""


@pytest.fixture
def train_run():
    """Train by DomainBed's flags, in this process; ``after`` maps a step to what happens after it."""

    def run(output, *flags, after=None, **options):
        arguments = parser().parse_args([*flags, "--output_dir", str(output)])
        args = {name: getattr(arguments, name) for name in STOCK_FLAGS}

        def on_step(step, n_steps):
            if step in (after or {}):
                after[step]()

        options = {"settings": CoverageSettings(alpha=10.0, fill=0.1), **options}
        train(backends.find(args["dataset"]), args, TrainOptions(on_step=on_step, **options))

    return run


@pytest.fixture
def crash():
    """End a run without a word; ``crash.error`` is what a test catches."""

    def raise_crash():
        raise Crash

    raise_crash.error = Crash
    return raise_crash


@pytest.fixture
def read_records():
    """Read a run's records as text, without what differs from run to run by nature."""

    def read(run):
        lines = []
        for record in _records(run):
            del record["step_time"], record["args"]["output_dir"]
            lines.append(json.dumps(record, sort_keys=True))  # NaN equals NaN in text
        return lines

    return read
