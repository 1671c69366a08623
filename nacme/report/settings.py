"""The report's sections on coverage itself: the picture of a chosen checkpoint, and what the settings matter."""

from __future__ import annotations

import os
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from nacme import plots
from nacme.errors import NacmeWarning
from nacme.report.findings import Findings
from nacme.report.page import FigureGroup, Section, draw_panel, draw_panels
from nacme.report.tables import Column, Table, decimal, integer, points, text
from nacme.study.sensitivity import grid_settings, nested_choice, nested_seeing_target, sensitivity
from nacme.system.files import read_arrays

#: Written by training beside a run's records: the state counts of its checkpoint with the highest ``nac_me``.
COVERAGE = "coverage.npz"


def coverage_section(findings: Findings) -> Section | None:
    """Draw which states the neurons of the checkpoint with the highest coverage take, per data set.

    Parameters
    ----------
    findings : Findings

    Returns
    -------
    Section or None
        None where ``nac_me`` is not among the criteria, or no counts were kept.
    """
    if "nac_me" not in findings.criteria:
        return None
    picks = findings.picks["sweep"]
    chosen = picks[(picks["criterion"] == "nac_me") & picks["run"].notna()]
    figures = []
    for dataset, cell in chosen.groupby("dataset", sort=True):
        pick = cell.sort_values("value", ascending=False).iloc[0]
        found = _kept_counts(Path(findings.rows.attrs.get("path", ".")), str(pick["run"]), int(pick["step"]))
        if found is None:
            continue
        layer, counts, fill = found
        title = f"{dataset}, {pick['algorithm']}, test env {pick['test_env']}, step {pick['step']}"
        draw = partial(plots.coverage_picture, counts, fill=fill, title=title)
        occupied = (counts > 0).sum(axis=1).mean()
        alt = (
            f"Coverage of {len(counts)} neurons of {layer}: {occupied:.1f} of {counts.shape[1]} bins hold states."
        )
        caption = (
            f"{title}, layer {layer}: the checkpoint with the highest nac_me of those chosen. A row is a "
            "neuron, a column a bin of its state; dark is filled. A single dark column is degenerate coverage."
        )
        figures.append(FigureGroup(f"coverage-{dataset}", caption, [draw_panel(draw(), alt)], draw))
    return Section("coverage", "What coverage looks like", figures) if figures else None


def settings_section(
    findings: Findings, df: pd.DataFrame, whole: pd.DataFrame, include_step0: bool
) -> Section | None:
    """Show how tau and regret move with NAC-ME's settings, and what choosing them honestly gives.

    Parameters
    ----------
    findings : Findings
    df : DataFrame
        As `nacme.targets.observations` gives it.
    whole : DataFrame
        The same sweep as `nacme.load_sweep` returns it.
    include_step0 : bool

    Returns
    -------
    Section or None
        None for records made without a grid.
    """
    if not grid_settings(df):
        return None
    table = sensitivity(df, "run", include_step0)
    table = table.assign(
        setting=[_label(row, table) for row in table.to_dict("records")],
        alpha=pd.Categorical(table["alpha"].map(str), _in_order(table["alpha"])),
    )
    labels = list(dict.fromkeys(table.sort_values(["bins", "setting"])["setting"]))
    table["setting"] = pd.Categorical(table["setting"], labels)
    figures = []
    for value, label in (("kendall_tau", "Kendall tau within a run"), ("regret", "Regret within a run (points)")):
        cells = [
            (cell, f"{label} of NAC-ME by alpha and its other settings on {dataset}, mean over test envs.")
            for dataset, cell in table.groupby("dataset", sort=True)
        ]
        draw = partial(_heatmap, value=value, label=label)
        figures.append(
            draw_panels(
                f"settings-{value.replace('_', '-')}",
                f"{label} of NAC-ME for every setting recorded, averaged over test envs. The best cell is not an "
                "honest estimate: it was chosen by looking at test accuracy.",
                cells,
                draw,
                partial(draw, table),
            )
        )
    honest = bool((whole["n_test_envs"] > 1).any())
    if honest:
        chosen = nested_choice(whole, "run", include_step0=include_step0)
    else:
        chosen = nested_seeing_target(df, "run", include_step0=include_step0)
    return Section(
        "settings",
        "Sensitivity to NAC-ME's settings",
        figures,
        [_nested_table(chosen, honest), _settings_table(table)],
    )


