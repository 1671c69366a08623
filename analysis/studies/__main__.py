"""Make the figures and tables of the studies from their stored records: ``make study``.

    python -m analysis.studies [FOLDER]

For each ``NAME/records.parquet`` writes ``NAME/*.csv`` and ``NAME/*.svg``; for all of them further ``*.csv`` and
``*.svg``, and every table in ``results.md``. The same records give the same bytes.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from analysis.studies import figures, markdown, tables
from nacme import plots
from nacme.errors import NacmeWarning
from nacme.plots.style import render


def main(folder: Path) -> None:
    warnings.simplefilter("ignore", NacmeWarning)  # what is undefined is empty in the tables
    studies = sorted(folder.glob("*/records.parquet"))
    if not studies:
        raise SystemExit(f"{folder} holds no NAME/records.parquet; python -m analysis.studies.records makes one")
    frames, found = [], []
    for path in studies:
        df = read(path)
        inside = path.with_name("records_in.parquet")
        nested, nested_any = tables.nested_settings(df), tables.nested_criteria(df)
        df = tables.with_nested(df, nested, nested_any)
        settings = tables.settings(df)
        of_study = {
            "nested_settings": nested,
            "nested_criteria": nested_any,
            "by_env": tables.by_env(df),
            "overall": tables.overall(df),
            "regret_per_run": tables.regret_per_run(df),
            "settings": settings,
            "facts": tables.facts(df, settings),
        }
        if inside.exists():
            of_study["splits"] = tables.splits(df, read(inside))
        for name, table in of_study.items():
            save_table(path.with_name(f"{name}.csv"), table)
        save_figure(path.with_name("settings.svg"), figures.settings_map(of_study["settings"]))
        save_figure(path.with_name("scatter.svg"), plots.scatter(df, "nac_me"))
        frames.append(df)
        found.append(of_study)
    whole = pd.concat(frames, ignore_index=True)
    overall = pd.concat([of_study["overall"] for of_study in found])
    choices, across = tables.choices(whole), tables.across(whole)
    save_table(folder / "choices.csv", choices)
    save_table(folder / "across.csv", across)
    save_figure(folder / "overview.svg", figures.overview(overall))
    save_figure(folder / "disguise.svg", figures.disguise([of_study["settings"] for of_study in found], overall))
    (folder / "results.md").write_text(markdown.results(found, choices, across))


def read(path: Path) -> pd.DataFrame:
    df = pd.read_parquet(path)
    df.attrs["path"] = str(path)
    return df


def save_table(path: Path, table: pd.DataFrame) -> None:
    table.round(6).to_csv(path, index=False, lineterminator="\n")


def save_figure(path: Path, figure: Figure) -> None:
    path.write_bytes(render(figure, "svg"))


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
