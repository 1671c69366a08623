"""Make the figures and tables of the studies from their stored records: ``make study``.

    python -m analysis.studies [FOLDER]

For each ``NAME/records.parquet`` writes ``NAME/*.csv`` and ``NAME/*.svg``; for all of them further ``*.csv`` and
``*.svg``, and every table in ``results.md``. The same records give the same bytes.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis.studies import controls, figures, markdown, tables
from nacme import plots
from nacme.errors import NacmeWarning
from nacme.plots.style import render
from nacme.study.authors import authors_table
from nacme.targets import observations

#: A study of this ending holds runs with pairs of test envs on the data of the study without it.
PAIRS = "_pairs"


def main(folder: Path) -> None:
    warnings.simplefilter("ignore", NacmeWarning)  # what is undefined is empty in the tables
    studies = sorted(folder.glob("*/records.parquet"))
    if not studies:
        raise SystemExit(f"{folder} holds no NAME/records.parquet; python -m analysis.studies.records makes one")
    read_in = {path.parent.name: read(path) for path in studies}
    plain, found, declared = [], [], []
    for path in studies:
        name, raw = path.parent.name, read_in[path.parent.name]
        if name.endswith(PAIRS):  # they choose for the study of their name
            continue
        several = bool((raw["n_test_envs"] > 1).any())
        of_study, df = tabulate(path, raw, read_in.get(f"{name}{PAIRS}"))
        for table_name, table in of_study.items():
            save_table(path.with_name(f"{table_name}.csv"), table)
        save_figure(path.with_name("settings.svg"), figures.settings_map(of_study["settings"]))
        save_figure(path.with_name("scatter.svg"), plots.scatter(df, "nac_me"))
        found.append(of_study)
        if not several:
            plain.append(df)
        if name in controls.CONFIRMING:
            declared.append(df)
    overall = pd.concat([of_study["overall"] for of_study in found])
    tables_of_all = {}
    if plain:
        whole = pd.concat(plain, ignore_index=True)
        tables_of_all |= {"choices": tables.choices(whole), "across": tables.across(whole)}
    if declared:
        tables_of_all["confirmation"] = controls.confirmation(declared)
    for table_name, table in tables_of_all.items():
        save_table(folder / f"{table_name}.csv", table)
    save_figure(folder / "overview.svg", figures.overview(overall))
    save_figure(folder / "disguise.svg", figures.disguise([of_study["settings"] for of_study in found], overall))
    (folder / "results.md").write_text(markdown.results(found, tables_of_all))


def tabulate(
    path: Path, raw: pd.DataFrame, pairs: pd.DataFrame | None
) -> tuple[dict[str, pd.DataFrame], pd.DataFrame]:
    """Make a study's tables; of runs with several test envs the mean accuracy counts, one observation a run."""
    inside, about = path.with_name("records_in.parquet"), path.with_name("about.json")
    df = observations(raw)[0]
    if (raw["n_test_envs"] > 1).any():
        df = df.assign(dataset=df["dataset"] + ", single source")
    nested, nested_any = tables.nested_settings(df), tables.nested_criteria(df)
    df = tables.with_nested(df, nested, nested_any)
    by_env = tables.by_env(df)
    of_study = {
        "nested_settings": nested,
        "nested_criteria": nested_any,
        "by_env": by_env,
        "env_level": controls.env_level(by_env),
        "overall": tables.overall(df),
        "controls": controls.against_shams(df),
        "regret_per_run": tables.regret_per_run(df),
        "settings": tables.settings(df),
        "facts": tables.facts(df, json.loads(about.read_text()) if about.exists() else {}),
    }
    if (honest := tables.honest(raw, pairs)) is not None:
        of_study["honest"] = honest.assign(dataset=df["dataset"].iloc[0])
    if (raw["n_test_envs"] > 1).any():
        shown = [*controls.shams(df), *filter(None, [controls.declared_setting(df)])]
        of_study["authors_way"] = authors_table(df, ["nac_me", *shown])
    if inside.exists():
        of_study["splits"] = tables.splits(df, read(inside))
    return of_study, df


def read(path: Path) -> pd.DataFrame:
    df = pd.read_parquet(path).copy()  # columns read one by one are slow to work with
    df.attrs["path"] = str(path)
    return df


def save_table(path: Path, table: pd.DataFrame) -> None:
    table.round(6).to_csv(path, index=False, lineterminator="\n")


def save_figure(path: Path, figure: Figure) -> None:
    path.write_bytes(render(figure, "svg"))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
