"""Sweeps whose runs have several test envs: single source, as the NAC authors' own example, and pairs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau
from typer.testing import CliRunner

import nacme
from nacme.cli import app
from nacme.errors import ConfigError
from nacme.report import write_report
from nacme.study.authors import authors_rank_correlation, authors_table
from nacme.study.comparison import compare_criteria
from nacme.study.quality import selection_quality
from nacme.targets import observations


def write_runs(root: Path, held_out: list[list[int]], envs: int = 4, seeds: int = 3, steps: int = 6) -> Path:
    rng = np.random.default_rng(0)
    for test_envs in held_out:
        for seed in range(seeds):
            directory = root / f"{'_'.join(map(str, test_envs))}-{seed}"
            directory.mkdir(parents=True)
            lines = []
            for step in range(steps):
                accs = 0.4 + 0.05 * step + rng.normal(0, 0.05, (envs, 2))
                args = {"dataset": "Toy", "algorithm": "ERM", "test_envs": test_envs, "trial_seed": 0}
                record: dict[str, Any] = {"step": 10 * step, "args": {**args, "hparams_seed": seed, "seed": seed}}
                for env, (inside, outside) in enumerate(accs.tolist()):
                    record |= {f"env{env}_in_acc": inside, f"env{env}_out_acc": outside}
                record["nac_me"] = float(0.1 * accs[test_envs, 0].mean() + rng.normal(0, 0.005))
                record["val_loss"] = float(rng.normal())
                lines.append(json.dumps(record))
            (directory / "results.jsonl").write_text("\n".join(lines) + "\n")
            (directory / "done").touch()
    return root


@pytest.fixture(scope="module")
def single_source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    held_out = [[t for t in range(4) if t != source] for source in range(4)]
    return write_runs(tmp_path_factory.mktemp("single") / "sweep", held_out)


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_runs(tmp_path_factory.mktemp("mixed") / "sweep", [[0], [1], [2], [0, 1], [0, 2], [1, 2]], envs=3)


def test_the_mean_is_one_observation_a_run(single_source: Path) -> None:
    df = nacme.load_sweep(single_source)
    table = nacme.rank_correlation(df, ["nac_me"], targets="mean").set_index("test_env")
    assert list(table.index) == ["0,1,2", "0,1,3", "0,2,3", "1,2,3"]
    for names, of_source in df.groupby("test_envs"):
        taus = []
        for _, run in of_source.groupby("run"):
            acc = run.groupby("step")["test_acc"].mean().iloc[1:]
            taus.append(kendalltau(run.drop_duplicates("step")["nac_me"].iloc[1:], acc).statistic)
        assert table.loc[names, "kendall_tau"] == pytest.approx(np.mean(taus))
        assert (table.loc[names, "n_runs"], table.loc[names, "n_checkpoints"]) == (3, 15)


def test_a_choice_is_right_for_all_targets_at_once(single_source: Path) -> None:
    df = nacme.load_sweep(single_source)
    chosen = nacme.select(df, ["nac_me", "oracle"], per="run", targets="mean")
    assert len(chosen) == 2 * df["run"].nunique()
    means = df.groupby(["run", "step"])["test_acc"].mean()
    for row in chosen.to_dict("records"):
        assert row["test_acc"] == pytest.approx(means[row["run"], row["step"]])
        assert row["oracle_acc"] == pytest.approx(means[row["run"]].max())
    assert (chosen.query("criterion == 'oracle'")["regret"] == 0).all()


def test_each_test_env_by_itself_never_mixes_runs_that_trained_on_other_envs(single_source: Path) -> None:
    df = nacme.load_sweep(single_source)
    for population in ("run", "sweep"):
        table = nacme.rank_correlation(df, ["nac_me", "val_acc"], population, targets="each")  # type: ignore[arg-type]
        assert len(table) == 2 * 12
        assert pd.api.types.is_integer_dtype(table["test_env"])
        assert list(table.columns)[-1] == "train_envs"
        assert table["n_runs"].eq(3).all()
        for row in table.to_dict("records"):
            here = df[(df["test_env"] == row["test_env"]) & df["step"].gt(0)]
            here = here[[str(row["train_envs"]) not in envs.split(",") for envs in here["test_envs"]]]
            if population == "sweep":
                expected = kendalltau(here[row["criterion"]], here["test_acc"]).statistic
                assert row["kendall_tau"] == pytest.approx(expected)
    chosen = nacme.select(df, "nac_me", targets="each")
    assert len(chosen) == 12
    assert set(zip(chosen["train_envs"], chosen["test_env"])) == {
        (str(s), t) for s in range(4) for t in range(4) if s != t
    }


def test_without_a_word_the_mean_is_taken_where_all_runs_have_several_and_this_is_said(
    single_source: Path,
) -> None:
    df = nacme.load_sweep(single_source)
    said = nacme.rank_correlation(df, ["nac_me"])
    pd.testing.assert_frame_equal(said, nacme.rank_correlation(df, ["nac_me"], targets="mean"))
    assert "12 of 12 runs have several test envs: test accuracy is the mean" in said.attrs["notes"][0]
    assert set(selection_quality(df, ["nac_me"], "run")["test_env"]) == set(said["test_env"])
    assert set(compare_criteria(df, "nac_me", n_boot=10)["test_env"]) == set(said["test_env"])


def test_pairs_beside_single_test_envs_keep_to_leave_one_out_unless_asked_for(mixed: Path) -> None:
    df = nacme.load_sweep(mixed)
    alone = df[df["n_test_envs"] == 1]
    plain = nacme.rank_correlation(df, ["nac_me"])
    pd.testing.assert_frame_equal(plain, nacme.rank_correlation(alone, ["nac_me"]))
    assert "left out: 9 of 18 runs" in plain.attrs["notes"][0]
    pd.testing.assert_frame_equal(nacme.select(df, "val_acc"), nacme.select(alone, "val_acc"))
    assert nacme.select(df, "leave_one_out")["run"].notna().all()
    mean = nacme.rank_correlation(df, ["nac_me"], targets="mean")
    assert mean["test_env"].tolist() == [0, "0,1", "0,2", 1, "1,2", 2]
    each = nacme.rank_correlation(df, ["nac_me"], targets="each")
    assert list(zip(each["test_env"], each["train_envs"])) == [
        (0, "1"), (0, "1,2"), (0, "2"), (1, "0"), (1, "0,2"), (1, "2"), (2, "0"), (2, "0,1"), (2, "1")
    ]  # fmt: skip


def test_a_missing_target_leaves_no_mean(single_source: Path) -> None:
    df = nacme.load_sweep(single_source)
    df.loc[0, "test_acc"] = float("nan")
    rows, _ = observations(df, "mean")
    assert np.isnan(rows.loc[(rows["run"] == df["run"][0]) & (rows["step"] == df["step"][0]), "test_acc"].item())
    assert rows["test_acc"].isna().sum() == 1


def test_runs_with_one_test_env_are_as_they_are_whatever_the_targets(simulated_sweep: Path) -> None:
    df = nacme.load_sweep(simulated_sweep)
    for targets in ("each", "mean"):
        assert observations(df, targets)[1] is None  # type: ignore[arg-type]
        pd.testing.assert_frame_equal(
            nacme.rank_correlation(df, ["nac_me"], targets=targets),  # type: ignore[arg-type]
            nacme.rank_correlation(df, ["nac_me"]),
        )
    with pytest.raises(ConfigError, match="targets must be 'each' or 'mean'"):
        nacme.select(df, targets="all")  # type: ignore[arg-type]


@pytest.mark.parametrize(("targets", "cells"), [("each", 12), ("mean", 4), (None, 4)])
def test_the_commands_take_targets(single_source: Path, targets: str | None, cells: int) -> None:
    flags = ["--targets", targets] if targets else []
    for command in ("select", "correlate"):
        asked = [command, str(single_source), "--criterion", "nac_me", "--format", "json", *flags]
        done = CliRunner().invoke(app, asked)
        rows = json.loads(done.stdout)
        assert len(rows) == cells
        assert "test env" in done.stderr


@pytest.mark.parametrize("targets", ["each", "mean", None])
def test_the_report_says_what_a_test_env_is(single_source: Path, targets: Any, tmp_path: Path) -> None:
    df = nacme.load_sweep(single_source)
    page = write_report(df, tmp_path / "r.html", n_boot=20, targets=targets).read_text()
    if targets == "each":
        assert "1 from 0" in page
        assert "each test env of a run by itself" in page
    else:
        assert "1,2,3" in page
        assert "test accuracy is the mean over them" in page


GOLDEN = sorted((Path(__file__).parents[1] / "golden").glob("rank_correlation_*.npz"))


@pytest.mark.parametrize("path", GOLDEN, ids=lambda p: p.stem)
def test_the_authors_formula_is_theirs_where_nothing_ties(path: Path) -> None:
    golden = np.load(path, allow_pickle=False)
    for i, kind in enumerate(golden["kind"]):
        value = authors_rank_correlation(golden[f"x{i}"], golden[f"y{i}"])
        if kind.startswith("noties"):
            assert value == pytest.approx(golden["official"][i], abs=1e-12)
    assert np.isnan(authors_rank_correlation([1.0], [2.0]))


def test_the_authors_formula_gives_a_constant_what_it_gives_the_step() -> None:
    accuracy = np.random.default_rng(3).normal(size=40)
    step = np.arange(40)
    # 40 values: an unstable sort would shuffle the ties
    assert authors_rank_correlation(np.ones(40), accuracy) == authors_rank_correlation(step, accuracy)
    # by hand: ranks 0 1 2 of the constant against 2 0 1: 1 - 6 (4 + 1 + 1) / (3 * 8)
    assert authors_rank_correlation([7, 7, 7], [0.9, 0.1, 0.5]) == pytest.approx(-0.5)


def test_the_authors_table_is_made_their_way_with_ours_beside(single_source: Path) -> None:
    df = nacme.load_sweep(single_source)
    table = authors_table(df, ["nac_me"]).set_index(["test_env", "criterion"])
    assert list(table.loc["1,2,3"].index) == ["nac_me", "val_acc", "last", "constant", "oracle_test_out"]
    found: dict[str, list[float]] = {"test_acc": [], "authors_rank_correlation": [], "kendall_tau": []}
    for _, run in df[df["test_envs"] == "1,2,3"].groupby("run"):
        means = run.groupby("step")[["test_acc", "test_out_acc", "nac_me"]].mean()  # step 0 is there
        score, accuracy = means["nac_me"].to_numpy(), means["test_acc"].to_numpy()
        found["test_acc"].append(accuracy[score.argmax()])
        apart = score.argsort().argsort() - accuracy.argsort().argsort()
        found["authors_rank_correlation"].append(1 - 6 * (apart**2).sum() / (6 * 35))
        found["kendall_tau"].append(kendalltau(score, accuracy).statistic)
    for column, values in found.items():
        assert table.loc[("1,2,3", "nac_me"), column] == pytest.approx(np.mean(values))
    assert table.loc[("1,2,3", "nac_me"), "n_checkpoints"] == 18
    by = "authors_rank_correlation"
    sources = ["0,1,2", "0,1,3", "0,2,3", "1,2,3"]
    for name in ("nac_me", "val_acc"):
        mean = np.mean([table.loc[(source, name), by] for source in sources])
        assert table.loc[("average", name), by] == pytest.approx(mean)
    constant, last = table.loc[("average", "constant")], table.loc[("average", "last")]
    assert constant[by] == last[by]
    assert np.isnan(constant["kendall_tau"])
    assert np.isfinite(last["kendall_tau"])


def test_correlate_prints_the_authors_table(single_source: Path) -> None:
    asked = ["correlate", str(single_source), "--criterion", "nac_me", "--format", "json", "--authors-way"]
    done = CliRunner().invoke(app, asked)
    rows = json.loads(done.stdout)
    assert len(rows) == 5 * 5
    assert {row["test_env"] for row in rows} == {"0,1,2", "0,1,3", "0,2,3", "1,2,3", "average"}
    assert next(row for row in rows if row["criterion"] == "constant")["spearman_rho"] is None
    assert "coverage selects 58.1%" in done.stderr
    refused = CliRunner().invoke(app, [*asked, "--targets", "each"])
    assert isinstance(refused.exception, ConfigError)
