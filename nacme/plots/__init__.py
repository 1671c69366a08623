"""The figures of the study: each function turns a DataFrame (or an array) into a matplotlib Figure.

Nothing here computes a statistic beyond a mean and its standard error, touches pyplot's global state or
writes a file. Panels are four inches wide, so that one alone stays legible on a phone; colours are Okabe and
Ito's, or one ramp from dark to light where they stand for a quantity, and every series has its own marker, so
that a grey print can be read.
"""

from nacme.plots.criteria import correlation_forest, regret_plot
from nacme.plots.runs import scatter, training_curves
from nacme.plots.settings import coverage_picture, sensitivity_heatmap

__all__ = [
    "correlation_forest",
    "coverage_picture",
    "regret_plot",
    "scatter",
    "sensitivity_heatmap",
    "training_curves",
]
