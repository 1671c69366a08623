"""What training leaves beside DomainBed's files."""

import json

import numpy as np
import pytest

from domainbed_plugins.train import main


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    out = tmp_path_factory.mktemp("run")
    main(
        [
            *("--dataset", "ColoredDigits", "--test_envs", "2", "--steps", "41", "--checkpoint_freq", "10"),
            *("--nac_alpha", "1", "--nac_fill", "0.08", "--output_dir", str(out)),
        ]
    )
    return out


def test_counts_of_the_checkpoint_with_the_best_coverage_are_kept(run):
    records = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    best = max(records, key=lambda record: record["nac_me"])
    with np.load(run / "coverage.npz") as kept:
        assert kept["step"] == best["step"]
        assert kept["nac_me"] == best["nac_me"]
        (layer,) = best["nac"]["layers"]
        counts = kept[f"counts_{layer}"]
        # coverage from the kept counts is the recorded one
        covered = np.minimum(counts / kept["fill"], 1).sum(axis=1) / best["nac"]["bins"]
        assert covered.mean() == pytest.approx(best["nac_me"], abs=1e-6)
    assert counts.shape == (64, 49)
    assert (counts > 0).sum(axis=1).mean() == pytest.approx(best["nac"]["occupied_bins"])


def test_every_line_is_strict_json_with_every_default_criterion(run):
    from nacme.criteria.registry import all_criteria

    def refuse(token):
        raise AssertionError(f"{token} is no JSON")

    expected = {c.name for c in all_criteria().values() if c.is_recorded and c.sees == "ind" and not c.optional}
    expected.remove("sham_permuted")  # needs the other checkpoints, and is written at the end of the run
    for line in (run / "results.jsonl").read_text().splitlines():
        record = json.loads(line, parse_constant=refuse)
        assert expected <= record.keys()
        assert record["nac"]["split"] == "out"
        assert record["nac"]["testbed"].startswith("embedded")
        assert not any(key.startswith("nac") for key in record["args"])
