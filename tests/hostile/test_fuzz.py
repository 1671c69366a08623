"""Anything at all as records, specifications, criteria and caches: only errors of our own leave, and none is lost.

A small share runs in ``make test``; ``make test-long`` tries 50,000 of each.
"""

import contextlib
import json
import tempfile
import warnings
from pathlib import Path

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domainbed_plugins.sweep.spec_file import parse_spec
from nacme.criteria.registry import get_criterion
from nacme.errors import NacmeError
from nacme.records import cache
from nacme.records.lines import Faults, read_lines
from nacme.records.run import read_run
from nacme.records.table import Table

from .conftest import SPEC
from .damage import BLANK, JUNK

FEW, MANY = 300, 50_000

numbers = st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from([10**30, -0.0, 1e308, 2**63])
values = st.recursive(
    numbers | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=10,
)
ARGS = {"dataset": "a", "algorithm": "b", "test_envs": [0], "trial_seed": 0, "hparams_seed": 0, "seed": 0}
ACCURACIES = {f"env{env}_{part}_acc": 0.5 for env in range(3) for part in ("in", "out")}
KEYS = [*ACCURACIES, "step", "args", "hparams", "nac", "ood", "nac_me", "val_loss", "ece", "candidate"]


@st.composite
def record_lines(draw):
    """A line that is nearly a record, or not at all."""
    kind = draw(st.integers(0, 5))
    if kind == 0:
        return draw(st.binary(max_size=60)).replace(b"\n", b"")
    if kind == 1:
        return draw(st.sampled_from([*JUNK.values(), *BLANK.values()]))
    record = {"step": draw(st.integers(0, 3)), "args": dict(ARGS), "hparams": {}, **ACCURACIES}
    for key in draw(st.lists(st.sampled_from(KEYS), max_size=2)):
        record[key] = draw(values)
    if draw(st.booleans()) and isinstance(record["args"], dict):
        record["args"][draw(st.sampled_from([*ARGS, "steps"]))] = draw(values)
    if draw(st.booleans()) and record.get("nac") is None:
        record["nac"] = draw(st.dictionaries(st.sampled_from(["grid", "alpha", "degenerate", "bins"]), values))
    line = json.dumps(record).encode()
    if kind == 2:
        position = draw(st.integers(0, len(line)))
        line = line[:position] + draw(st.binary(max_size=3)).replace(b"\n", b"") + line[position + 2 :]
    return line


def check_records(content, added):
    with tempfile.TemporaryDirectory() as directory:
        for name, lines in (("results.jsonl", content), ("nac.jsonl", added)):
            Path(directory, name).write_bytes(b"\n".join(lines))
        faults = Faults()
        path = str(Path(directory, "results.jsonl"))
        read = list(read_lines(path, faults))
        run = read_run(
            directory, "run", frozenset(["results.jsonl", "nac.jsonl"]), frozenset(["nac_me"]), keep=True
        )
        table = Table.of_runs([run], [])
    whole = not any(text.endswith("not lines of JSON; skipped") for text in faults.texts())
    filled = [line for line in b"\n".join(content).removeprefix(b"\xef\xbb\xbf").split(b"\n") if line.strip()]
    if whole:  # every line is read or named
        assert len(read) + sum(faults._counts.values()) == len(filled)
    assert set(run.records) <= {record["step"] for _, record in read}
    if len(run.records) < len({record["step"] for _, record in read}):
        assert run.skipped
    for name in ("test_acc", "val_acc"):
        column = table.columns.get(name, [])
        assert all(value != value or -1e-5 <= value <= 1 + 1e-5 for value in column)


def check_spec(content):
    for given_content in (content, {**yaml.safe_load(SPEC), **content} if isinstance(content, dict) else content):
        with contextlib.suppress(NacmeError):
            parse_spec(given_content)


def check_criterion(text):
    with contextlib.suppress(NacmeError):
        assert get_criterion(text).name


TABLE = Table.of_runs([], ["a"])


def check_cache(position, change):
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, cache.NAME)
        with path.open("wb") as file:
            TABLE.save(file, "about")
        whole = path.read_bytes()
        place = int(position * len(whole))
        path.write_bytes(whole[:place] + change + whole[place + len(change) :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            table = cache.load(Path(directory), "about")
    assert table is None or table.facts["bare"] == ["a"] or isinstance(table.facts["bare"], list)


PIECES = ["rank_mean", "running_mean", "(", ")", ",", "nac_me", " ", "val_acc", "3", "*", "\0", "'"]
SPEC_KEYS = [*yaml.safe_load(SPEC), "nac", "resources", "criteria", "keep", "hparams", "trial_seeds", "n_workers"]
FUZZ = {
    "records": (
        check_records,
        st.tuples(st.lists(record_lines(), max_size=5), st.lists(record_lines(), max_size=2)),
    ),
    "specifications": (check_spec, st.tuples(values | st.dictionaries(st.sampled_from(SPEC_KEYS), values))),
    "criteria": (check_criterion, st.tuples(st.text() | st.lists(st.sampled_from(PIECES)).map("".join))),
    "caches": (check_cache, st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=40))),
}


def fuzz(kind, count):
    check, strategy = FUZZ[kind]

    @settings(max_examples=count, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(strategy)
    def run(arguments):
        check(*arguments)

    run()


@pytest.mark.parametrize("kind", FUZZ)
def test_anything_is_answered(kind):
    fuzz(kind, FEW)


@pytest.mark.long
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", FUZZ)
def test_much_of_anything_is_answered(kind):
    fuzz(kind, MANY)
