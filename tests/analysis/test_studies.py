"""A study is kept, analysed to the same bytes, checked by SciPy alone and trained again to the same numbers."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import kendalltau, sem, t

import nacme
import nacme.targets
from domainbed_plugins.scoring.options import ScoreOptions
from domainbed_plugins.scoring.run import score
from nacme.settings import CoverageSettings

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from analysis.studies import controls, records, rerun, tables  # noqa: E402

STUDIES = ROOT / "analysis" / "studies"


@pytest.fixture(scope="module")
def study(small_sweep, tmp_path_factory):
    folder = tmp_path_factory.mktemp("studies")
    records.keep(small_sweep / "sweep", folder / "digits", small_sweep / "spec.yaml")
    again = folder.with_name("measured_again")
    shutil.copytree(small_sweep / "sweep", again)
    settings = CoverageSettings(alpha=1, fill=0.08)
    score(again, None, ScoreOptions(settings, grid=(CoverageSettings(alpha=0.1, bins=20, fill=0.08),), split="in"))
    records.keep_inside(again, folder / "digits")
    return folder


def script(name, *arguments):
    command = [sys.executable, "-m", f"analysis.studies{name}", *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_is_kept_is_what_was_recorded(study, small_sweep):
    about = json.loads((study / "digits" / "about.json").read_text())
    assert (about["runs"], about["checkpoints"]) == (4, 20)
    assert about["versions"]["Testbed"].startswith("embedded")
    kept = pd.read_parquet(study / "digits" / "records.parquet")
    there = nacme.load_sweep(small_sweep / "sweep")
    assert str(small_sweep).encode() not in (study / "digits" / "records.parquet").read_bytes()
    pd.testing.assert_frame_equal(kept.drop(columns="checkpoint"), there.drop(columns="checkpoint"))


def test_the_same_records_give_the_same_bytes_and_scipy_agrees(study):
    script("", study)
    once = files(study)
    assert {Path("overview.svg"), Path("results.md"), Path("digits/settings.svg")} <= set(once)
    script("", study)
    assert files(study) == once
    tables = re.findall(r"(?:^\|.*\n)+", (study / "results.md").read_text(), re.MULTILINE)
    assert len(tables) == 11
    assert all(len({line.count(" | ") for line in table.splitlines()}) == 1 for table in tables)
    said = script(".check", study / "digits")
    worst = [float(part.split()[-1]) for part in said.splitlines()[-1].split(": ", 1)[1].split(",")]
    assert max(worst) < 1e-6


def test_coverage_of_the_training_splits_is_compared_at_the_same_checkpoints(study):
    script("", study)
    kept = pd.read_parquet(study / "digits" / "records.parquet")
    inside = pd.read_parquet(study / "digits" / "records_in.parquet")
    assert len(inside) == len(kept)
    found = pd.read_csv(study / "digits" / "splits.csv").set_index("key")
    assert list(found.index) == ["nac_me", "nac_me_a0p1_m20_o0p08"]
    taus = {}
    for where, table in (
        ("out", kept),
        ("in", inside.merge(kept[["run", "step", "test_acc"]], on=["run", "step"])),
    ):
        runs = table[table["step"] > 0].groupby("run")
        taus[where] = runs.apply(lambda run: kendalltau(run["nac_me"], run["test_acc"]).statistic)
    assert found.loc["nac_me", "tau_out"] == pytest.approx(taus["out"].mean(), abs=1e-6)
    assert found.loc["nac_me", "tau_in"] == pytest.approx(taus["in"].mean(), abs=1e-6)
    assert found.loc["nac_me", "in_less_out"] == pytest.approx((taus["in"] - taus["out"]).mean(), abs=1e-6)


def test_the_choice_on_the_other_test_envs_is_blind_to_the_accuracy_it_is_judged_on(study):
    script("", study)
    before = (
        pd.read_csv(study / "digits" / "nested_settings.csv")
        .query("choice == 'nested_seeing_target'")
        .set_index("test_env")
    )
    kept = pd.read_parquet(study / "digits" / "records.parquet")
    other = study.with_name("other") / "digits"
    other.mkdir(parents=True)
    turned = kept.assign(test_acc=kept["test_acc"].where(kept["test_env"] == 1, 1 - kept["test_acc"]))
    turned.to_parquet(other / "records.parquet")
    script("", other.parent)
    after = (
        pd.read_csv(other / "nested_settings.csv").query("choice == 'nested_seeing_target'").set_index("test_env")
    )
    assert after.loc[0, "key"] == before.loc[0, "key"]
    assert after.loc[0, "kendall_tau"] == pytest.approx(-before.loc[0, "kendall_tau"])


def test_the_papers_tables_are_those_that_the_records_give():
    findings = (STUDIES / "README.md").read_text().partition("\n## Results\n")[2]
    said = [line for line in findings.splitlines() if line.startswith("| ")]
    made = set((STUDIES / "results.md").read_text().splitlines())
    assert len(said) > 20
    assert [line for line in said if line not in made] == []


@pytest.mark.slow
def test_the_stored_results_are_those_that_the_records_give(tmp_path):
    for path in STUDIES.glob("*/*.parquet"):
        (tmp_path / path.parent.name).mkdir(exist_ok=True)
        shutil.copy(path, tmp_path / path.parent.name)
    script("", tmp_path)
    assert (tmp_path / "results.md").read_text() == (STUDIES / "results.md").read_text()
    assert sum(path.stat().st_size for path in STUDIES.glob("*/*.parquet")) < 5e6
    for path in STUDIES.glob("*/records.parquet"):
        said = script(".check", path.parent)
        worst = [float(part.split()[-1]) for part in said.splitlines()[-1].split(": ", 1)[1].split(",")]
        assert max(worst) < 1e-6


def test_a_study_holds_what_is_finished_and_more_can_be_added(small_sweep, tmp_path):
    part = tmp_path / "part"
    shutil.copytree(small_sweep / "sweep", part)
    runs = sorted(path.parent for path in part.glob("*/done"))
    (runs[0] / "done").unlink()
    records.keep(part, tmp_path / "study", small_sweep / "spec.yaml")
    about = json.loads((tmp_path / "study" / "about.json").read_text())
    assert (about["runs"], about["planned"], about["checkpoints"]) == (3, 4, 15)
    script("", tmp_path)
    assert "| 3 of 4 |" in (tmp_path / "results.md").read_text()
    for run in runs[1:]:
        shutil.rmtree(run)
    (runs[0] / "done").touch()
    records.keep(part, tmp_path / "study", small_sweep / "spec.yaml", merge=True)
    merged = pd.read_parquet(tmp_path / "study" / "records.parquet")
    records.keep(small_sweep / "sweep", tmp_path / "whole", small_sweep / "spec.yaml")
    pd.testing.assert_frame_equal(merged, pd.read_parquet(tmp_path / "whole" / "records.parquet"))
    assert json.loads((tmp_path / "study" / "about.json").read_text())["runs"] == 4


DECLARED = "nac_me_a1_m50_o0p1_out"


def recorded(held_out, seeds=3, checkpoints=8, seed=0, dataset="Toy"):
    """Build records as later studies have them: settings on two splits, and shams."""
    rng = np.random.default_rng(seed)
    rows = []
    for test_envs in held_out:
        for hparams in range(seeds):
            for index in range(checkpoints):
                accs = {env: 0.3 + 0.03 * index + rng.normal(0, 0.05) for env in test_envs}
                mean = float(np.mean(list(accs.values())))
                own = {name: mean + rng.normal(0, 0.05) for name in ("val_acc", "nac_me", "nac_me_all", DECLARED)}
                own |= {name: rng.normal() for name in tables.RECORDED if name.isidentifier() and name != "last"}
                own |= {"val_acc": mean + rng.normal(0, 0.05), "nac_me": mean + rng.normal(0, 0.05)}
                own |= {"nac_me_a0p1_m50_o500_in": rng.normal(), "sham_count": rng.normal()}
                own |= {"sham_permuted": mean + rng.normal(0, 0.1), "degenerate": False, "occupied_bins": 9.0}
                head = {"run": f"{test_envs}-{hparams}", "dataset": dataset, "algorithm": "ERM", "trial_seed": 0}
                head |= {
                    "hparams_seed": hparams,
                    "seed": hparams,
                    "step": 10 * index,
                    "checkpoint": None,
                    "done": True,
                }
                head |= {"test_envs": ",".join(map(str, test_envs)), "n_test_envs": len(test_envs), "n_envs": 4}
                for env, acc in accs.items():
                    rows.append({**head, "test_env": env, "test_acc": acc, "test_out_acc": acc, **own})
    df = pd.DataFrame(rows)
    df["degenerate"] = df["degenerate"].astype("boolean")
    return df


@pytest.fixture(scope="module")
def later(tmp_path_factory):
    """Studies of one source, with shams, of single test envs with their pairs, and their tables."""
    folder = tmp_path_factory.mktemp("later")
    one_source = [[t for t in range(4) if t != source] for source in range(4)]
    for name, frame in {
        "pacs96_single_source": recorded(one_source, dataset="PACS96"),
        "emoji96_single_source": recorded(one_source, seed=1, dataset="EMOJI96"),
        "toy": recorded([[i] for i in range(4)], seed=2),
        "toy_pairs": recorded([[i, j] for j in range(4) for i in range(j)], seeds=1, seed=3),
    }.items():
        (folder / name).mkdir()
        frame.to_parquet(folder / name / "records.parquet")
    script("", folder)
    return folder


def test_coverage_is_set_against_its_shams_run_by_run(later):
    df = pd.read_parquet(later / "toy" / "records.parquet")
    found = pd.read_csv(later / "toy" / "controls.csv").set_index(["criterion", "control"])
    assert set(found.index) == {
        (name, sham)
        for name in ("nac_me", "nac_me_all", DECLARED, "nac_me_auto")
        for sham in ("sham_count", "sham_permuted")
    }
    apart = []
    for _, run in df[df["step"] > 0].groupby("run"):
        one, other = (kendalltau(run[name], run["test_acc"]).statistic for name in ("nac_me", "sham_permuted"))
        apart.append(one - other)
    row = found.loc[("nac_me", "sham_permuted")]
    assert row["difference"] == pytest.approx(np.mean(apart), abs=1e-6)
    assert row["n_runs"] == 12
    text = (later / "results.md").read_text()
    assert "| Toy | `nac_me` | `sham_count` | 12 |" in text


def test_an_average_over_test_envs_stands_beside_each_of_them(later):
    found = pd.read_csv(later / "toy" / "env_level.csv").set_index("criterion").loc["nac_me"]
    taus = (
        pd.read_csv(later / "toy" / "by_env.csv").query("population == 'run'").set_index(["criterion", "test_env"])
    )
    each = [
        taus.loc[("nac_me", env), "kendall_tau"] - taus.loc[("val_acc", env), "kendall_tau"] for env in range(4)
    ]
    assert [found[str(env)] for env in range(4)] == pytest.approx(each, abs=1e-5)
    assert found["mean"] == pytest.approx(np.mean(each), abs=1e-5)
    low, high = t.interval(0.95, 3, np.mean(each), sem(each))
    assert (found["low"], found["high"]) == pytest.approx((low, high), abs=1e-4)
    assert found["n_ahead"] == sum(value > 0 for value in each)


def test_pairs_choose_for_the_study_of_their_name(later):
    assert not (later / "toy_pairs" / "overall.csv").exists()
    found = pd.read_csv(later / "toy" / "honest.csv")
    nested = found.query("choice == 'nested'")
    assert (nested["n_chose"] == 3).all()
    assert set(found["judged_on"]) == {"single"}
    single = pd.read_csv(later / "pacs96_single_source" / "honest.csv")
    assert set(single["judged_on"]) == {"several"}


def test_the_declared_hypothesis_is_tested_as_the_protocol_says_and_scipy_agrees(later):
    found = pd.read_csv(later / "confirmation.csv").set_index(["dataset", "step0", "undefined"])
    row = found.loc[("all", "out", "left out")]
    assert (row["n_runs"], row["n_undefined"]) == (24, 0)
    assert row["verdict"] == "preliminary: fewer than half of the runs"
    said = script(".check", later).splitlines()
    worst = [float(part.split()[-1]) for part in said[-1].split(": ", 1)[1].split(",")]
    assert max(worst) < 1e-6
    script(".check", later / "pacs96_single_source")
    authors = pd.read_csv(later / "pacs96_single_source" / "authors_way.csv")
    assert {"constant", "last", "nac_me", "val_acc"} <= set(authors["criterion"])
    assert "rank correlation, average" in (later / "results.md").read_text()


@pytest.mark.parametrize(
    ("apart", "runs", "verdict"),
    [(0.1, 28, "confirmed"), (-0.1, 28, "refuted"), (0.0, 28, "refuted"), (0.1, 10, "preliminary")],
)
def test_the_verdict_follows_from_the_protocol(apart, runs, verdict):
    rng = np.random.default_rng(0)

    def frame(dataset):
        df = recorded([[1, 2, 3]], seeds=runs // 2, checkpoints=13, seed=1, dataset=dataset)
        df = df.assign(test_acc=df["step"] + 0.0)
        # val_acc and the setting rank alike, but for a few places exchanged in one of them
        values = df["step"] + rng.normal(0, 15, len(df))
        better = np.where(rng.uniform(size=len(df)) < abs(apart) * 5, df["step"], values)
        one, other = (better, values) if apart > 0 else (values, better)
        return nacme.targets.observations(df.assign(**{DECLARED: one, "val_acc": other}), "mean")[0]

    table = controls.confirmation([frame("A"), frame("B")])
    assert table["verdict"].dropna().iloc[0].startswith(verdict)


def test_a_slice_trained_again_has_the_stored_records(study, monkeypatch, capsys):
    monkeypatch.setattr(rerun, "HERE", study)
    monkeypatch.setattr(sys, "argv", ["rerun", "digits", "--data_dir", os.devnull, "--test_env", "1"])
    rerun.main()
    shown = capsys.readouterr().out.splitlines()
    table = {line.split()[0]: float(line.split()[1]) for line in shown[1:]}
    assert {"nac_me", "test_acc", "val_acc"} <= set(table)
    assert max(table.values()) == 0
    stored = pd.read_parquet(study / "digits" / "records.parquet")
    other = stored.assign(nac_me=float("nan"), val_acc=stored["val_acc"] + 0.25)
    apart = rerun.compare(stored, other)["largest difference"]
    assert np.isnan(apart["nac_me"])
    assert apart["val_acc"] == pytest.approx(0.25)
    assert apart["test_acc"] == 0


def test_no_study_is_one_line(tmp_path):
    command = [sys.executable, "-m", "analysis.studies", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert (
        done.stderr == f"{tmp_path} holds no NAME/records.parquet; python -m analysis.studies.records makes one\n"
    )


@pytest.mark.data
def test_the_digits_are_made_again_from_mnists_test_files(nacme_data, tmp_path):
    raw = nacme_data / "mnist10k" / "MNIST" / "raw"
    names = ["images-idx3-ubyte", "labels-idx1-ubyte"]
    images, labels = (
        np.concatenate([np.fromfile(raw / f"{part}-{name}", np.uint8, offset=skip) for part in ("train", "t10k")])
        for name, skip in zip(names, (16, 8))
    )
    shuffled = np.random.default_rng(0).permutation(10_000)
    theirs = tmp_path / "mnist" / "MNIST" / "raw"
    theirs.mkdir(parents=True)
    (theirs / "t10k-images-idx3-ubyte").write_bytes(bytes(16) + images.reshape(-1, 784)[shuffled].tobytes())
    (theirs / "t10k-labels-idx1-ubyte").write_bytes(bytes(8) + labels[shuffled].tobytes())
    script(".digits", tmp_path / "mnist", tmp_path / "out")
    for part in ("train", "t10k"):
        for name in names:
            made = tmp_path / "out" / "MNIST" / "raw" / f"{part}-{name}"
            assert made.read_bytes() == (raw / f"{part}-{name}").read_bytes()


def test_other_digits_are_refused(tmp_path):
    raw = tmp_path / "MNIST" / "raw"
    command = [sys.executable, "-m", "analysis.studies.digits", str(tmp_path), str(tmp_path / "out")]
    missing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (missing.returncode, missing.stderr.count("\n")) == (1, 1)
    assert "t10k-images-idx3-ubyte is missing" in missing.stderr
    raw.mkdir(parents=True)
    (raw / "t10k-images-idx3-ubyte").write_bytes(bytes(16 + 784 * 10_000))
    (raw / "t10k-labels-idx1-ubyte").write_bytes(bytes(8 + 10_000))
    other = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (other.returncode, other.stderr.count("\n")) == (1, 1)
    assert "does not hold MNIST's 10,000 test digits" in other.stderr
