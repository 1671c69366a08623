from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from nacme import load_sweep, plots, select
from nacme.errors import ConfigError
from nacme.plots.style import MARKERS, OKABE_ITO, render
from nacme.study.correlation import rank_correlation


@pytest.fixture(scope="module")
def df(simulated_sweep: Path) -> pd.DataFrame:
    return load_sweep(simulated_sweep)


def panels(figure: Figure) -> list[Axes]:
    """Return the axes that carry a title, which colour bars and strips do not."""
    return [ax for ax in figure.axes if ax.get_title(loc="left")]


def words(ax: Axes) -> str:
    return "\n".join([ax.get_title(loc="left"), *(text.get_text() for text in ax.texts)])


def test_scatter_plots_each_test_env_of_the_frame(df: pd.DataFrame) -> None:
    figure = plots.scatter(df, "nac_me")
    assert len(panels(figure)) == 3
    for env, ax in enumerate(panels(figure)):
        cell = df[df["test_env"] == env]
        (points,) = ax.collections
        drawn = pd.DataFrame(points.get_offsets(), columns=["nac_me", "test_acc"]).assign(step=points.get_array())
        expected = cell[["nac_me", "test_acc", "step"]].astype(float)
        key = ["step", "nac_me"]
        pd.testing.assert_frame_equal(
            drawn.sort_values(key, ignore_index=True), expected.sort_values(key, ignore_index=True)
        )
        assert f"test env {env}" in words(ax)
        assert "72 checkpoints of 8 runs" in words(ax)
        assert (ax.get_xlabel(), ax.get_ylabel()) == ("nac_me", "test accuracy")


def test_scatter_counts_what_it_leaves_out(df: pd.DataFrame) -> None:
    holes = df[df["test_env"] == 1].copy()
    holes.loc[holes.index[:5], "nac_me"] = np.nan
    (ax,) = panels(plots.scatter(holes, "nac_me"))
    assert "67 checkpoints of 8 runs, 5 left out" in words(ax)
    holes["nac_me"] = np.nan
    (ax,) = panels(plots.scatter(holes, "nac_me"))
    assert "no checkpoint has nac_me" in words(ax)


def test_scatter_rasterizes_many_points_and_stays_small(df: pd.DataFrame) -> None:
    many = pd.concat([df] * 40, ignore_index=True)
    figure = plots.scatter(many[many["test_env"] == 0], "nac_me")
    assert panels(figure)[0].collections[0].get_rasterized()
    assert len(render(figure, "svg")) < 150_000
    assert not panels(plots.scatter(df, "nac_me"))[0].collections[0].get_rasterized()


def test_accuracy_axes_are_in_percent(df: pd.DataFrame) -> None:
    ax = panels(plots.scatter(df, "nac_me"))[0]
    assert ax.yaxis.get_major_formatter()(0.5, None) == "50%"
    ax.set_ylim(0.50, 0.52)
    assert ax.yaxis.get_major_formatter()(0.505, None) == "50.5%"


def test_training_curves_draw_both_accuracies_and_the_picks(df: pd.DataFrame) -> None:
    picks = select(df, ["nac_me", "val_acc"], per="run")
    figure = plots.training_curves(df, picks, max_runs=2)
    assert len(panels(figure)) == 3
    ax = panels(figure)[0]
    assert "2 of 8 runs shown" in words(ax)
    best = df[df["test_env"] == 0].groupby("run")["test_acc"].max().sort_values(ascending=False)
    shown = [best.index[0], best.index[-1]]
    solid = [line for line in ax.lines if line.get_linestyle() == "-"]
    dashed = [line for line in ax.lines if line.get_linestyle() == "--"]
    for run, test, val in zip(shown, solid, dashed, strict=True):
        curve = df[df["run"] == run].sort_values("step")
        np.testing.assert_array_equal(test.get_xdata(), curve["step"])
        np.testing.assert_array_equal(test.get_ydata(), curve["test_acc"])
        np.testing.assert_array_equal(val.get_ydata(), curve["val_acc"])
    strip = next(a for a in figure.axes if a.get_ylabel() == "picked by")
    assert [label.get_text() for label in strip.get_yticklabels()] == ["nac_me", "val_acc"]
    drawn = {(round(float(line.get_ydata()[0])), float(line.get_xdata()[0])) for line in strip.lines}
    chosen = picks[picks["run"].isin(shown)]
    assert drawn == {
        (["nac_me", "val_acc"].index(row["criterion"]), float(row["step"])) for _, row in chosen.iterrows()
    }


