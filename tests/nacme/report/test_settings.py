"""The report's sections on coverage itself: real counts, and a grid of settings."""

import json

import numpy as np
import pandas as pd
import pytest

from nacme import load_sweep, rank_correlation, select
from nacme.report.settings import _label
from nacme.report.write import write_report
from nacme.study.sensitivity import nested_seeing_target, sensitivity

GRID = {
    f"nac_me_a{alpha}_m50_o{fill}": {"alpha": alpha, "bins": 50, "fill": fill}
    for alpha in ("0p1", "1p0")
    for fill in ("500", "0p08")
}
GRID |= {f"{key}_in": {**setting, "split": "in"} for key, setting in GRID.items()}


@pytest.fixture
def sweep(write_sweep, tmp_path):
    """A simulated sweep whose records hold a grid too."""
    root = write_sweep(tmp_path / "sweep", hparams_seeds=2, trial_seeds=1)
    rng = np.random.default_rng(0)
    for path in root.glob("*/results.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        for line in lines:
            line.update({key: line["nac_me"] + rng.normal(0, 0.05) for key in GRID})
            line["nac"]["grid"] = GRID
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return root


def test_settings_are_shown_and_exported_as_the_statistics_give_them(sweep, tmp_path):
    df = load_sweep(sweep)
    page = write_report(df, tmp_path / "report.html", export=tmp_path / "export", n_boot=50).read_text()
    assert "Sensitivity to NAC-ME" in page
    for name in ("settings-kendall-tau", "settings-regret"):
        assert (tmp_path / "export" / f"{name}.png").stat().st_size > 1000
        assert (tmp_path / "export" / f"{name}.pdf").exists()
    exported = pd.read_csv(tmp_path / "export" / "settings.csv", dtype={"fill": str}).set_index("key")
    expected = sensitivity(df).groupby("key")[["kendall_tau", "regret"]].mean()
    for key in GRID:
        assert exported.loc[key, "kendall_tau"] == pytest.approx(expected.loc[key, "kendall_tau"])
        assert exported.loc[key, "regret"] == pytest.approx(expected.loc[key, "regret"])
    assert set(exported["fill"]) == {"500", "0.08"}
    nested = pd.read_csv(tmp_path / "export" / "settings-nested.csv")
    means = nested[nested["test_env"] == "mean"].set_index("choice")["kendall_tau"]
    by_hand = nested_seeing_target(df).groupby("choice")["kendall_tau"].mean()
    assert means.to_dict() == pytest.approx(by_hand.to_dict())


def test_settings_on_several_splits_are_not_averaged(sweep):
    table = sensitivity(load_sweep(sweep)).assign(alpha=lambda t: t["alpha"].map(str))
    labels = [_label(row, table) for row in table.to_dict("records")]
    assert table.assign(label=labels).groupby(["alpha", "label", "test_env"]).size().eq(1).all()
    assert {label.split()[-1] for label in labels} == {"main", "in"}


def test_controls_stand_beside_coverage_and_are_marked(sweep, tmp_path):
    for path in sweep.glob("*/results.jsonl"):
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        steps = [{**line, "sham_count": line["step"]} for line in lines]
        path.write_text("".join(json.dumps(line) + "\n" for line in steps))
    df = load_sweep(sweep)
    page = write_report(df, tmp_path / "report.html", export=tmp_path / "export", n_boot=50).read_text()
    assert "Coverage and its controls" in page
    found = pd.read_csv(tmp_path / "export" / "controls.csv")
    expected = rank_correlation(df, ["nac_me", "sham_count"], n_boot=50)
    assert found["kendall_tau"].tolist() == pytest.approx(expected["kendall_tau"].tolist())
    assert set(found.loc[found["criterion"] == "sham_count", "what"]) == {"control"}
    summary = pd.read_csv(tmp_path / "export" / "summary-run.csv")
    assert "sham_count" not in set(summary["criterion"])


def test_without_a_grid_or_counts_there_are_no_such_sections(simulated_sweep, tmp_path):
    page = write_report(load_sweep(simulated_sweep), tmp_path / "report.html", n_boot=50).read_text()
    assert "Sensitivity to NAC-ME" not in page
    assert "What coverage looks like" not in page


def test_coverage_of_the_chosen_checkpoint_is_drawn_from_its_kept_counts(sweep, tmp_path):
    df = load_sweep(sweep)
    pick = select(df, "nac_me").sort_values("value", ascending=False).iloc[0]
    counts = np.zeros((6, 49), dtype=np.int64)
    counts[:, 20:30] = 7  # ten occupied bins for every neuron
    kept = {"nac_me": pick["value"], "fill": 5.0, "counts_classifier:input": counts}

    np.savez_compressed(sweep / pick["run"] / "coverage.npz", step=int(pick["step"]), **kept)
    page = write_report(df, tmp_path / "a.html", n_boot=50, export=tmp_path / "export").read_text()
    assert "What coverage looks like" in page
    assert "6 neurons of classifier:input: 10.0 of 49 bins hold states" in page
    assert (tmp_path / "export" / "coverage-RotatedDigits.png").exists()

    # counts of another step are not those of the chosen checkpoint
    np.savez_compressed(sweep / pick["run"] / "coverage.npz", step=int(pick["step"]) + 1, **kept)
    assert "What coverage looks like" not in write_report(df, tmp_path / "b.html", n_boot=50).read_text()
