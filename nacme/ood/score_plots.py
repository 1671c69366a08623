"""Histograms of the scores that detectors give to what they have to tell apart."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

from nacme.errors import ConfigError
from nacme.ood.evaluation import detection_metrics
from nacme.plots.style import OKABE_ITO, styled

INSIDE = "in"
_PER_ROW = 3


@styled
def score_histograms(scores: Mapping[str, Mapping[str, npt.NDArray[Any]]], title: str) -> Figure:
    """Draw one panel per detector. What lies beyond its axis, one score in a hundred, stands at its ends.

    Parameters
    ----------
    scores : mapping of str to mapping of str to ndarray
        By detector, then by what was scored; in-distribution scores are called ``"in"``. Higher is more
        out-of-distribution.
    title : str

    Returns
    -------
    Figure

    Raises
    ------
    ConfigError
        If there is no detector.
    """
    if not scores:
        raise ConfigError("there are no scores to draw")
    columns = min(_PER_ROW, len(scores))
    rows = -(-len(scores) // columns)
    figure = Figure(figsize=(3.6 * columns, 2.7 * rows + 0.5), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left")
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    for panel in panels[len(scores) :]:
        panel.remove()
    for panel, (detector, parts) in zip(panels, scores.items()):
        whole = np.concatenate(list(parts.values()))
        # a few extreme scores would squeeze the rest into one bar
        low, high = np.quantile(whole, [0.005, 0.995])
        edges = np.linspace(low, high if high > low else low + 1, 41)
        for i, (name, values) in enumerate(parts.items()):
            shares = np.full(len(values), 1 / len(values))
            panel.hist(
                values.clip(edges[0], edges[-1]),
                bins=edges,
                weights=shares,
                histtype="stepfilled" if name == INSIDE else "step",
                color=OKABE_ITO[i],
                alpha=0.45 if name == INSIDE else 1,
                linewidth=1.4,
                label=name,
            )
        aurocs = [
            f"{100 * detection_metrics(parts[INSIDE], values)['auroc']:.0f}%"
            for name, values in parts.items()
            if name != INSIDE
        ]
        panel.set_title(f"{detector}: AUROC {', '.join(aurocs)}")
        panel.set_xlabel("score (higher: more OOD)")
        panel.set_ylabel("share of images")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels))
    return figure