def test_training_curves_need_no_picks(df: pd.DataFrame) -> None:
    figure = plots.training_curves(df)
    assert len(figure.axes) == 3
    with pytest.raises(ConfigError, match="max_runs is 0"):
        plots.training_curves(df, max_runs=0)


def test_training_curves_leave_out_undefined_picks(df: pd.DataFrame) -> None:
    picks = select(df, ["nac_me"], per="run")
    picks["step"] = picks["step"].astype("Int64")
    picks.loc[:, "step"] = pd.NA
    figure = plots.training_curves(df[df["test_env"] == 0], picks)
    strip = next(a for a in figure.axes if a.get_ylabel() == "picked by")
    assert all(len(line.get_xdata()) == 0 for line in strip.lines)


def test_correlation_forest_shows_tau_and_interval_sorted(df: pd.DataFrame) -> None:
    table = rank_correlation(df, ["val_acc", "nac_me", "val_loss"], n_boot=200)
    figure = plots.correlation_forest(table)
    order = table.groupby("criterion")["kendall_tau"].mean().sort_values(ascending=False).index
    assert len(panels(figure)) == 3
    for env, ax in enumerate(panels(figure)):
        assert [label.get_text() for label in ax.get_yticklabels()] == list(order)
        assert ax.yaxis_inverted()
        rows = table[table["test_env"] == env].set_index("criterion")
        points = {float(p.get_ydata()[0]): p.get_xdata()[0] for p in ax.lines if p.get_marker() == "o"}
        bars = {
            float(b.get_ydata()[0]): tuple(b.get_xdata())
            for b in ax.lines
            if len(b.get_xdata()) == 2 and b.get_marker() == "None" and b.get_ydata()[0] == b.get_ydata()[1]
        }
        for y, name in enumerate(order):
            assert points[y] == rows.loc[name, "kendall_tau"]
            assert bars[y] == (rows.loc[name, "kendall_low"], rows.loc[name, "kendall_high"])
        assert any(list(line.get_xdata()) == [0, 0] for line in ax.lines), "zero line"
        assert "64 checkpoints of 8 runs" in words(ax)


@pytest.mark.parametrize("dataset", ["PACS", "RotatedMNIST", "A data set of a rather long name"])
def test_titles_are_not_cut_off(df: pd.DataFrame, dataset: str) -> None:
    table = rank_correlation(df.assign(dataset=dataset), ["nac_me", "rank_mean(nac_me, val_acc)"], n_boot=10)
    figure = plots.correlation_forest(table[table["test_env"] == 0])
    figure.draw_without_rendering()
    (title,) = figure.findobj(lambda artist: getattr(artist, "get_gid", str)() == "panel title")
    box = title.get_window_extent()
    assert title.get_text().startswith(f"{dataset}, test env 0")
    assert figure.bbox.x0 <= box.x0 < box.x1 <= figure.bbox.x1


def test_correlation_forest_says_what_is_undefined(df: pd.DataFrame) -> None:
    table = rank_correlation(df.assign(nac_me=0.25), ["nac_me", "val_acc"], n_boot=50)
    assert "undefined" in words(panels(plots.correlation_forest(table))[0])
    table["reason"] = ["constant" if name == "nac_me" else None for name in table["criterion"]]
    for ax in panels(plots.correlation_forest(table)):
        assert "undefined: constant" in words(ax)
        assert [label.get_text() for label in ax.get_yticklabels()] == ["val_acc", "nac_me"]


def test_correlation_forest_refuses_to_mix_populations(df: pd.DataFrame) -> None:
    both = pd.concat([rank_correlation(df, population=p, n_boot=10) for p in ("run", "sweep")])
    with pytest.raises(ConfigError, match="mixes populations"):
        plots.correlation_forest(both)


