"""Make the figures and tables of the studies from their stored records: ``make study``.

    python -m analysis.studies [FOLDER]

For each ``NAME/records.parquet`` writes ``NAME/*.csv`` and ``NAME/*.svg``, and for all of them ``overview.svg``.
The same records give the same bytes.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

import nacme
from nacme import plots
from nacme.comparison import compare_criteria
from nacme.errors import NacmeWarning
from nacme.plot_style import INK, MUTED, OKABE_ITO, dress, render, styled
from nacme.quality import selection_quality, summarise_quality
from nacme.sensitivity import nested_choice, sensitivity

#: What every study records, and combinations that could be had for nothing.
CRITERIA = [
    "val_acc",
    "nac_me",
    "nac_me_auto",
    "nac_activation",
    "nac_gradient",
    "rank_mean(nac_me, val_acc)",
    "rank_mean(nac_me_auto, val_acc)",
    "rank_mean(val_loss, val_acc)",
    "val_acc_worst",
    "val_loss",
    "val_loss_variance",
    "val_acc_minus_discrepancy",
    "coral_distance",
    "mmd",
    "ece",
    "entropy",
    "confidence",
    "feature_norm",
    "effective_rank",
    "weight_norm",
    "last",
]
RIVAL = "val_acc"


def main(folder: Path) -> None:
    warnings.simplefilter("ignore", NacmeWarning)  # what is undefined is empty in the tables
    studies = sorted(folder.glob("*/records.parquet"))
    if not studies:
        raise SystemExit(f"{folder} holds no NAME/records.parquet; python -m analysis.studies.records makes one")
    together = []
    for path in studies:
        df = pd.read_parquet(path)
        df.attrs["path"] = str(path)
        tables = {
            "by_env": ranks(df),
            "overall": overall(df),
            "choices": choices(df),
            "regret_per_run": regrets(df),
            "settings": sensitivity(df),
            "nested_settings": nested_choice(df),
            "nested_criteria": nested_choice(df, candidates=CRITERIA),
        }
        for name, table in tables.items():
            table.round(6).to_csv(path.with_name(f"{name}.csv"), index=False, lineterminator="\n")
        shown = tables["settings"].astype({"alpha": str}).assign(bins=lambda t: [f"M={b}" for b in t["bins"]])
        shown = shown[shown["layer"] == "mean"]
        heatmap = plots.sensitivity_heatmap(shown, x="alpha", y="bins", value="kendall_tau", label="Kendall tau")
        path.with_name("settings.svg").write_bytes(render(heatmap, "svg"))
        scatter = plots.scatter(df, "nac_me")
        path.with_name("scatter.svg").write_bytes(render(scatter, "svg"))
        together.append(tables["overall"])
    (folder / "overview.svg").write_bytes(render(overview(pd.concat(together)), "svg"))


def ranks(df: pd.DataFrame) -> pd.DataFrame:
    """Correlate each criterion with test accuracy in each test env, in both populations."""
    populations = ("run", "sweep")
    return pd.concat([nacme.rank_correlation(df, CRITERIA, p, pool_algorithms=True) for p in populations])


def overall(df: pd.DataFrame) -> pd.DataFrame:
    """Correlate within runs, all test envs of the data set together, beside the difference from the rival."""
    whole = df.assign(test_env=-1)
    found = nacme.rank_correlation(whole, CRITERIA, pool_algorithms=True)
    others = [name for name in CRITERIA if name != RIVAL]
    compared = compare_criteria(whole, others, RIVAL, pool_algorithms=True)
    extra = compared[["criterion", "difference", "low", "high", "p_value", "p_holm"]]
    quality = pd.concat([selection_quality(df, CRITERIA, per) for per in ("run", "sweep")])
    summary = summarise_quality(quality).pivot(index="criterion", columns="per", values="regret")
    summary.columns = [f"regret_per_{per}" for per in summary.columns]
    return found.merge(extra, how="left", on="criterion").merge(summary, how="left", on="criterion")


def choices(df: pd.DataFrame) -> pd.DataFrame:
    """Say what each criterion's choices are worth over the test envs, and how often they beat the rival's."""
    return pd.concat([summarise_quality(selection_quality(df, CRITERIA, per)) for per in ("run", "sweep")])


def regrets(df: pd.DataFrame) -> pd.DataFrame:
    """Average over the runs of a test env what stopping by each criterion costs, in points."""
    chosen = nacme.select(df, CRITERIA, per="run")
    return chosen.groupby(["dataset", "test_env", "criterion"], as_index=False)["regret"].mean()


@styled
def overview(table: pd.DataFrame) -> Figure:
    """Draw each criterion's tau within a run less the rival's, with its interval, data set beside data set."""
    datasets = list(dict.fromkeys(table["dataset"]))
    names = list(table.groupby("criterion")["difference"].mean().drop(RIVAL).sort_values().index)
    figure = Figure(figsize=(2.6 + 2.4 * len(datasets), 0.6 + 0.25 * len(names)), layout="constrained")
    axes = figure.subplots(1, len(datasets), sharey=True, squeeze=False)[0]
    for ax, dataset in zip(axes, datasets):
        rows = table[table["dataset"] == dataset].set_index("criterion").loc[names]
        worse, better = rows["high"] < 0, rows["low"] > 0
        colours = np.where(better, OKABE_ITO[2], np.where(worse, OKABE_ITO[1], MUTED))
        markers = np.where(better, "^", np.where(worse, "v", "o"))
        for y, (row, colour, marker) in enumerate(zip(rows.itertuples(), colours, markers)):
            ax.plot([row.low, row.high], [y, y], color=colour, lw=2)
            ax.plot([row.difference], [y], marker, color=colour, ms=6)
        ax.axvline(0, color=INK, lw=1)
        ax.set_title(f"{dataset}, {rows['n_runs'].max()} runs", loc="left", fontweight="bold", fontsize=10)
        ax.set_xlabel("Kendall tau within a run,\nless that of val_acc")
        ax.grid(True, axis="x")
        dress(ax)
    axes[0].set_yticks(range(len(names)), names)
    return figure


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
