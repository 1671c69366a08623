"""Candidates beside raw checkpoints: read, chosen among, counted against, and never mixed unasked."""

import json

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

import nacme
from nacme.candidates import kinds, of_kinds
from nacme.cli import app
from nacme.errors import ConfigError, NacmeWarning
from nacme.report.write import write_report
from nacme.study.correlation import rank_correlation
from nacme.study.quality import candidate_gains, selection_quality


def add_averages(sweep, gain=0.02, seed=0):
    """Give every run averages from the fifth checkpoint on, better by so much in validation and test."""
    rng = np.random.default_rng(seed)
    for run in sorted(path for path in sweep.iterdir() if (path / "results.jsonl").exists()):
        records = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
        for record in records:  # room above
            record.update({key: 0.8 * value for key, value in record.items() if key.endswith("acc")})
        (run / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
        lines = []
        for record in records[4:]:
            for kind in ("sma", "ema"):
                better = {
                    k: min(1.0, v + gain + rng.normal(0, 0.001)) for k, v in record.items() if k.endswith("acc")
                }
                lines.append(
                    json.dumps({**record, **better, "candidate": kind, "nac_me": record["nac_me"] + 0.01})
                )
        (run / "averages.jsonl").write_text("\n".join(lines) + "\n")
        (run / "model_sma.pkl").touch()
        (run / "model_step200_ema.pkl").touch()
    return sweep


def add_ensemble(sweep, kind="ensemble:all", accuracy=0.99, test_env=0, trial=0, networks=4):
    envs = {f"env{env}_{split}_acc": accuracy for env in range(3) for split in ("in", "out")}
    args = {"dataset": "RotatedDigits", "algorithm": "ERM", "test_envs": [test_env], "trial_seed": trial}
    record = {"step": 400, "candidate": kind, "networks": networks, "nac_me": 0.9, "val_loss": 0.1, **envs}
    record |= {"args": {**args, "hparams_seed": -1, "seed": -1}, "hparams": {}}
    folder = sweep / "candidates"
    folder.mkdir(exist_ok=True)
    (folder / f"{kind.replace(':', '-')}-{test_env}-{trial}.json").write_text(json.dumps(record))


@pytest.fixture
def sweep(write_sweep, tmp_path):
    return add_averages(write_sweep(tmp_path / "sweep"))


def test_raw_rows_are_what_they_are_without(write_sweep, tmp_path):
    both = nacme.load_sweep(add_averages(write_sweep(tmp_path / "sweep")))
    for path in (tmp_path / "sweep").glob("*/*"):
        if path.name not in ("results.jsonl", "done"):
            path.unlink()
    plain = nacme.load_sweep(tmp_path / "sweep")
    assert kinds(plain) == ["raw"]
    assert kinds(both) == ["raw", "ema", "sma"]
    raw = of_kinds(both, ["raw"]).reset_index(drop=True)
    pd.testing.assert_frame_equal(raw, plain, check_like=True)
    assert len(both) == len(plain) + 24 * 5 * 2
    criteria = ["nac_me", "val_acc", "last", "oracle", "domainbed_oracle", "rank_mean(nac_me, val_acc)"]
    for per in ("run", "sweep"):
        expected = nacme.select(plain, criteria, per)
        found = nacme.select(both, criteria, per, candidates=["raw"])
        pd.testing.assert_frame_equal(found, expected)
        pd.testing.assert_frame_equal(
            rank_correlation(both, criteria[:3], per, n_boot=20),
            rank_correlation(plain, criteria[:3], per, n_boot=20),
        )
        pd.testing.assert_frame_equal(
            selection_quality(both, criteria[:2], per), selection_quality(plain, criteria[:2], per)
        )


def test_averages_know_their_files(sweep):
    df = nacme.load_sweep(sweep)
    sma = df[(df["candidate"] == "sma") & df["checkpoint"].notna()]
    assert set(sma["step"]) == {400}
    assert sma["checkpoint"].str.endswith("model_sma.pkl").all()
    ema = df[(df["candidate"] == "ema") & df["checkpoint"].notna()]
    assert ema["checkpoint"].str.endswith("model_step200_ema.pkl").all()
    assert df.loc[df["candidate"] == "raw", "checkpoint"].isna().all()


def test_the_better_candidate_is_chosen_and_regret_is_against_the_best(sweep):
    df = nacme.load_sweep(sweep)
    chosen = nacme.select(df, "val_acc", "run")
    assert set(chosen["candidate"]) & {"sma", "ema"}
    assert chosen.set_index("run")["value"].to_dict() == df.groupby("run")["val_acc"].max().to_dict()
    assert (chosen["oracle_acc"] >= nacme.select(df, "oracle", "run", candidates=["raw"])["test_acc"]).all()
    assert nacme.select(df, "oracle", "run")["regret"].eq(0).all()
    only = nacme.select(df, "val_acc", "run", candidates=["sma"])
    assert set(only["candidate"]) == {"sma"}
    assert len(chosen) == len(only) == 24


def test_a_tie_goes_to_the_raw_one(sweep):
    chosen = nacme.select(nacme.load_sweep(sweep), "last", "run")
    assert set(chosen["candidate"]) == {"raw"}
    assert set(chosen["step"]) == {400}


def test_candidates_across_runs_are_chosen_across_the_sweep_alone(sweep):
    add_ensemble(sweep)
    df = nacme.load_sweep(sweep)
    assert df.attrs["exclusions"] == []
    row = df[df["candidate"] == "ensemble:all"].iloc[0]
    assert (row["run"], row["hparams_seed"], row["networks"]) == ("candidates/ensemble-all-0-0", -1, 4)
    assert row["checkpoint"] == str(sweep / "candidates" / "ensemble-all-0-0.json")
    per_sweep = nacme.select(df, "val_acc", "sweep").set_index(["test_env", "trial_seed"])
    assert per_sweep.loc[(0, 0), "candidate"] == "ensemble:all"
    assert "ensemble:all" not in set(per_sweep.drop((0, 0))["candidate"])
    pd.testing.assert_frame_equal(
        nacme.select(df, "val_acc", "run"), nacme.select(of_kinds(df, ["raw", "sma", "ema"]), "val_acc", "run")
    )


def test_correlations_are_among_one_kind(sweep):
    df = nacme.load_sweep(sweep)
    raw, sma = (rank_correlation(df, "nac_me", n_boot=20, candidate=kind) for kind in ("raw", "sma"))
    assert set(raw["n_checkpoints"]) == {8 * 8}
    assert set(sma["n_checkpoints"]) == {8 * 5}
    with pytest.raises(ConfigError, match="--candidates 'soup': none are recorded"):
        rank_correlation(df, "nac_me", candidate="soup")


def test_a_kind_stands_for_its_variants(sweep):
    for variant in ("soup:uniform", "soup:greedy"):
        add_ensemble(sweep, variant, networks=1)
    df = nacme.load_sweep(sweep)
    assert kinds(of_kinds(df, ["soup"])) == ["soup:greedy", "soup:uniform"]
    assert kinds(of_kinds(df, ["soup:greedy", "raw"])) == ["raw", "soup:greedy"]


def test_what_each_kind_gains_and_costs(sweep):
    for trial in range(2):
        add_ensemble(sweep, trial=trial)
    df = nacme.load_sweep(sweep)
    table = candidate_gains(df).set_index("candidate")
    assert list(table.index) == ["raw", "ema", "ensemble:all", "sma", "one network", "any"]
    assert table.loc["raw", "gain"] == 0
    assert table.loc["sma", "n_populations"] == 6
    assert table.loc["ensemble:all", ["n_populations", "better", "networks"]].tolist() == [2, 2, 4]
    assert table.loc["one network", "networks"] == 1
    assert table.loc["any", "gain"] > table.loc["one network", "gain"]
    by_hand = (
        nacme.select(df, "val_acc", candidates=["sma"])["test_acc"]
        - nacme.select(df, "val_acc", candidates=["raw"])["test_acc"]
    )
    assert table.loc["sma", "gain"] == pytest.approx(100 * by_hand.mean())
    within = candidate_gains(df, "run").set_index("candidate")
    assert "ensemble:all" not in within.index
    assert within.loc["sma", "n_populations"] == 24


def test_lines_that_are_no_averages_are_named(sweep):
    run = next(path for path in sorted(sweep.iterdir()) if path.is_dir())
    with (run / "averages.jsonl").open("a") as file:
        file.write('{"step": 3, "candidate": "raw"}\n{"step": 3, "candidate": "sma"}\n{"torn')
    (sweep / "candidates").mkdir()
    (sweep / "candidates" / "broken.json").write_text('{"step": 1}')
    with pytest.warns(NacmeWarning) as caught:
        df = nacme.load_sweep(sweep)
    said = " ".join(str(warning.message) for warning in caught)
    for part in ("not a record of an average (candidate is 'raw')", "key 'args' is missing", "broken.json"):
        assert part in said
    assert kinds(df) == ["raw", "ema", "sma"]


def test_the_command_line_says_what_is_chosen_among(sweep):
    result = CliRunner().invoke(app, ["select", str(sweep), "--criterion", "val_acc", "--format", "json"])
    assert "candidates: raw, ema, sma" in result.stderr
    assert {row["candidate"] for row in json.loads(result.stdout)} & {"sma", "ema"}
    raw = CliRunner().invoke(
        app, ["select", str(sweep), "--criterion", "val_acc", "--format", "json", "--candidates", "raw"]
    )
    assert "candidates" not in raw.stderr
    assert {row["candidate"] for row in json.loads(raw.stdout)} == {"raw"}
    mixed = CliRunner().invoke(app, ["correlate", str(sweep), "--candidates", "raw,sma"])
    assert "a correlation is among candidates of one kind" in str(mixed.exception)


def test_the_report_shows_what_candidates_gain(sweep, tmp_path):
    add_ensemble(sweep)
    df = nacme.load_sweep(sweep)
    page = write_report(df, tmp_path / "report.html", criteria=["nac_me", "val_acc"], n_boot=20).read_text()
    assert "What other candidates gain" in page
    assert "ensemble:all" in page
    plain = write_report(
        of_kinds(df, ["raw"]), tmp_path / "raw.html", criteria=["nac_me", "val_acc"], n_boot=20
    ).read_text()
    assert "What other candidates gain" not in plain


def test_figures_show_raw_checkpoints_alone(sweep):
    from nacme import plots

    df = nacme.load_sweep(sweep)
    picks = nacme.select(df, "val_acc", "run", candidates=["raw"])
    for draw in (lambda rows: plots.scatter(rows, "nac_me"), lambda rows: plots.training_curves(rows, picks)):
        both, raw = draw(df), draw(of_kinds(df, ["raw"]))
        for mine, theirs in zip(both.axes, raw.axes, strict=True):
            points = [[part.get_offsets().shape for part in ax.collections] for ax in (mine, theirs)]
            lines = [[line.get_xydata().shape for line in ax.lines] for ax in (mine, theirs)]
            assert points[0] == points[1]
            assert lines[0] == lines[1]