def _kept_counts(sweep: Path, run: str, step: int) -> tuple[str, npt.NDArray[np.int64], float] | None:
    """Read a run's kept counts: layer, counts [N, bins - 1] and fill; None unless they are of that step."""
    path = sweep / run / COVERAGE
    if not os.path.lexists(path):
        return None
    try:
        kept = read_arrays(path)
        if int(kept["step"]) != step:
            return None
        key = next((name for name in kept if name.startswith("counts_")), "")
        counts, fill = kept[key], float(kept["fill"])
        if counts.ndim != 2 or not counts.size or counts.dtype.kind not in "iu" or not fill > 0:
            raise ValueError("counts must be whole numbers for each neuron and bin")
    except (OSError, ValueError, KeyError, TypeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        warnings.warn(f"{path} holds no counts ({reason}); their picture is left out", NacmeWarning, stacklevel=2)
        return None
    return key.removeprefix("counts_"), counts, fill


def _heatmap(cell: pd.DataFrame, value: str, label: str) -> Any:
    return plots.sensitivity_heatmap(cell, x="alpha", y="setting", value=value, label=label)


def _label(row: dict[Any, Any], table: pd.DataFrame) -> str:
    """Name what is not alpha: bins and fill, and samples, split and layer where they vary."""
    parts = [f"M={row['bins']}", f"O={row['fill']}"]
    parts += [str(row[name]) for name in ("samples", "split", "layer") if table[name].nunique() > 1]
    return " ".join(parts)


def _in_order(alphas: pd.Series[Any]) -> list[str]:
    """Numbers first, ascending, then ``auto``."""
    return [str(a) for a in sorted(set(alphas), key=lambda a: (isinstance(a, str), a if a != "auto" else 0))]


def _nested_table(chosen: pd.DataFrame, honest: bool) -> Table:
    means = chosen.groupby(["dataset", "choice"], sort=False)[["kendall_tau", "regret"]].mean().reset_index()
    means = means.assign(test_env="mean", key="")
    frame = pd.concat([means, chosen.astype({"test_env": str})], ignore_index=True)[list(chosen.columns)]
    return Table(
        "settings-nested",
        (
            "The setting chosen by runs that hold out this test env and another, on the other one (nested)"
            if honest
            else "The setting chosen on the other test envs, by runs that were trained on this one "
            "(nested_seeing_target; runs with pairs of test envs would choose without)"
        )
        + ", the best one on this test env itself (peeking, out of reach), and the baselines: within a run. The "
        "first rows are means over test envs.",
        frame,
        [
            *([text("data set", "dataset")] if frame["dataset"].nunique() > 1 else []),
            text("test env", "test_env"),
            text("choice", "choice"),
            decimal("Kendall tau", "kendall_tau"),
            points("regret", "regret"),
            text("setting", "key"),
        ],
    )


def _settings_table(table: pd.DataFrame) -> Table:
    keys = ["dataset", "key", "alpha", "bins", "fill", "samples", "split", "layer"]
    means = (
        table.astype({"alpha": str, "fill": str})
        .groupby(keys, sort=False, observed=True)
        .agg(test_envs=("test_env", "nunique"), kendall_tau=("kendall_tau", "mean"), regret=("regret", "mean"))
        .reset_index()
    )
    columns: list[Column] = [
        *([text("data set", "dataset")] if means["dataset"].nunique() > 1 else []),
        text("alpha", "alpha"),
        integer("bins", "bins"),
        text("fill", "fill"),
        text("samples", "samples"),
        text("split", "split"),
        text("layer", "layer"),
        decimal("Kendall tau", "kendall_tau"),
        points("regret", "regret"),
        integer("test envs", "test_envs"),
    ]
    return Table("settings", "Every setting recorded, within a run, averaged over test envs.", means, columns)
