"""The figures."""

from nacme.plots.runs import (
    correlation_forest,
    coverage_picture,
    regret_plot,
    scatter,
    sensitivity_heatmap,
    training_curves,
)

__all__ = [
    "correlation_forest",
    "coverage_picture",
    "regret_plot",
    "scatter",
    "sensitivity_heatmap",
    "training_curves",
]