def test_regret_plot_shows_every_choice_and_the_mean(df: pd.DataFrame) -> None:
    table = select(df, ["nac_me", "val_acc", "last"], per="run")
    figure = plots.regret_plot(table)
    (ax,) = panels(figure)
    means = table.groupby("criterion")["regret"].mean().sort_values()
    assert [label.get_text() for label in ax.get_yticklabels()] == list(means.index)
    for y, (name, mean) in enumerate(means.items()):
        dots = [p for p in ax.lines if p.get_marker() in MARKERS and round(float(p.get_ydata()[0])) == y]
        drawn = sorted(np.concatenate([p.get_xdata() for p in dots]))
        np.testing.assert_allclose(drawn, sorted(table.loc[table["criterion"] == name, "regret"]))
        (bar,) = [b for b in ax.containers if b.lines[0].get_ydata()[0] == y]
        assert bar.lines[0].get_xdata()[0] == pytest.approx(mean)
        ((start, end),) = bar.lines[2][0].get_segments()
        error = table.loc[table["criterion"] == name, "regret"].sem()
        assert (end[0] - start[0]) / 2 == pytest.approx(error)
    assert "n = 24 choices per criterion" in words(ax)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["env 0", "env 1", "env 2"]


def test_regret_plot_counts_undefined_choices(df: pd.DataFrame) -> None:
    table = select(df, ["val_acc", "last"], per="sweep")
    table.loc[table["criterion"] == "last", "regret"] = np.nan
    (ax,) = panels(plots.regret_plot(table))
    assert "6 undefined" in words(ax)
    assert "undefined" in [text.get_text() for text in ax.texts]


def test_series_differ_in_marker_and_colour(df: pd.DataFrame) -> None:
    ax = panels(plots.training_curves(df[df["test_env"] == 0], max_runs=3))[0]
    solid = [line for line in ax.lines if line.get_linestyle() == "-"]
    assert len({line.get_marker() for line in solid}) == 3
    assert [to_hex(line.get_color()).upper() for line in solid] == list(OKABE_ITO[:3])


def test_sensitivity_heatmap_writes_the_mean_into_each_cell() -> None:
    table = pd.DataFrame(
        [
            {"alpha": a, "bins": b, "tau": t}
            for a, b, t in [(0.1, 10, 0.2), (0.1, 10, 0.4), (0.1, 50, -0.5), (1, 10, 0.1)]
        ]
    )
    figure = plots.sensitivity_heatmap(table, x="bins", y="alpha", value="tau", label="mean tau")
    ax = figure.axes[0]
    image = np.ma.filled(ax.images[0].get_array(), np.nan)
    np.testing.assert_allclose(image, [[0.3, -0.5], [0.1, np.nan]])
    assert {"0.30", "−0.50", "0.10", "–"} <= {text.get_text() for text in ax.texts}
    assert "n = 1 to 2 per cell" in words(ax)
    assert [label.get_text() for label in ax.get_xticklabels()] == ["10", "50"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("bins", "alpha")


def test_coverage_picture_fills_bins_and_sorts_neurons() -> None:
    counts = np.array([[0, 0, 8], [20, 0, 0], [4, 4, 0]])
    ax = plots.coverage_picture(counts, fill=8).axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]])
    assert "n = 3 neurons; 1.3 of 3 bins occupied" in words(ax)
    ax = plots.coverage_picture(counts).axes[0]
    np.testing.assert_allclose(ax.images[0].get_array(), [[1, 0, 0], [0.5, 0.5, 0], [0, 0, 1]])
    ax = plots.coverage_picture(np.tile(counts, (300, 1)), max_neurons=100).axes[0]
    assert ax.images[0].get_array().shape == (100, 3)
    assert "100 of 900 neurons" in words(ax)


@pytest.mark.parametrize(
    ("counts", "fill", "message"),
    [
        (np.zeros(4), None, r"shape \[4\]"),
        (np.zeros((0, 3)), None, r"shape \[0, 3\]"),
        (np.ones((2, 2)), 0, "fill is 0"),
    ],
)
def test_coverage_picture_refuses_nonsense(counts: np.ndarray, fill: float | None, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plots.coverage_picture(counts, fill=fill)


def test_wrong_tables_are_named(df: pd.DataFrame) -> None:
    with pytest.raises(ConfigError, match=r"no column 'nac_mee': did you mean 'nac_me'"):
        plots.scatter(df, "nac_mee")
    with pytest.raises(ConfigError, match="no rows"):
        plots.scatter(df.iloc[:0], "nac_me")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["svg", "png", "pdf"])
def test_figures_render_the_same_twice_and_leave_no_trace(df: pd.DataFrame, kind: str) -> None:
    settings = dict(matplotlib.rcParams)
    picks = select(df, ["nac_me", "val_acc", "val_loss", "last"], per="run")
    first, second = (render(plots.training_curves(df[df["test_env"] == 0], picks), kind) for _ in range(2))
    assert first == second
    assert dict(matplotlib.rcParams) == settings
    assert matplotlib.pyplot.get_fignums() == []
