"""Every kind of damage against every command that meets it: an answer, and nothing else."""

import json
import re

import pytest

from domainbed_plugins.runs.saved import find_jobs
from nacme.errors import NacmeError

from .conftest import snapshot
from .damage import DAMAGES


def strictly(text):
    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    return json.loads(text, parse_constant=refuse)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.name)
def test_damage_is_named_and_changes_nothing_else(damage, place, choices, nacme):
    damage.apply(place.run, place.outside)
    outside = snapshot(place.outside)
    name = place.run.name

    select = ("select", place.sweep, "--per", "run", "--format", "json", "--criterion", "nac_me,val_acc")
    answer = nacme(*select)
    assert answer.is_clean()
    assert answer.code == 0, answer.err
    rows = strictly(answer.out)
    keys = ("run", "criterion", "step", "value", "test_acc", "oracle_acc", "regret")
    others, expected = (
        [{key: row[key] for key in keys} for row in table if row["run"] != name] for table in (rows, choices)
    )
    assert others == expected
    assert {row["step"] for row in rows if row["run"] == name} <= set(damage.left)
    assert bool([row for row in rows if row["run"] == name]) == bool(damage.left)
    lines = [line for line in answer.err.splitlines() if "are not finished" not in line]
    if damage.said is None:
        assert not [line for line in lines if "warning" in line], answer.err
    else:
        assert re.search(damage.said, answer.err), answer.err
    assert len(lines) <= 4, answer.err

    strict = nacme(*select, "--strict")
    assert strict.is_clean()
    assert strict.code == int(damage.strict), strict.err
    assert nacme("correlate", place.sweep, "--format", "csv").is_clean()

    status = nacme("sweep", "status", place.spec, "--output_dir", place.sweep, "--format", "json")
    assert status.is_clean()
    assert len(strictly(status.out)) == 3
    assert nacme("export", place.run, 10, "--out", place.sweep.parent / "exported").is_clean()
    failures: list[str] = []
    try:  # as score and detect begin
        find_jobs(place.sweep, failures)
    except NacmeError as error:
        failures.append(str(error))
    assert not [line for line in failures if "\n" in line]

    if not place.run.is_symlink():
        (place.run / "done").unlink(missing_ok=True)
    before = {path.name for path in place.run.glob("model*")}
    assert nacme("prune", place.sweep, "--keep", "last", "--yes").is_clean()
    assert {path.name for path in place.run.glob("model*")} == before  # it is not done
    assert nacme("sweep", "delete", place.spec, "--output_dir", place.sweep, "--yes").is_clean()
    after = snapshot(place.outside)
    assert after == outside
    assert not list(place.outside.glob("canary*"))
    assert not list(place.outside.parent.glob("here/*"))


MODELS = [damage for damage in DAMAGES if damage.name.startswith(("model", "nac.jsonl: p", "nac.jsonl: l", "run"))]


@pytest.mark.timeout(120)
@pytest.mark.parametrize("damage", MODELS, ids=lambda damage: damage.name)
def test_a_spoiled_checkpoint_fails_alone(damage, place, nacme):
    """None of the models is a network, so that each is named once, and nothing is written."""
    damage.apply(place.run, place.outside)
    outside = snapshot(place.outside)
    records = {path: path.read_bytes() for path in place.sweep.glob("*/results.jsonl")}
    answer = nacme("score", place.sweep)
    assert answer.is_clean()
    assert answer.code == 1
    lines = [line for line in answer.err.splitlines() if "/model" in line]
    assert len(lines) == len(set(lines)) >= 6, answer.err
    assert nacme("detect", place.sweep).is_clean()
    assert {path: path.read_bytes() for path in records} == records
    assert snapshot(place.outside) == outside


def test_delete_follows_no_link(place, nacme):
    """Neither one in place of a run, nor one in it."""
    moved = place.outside / "moved"
    place.run.rename(moved)
    place.run.symlink_to(moved)
    (moved / "done").unlink()
    other = max(place.sweep.iterdir())
    (other / "done").unlink()
    (other / "link").symlink_to(place.outside)
    outside = snapshot(place.outside)
    answer = nacme("sweep", "delete", place.spec, "--output_dir", place.sweep, "--yes")
    assert answer.code == 0
    assert "is a link; left alone" in answer.err
    assert answer.err.strip().endswith("deleted 1 runs")
    assert not other.exists()
    assert snapshot(place.outside) == outside
