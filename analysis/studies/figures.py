"""The studies' figures."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from nacme import plots
from nacme.plots.style import INK, MUTED, OKABE_ITO, dress, styled


@styled
def overview(table: pd.DataFrame) -> Figure:
    """Draw each criterion's tau within a run with its interval, data set beside data set.

    Parameters
    ----------
    table : DataFrame
        `analysis.studies.tables.overall` of each data set.

    Returns
    -------
    Figure
        Criteria that differ from ``val_acc`` (Holm-adjusted p below 0.05) are coloured.
    """
    datasets = list(dict.fromkeys(table["dataset"]))
    order = list(table.groupby("criterion")["kendall_tau"].mean().sort_values().index)
    figure = Figure(figsize=(2.6 + 2.5 * len(datasets), 1.0 + 0.25 * len(order)), layout="constrained")
    axes = figure.subplots(1, len(datasets), sharey=True, squeeze=False)[0]
    for ax, dataset in zip(axes, datasets):
        rows = table[table["dataset"] == dataset].set_index("criterion").reindex(order)
        for y, (name, row) in enumerate(rows.iterrows()):
            told = row["less_val_acc_p_holm"] < 0.05
            better = row["less_val_acc_difference"] > 0
            colour = (OKABE_ITO[2] if better else OKABE_ITO[1]) if told else INK if name == "val_acc" else MUTED
            marker = ("^" if better else "v") if told else "o"
            ax.plot([row["kendall_low"], row["kendall_high"]], [y, y], color=colour, lw=2, solid_capstyle="butt")
            ax.plot([row["kendall_tau"]], [y], marker, color=colour, ms=6)
        ax.axvline(rows.loc["val_acc", "kendall_tau"], color=INK, lw=1, ls=":")
        ax.set_title(f"{dataset}, {rows['n_runs'].max():.0f} runs", loc="left", fontweight="bold", fontsize=10)
        ax.set_xlabel("Kendall tau with test accuracy\nwithin a run")
        ax.grid(True, axis="x")
        dress(ax)
    axes[0].set_yticks(range(len(order)), order)
    return figure


@styled
def disguise(settings: Sequence[pd.DataFrame], overall: pd.DataFrame) -> Figure:
    """Draw what each setting of NAC-ME is worth over how far it is validation accuracy in disguise.

    Parameters
    ----------
    settings : sequence of DataFrame
        `analysis.studies.tables.settings` of each data set.
    overall : DataFrame
        `analysis.studies.tables.overall` of each data set.

    Returns
    -------
    Figure
        A dot is a setting, averaged over test envs; the dotted line is validation accuracy itself.
    """
    figure = Figure(figsize=(1.2 + 2.7 * len(settings), 3.2), layout="constrained")
    axes = figure.subplots(1, len(settings), sharey=True, squeeze=False)[0]
    for ax, table in zip(axes, settings):
        dataset = table["dataset"].iloc[0]
        means = table.groupby(["fill", "key"])[["tau_with_val_acc", "kendall_tau"]].mean().reset_index()
        for (fill, group), colour, marker in zip(means.groupby("fill"), OKABE_ITO, "osv^D"):
            ax.plot(
                group["tau_with_val_acc"],
                group["kendall_tau"],
                marker,
                ls="",
                color=colour,
                ms=4,
                alpha=0.7,
                label=f"O = {fill_text(fill)}",
            )
        own = overall[(overall["dataset"] == dataset) & (overall["criterion"] == "val_acc")]["kendall_tau"].iloc[0]
        ax.axhline(own, color=INK, lw=1, ls=":")
        ax.annotate(
            "validation accuracy",
            (0, own),
            (2, 3),
            ("axes fraction", "data"),
            "offset points",
            fontsize=8,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5},
        )
        ax.set_title(dataset, loc="left", fontweight="bold", fontsize=10)
        ax.set_xlabel("tau with validation accuracy")
        dress(ax)
    axes[0].set_ylabel("tau with test accuracy")
    axes[-1].legend(frameon=False, fontsize=8, loc="lower right")
    return figure


def fill_text(fill: float) -> str:
    """Write a bin's fill: a count, or a share of the samples."""
    return f"{fill:.0f}" if fill > 1 else f"{fill:.0%}"


def settings_map(settings: pd.DataFrame) -> Figure:
    """Draw tau over alpha, one row per fill and layer, averaged over M and the test envs."""
    order = settings.sort_values(["layer", "split", "fill"], ascending=[False, False, True])
    names = [
        f"{'' if split == 'main' else f'{split}, '}{'its layer' if layer == 'mean' else 'other layer'}, "
        f"O = {fill_text(fill)}"
        for layer, split, fill in zip(order["layer"], order["split"], order["fill"])
    ]
    rows = pd.Categorical(names, categories=dict.fromkeys(names), ordered=True)
    shown = order.assign(setting=rows, alpha=order["alpha"].map(lambda alpha: f"{alpha}".removesuffix(".0")))
    return plots.sensitivity_heatmap(shown, x="alpha", y="setting", value="kendall_tau", label="Kendall tau")
