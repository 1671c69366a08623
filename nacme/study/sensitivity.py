"""How much NAC-ME depends on its hyper-parameters, and what choosing them honestly gives.

Works on records made with a grid of settings (``nacme train --nac_grid``), one key each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nacme.candidates import RAW, of_kinds
from nacme.errors import CriterionError
from nacme.settings import SETTINGS, Setting, parse_key

#: The choice of `nested_seeing_target`.
SEEING = "nested_seeing_target"

if TYPE_CHECKING:
    import pandas as pd

    from nacme.study.selection import Per


def grid_settings(df: pd.DataFrame) -> list[Setting]:
    """Find the settings that a sweep's records hold.

    Parameters
    ----------
    df : DataFrame
        As `nacme.load_sweep` returns it.

    Returns
    -------
    list of Setting
        Empty for a sweep recorded without a grid.
    """
    return [setting for column in df.columns if (setting := parse_key(str(column))) is not None]


def sensitivity(df: pd.DataFrame, population: Per = "run", include_step0: bool = False) -> pd.DataFrame:
    """Rank correlation and regret of every setting of the grid, per (dataset, test env).

    Parameters
    ----------
    df : DataFrame
        As `nacme.load_sweep` returns it.
    population : {"run", "sweep"}
        See `nacme.rank_correlation`; algorithms are pooled.
    include_step0 : bool
        Whether the untrained network counts as a checkpoint in the correlations.

    Returns
    -------
    DataFrame
        One row per (dataset, test env, setting): ``dataset, test_env, key, alpha, bins, fill, samples, layer,
        n_runs, kendall_tau, regret``, the regret in points and averaged over choices. Undefined values are NaN.

    Raises
    ------
    CriterionError
        If the records hold no grid.
    """
    import pandas as pd

    settings = _settings(df)
    table = _evaluate(df, [setting.key for setting in settings], population, include_step0)
    for name in SETTINGS:
        # objects: a fill of 1 is a count and one of 1.0 the whole
        values = {setting.key: getattr(setting, name) for setting in settings}
        table[name] = pd.Series([values[key] for key in table["key"]], dtype=object, index=table.index)
    result: pd.DataFrame = table[["dataset", "test_env", "key", *SETTINGS, "n_runs", "kendall_tau", "regret"]]
    return result


def nested_choice(
    df: pd.DataFrame,
    population: Per = "run",
    baselines: Sequence[str] = ("val_acc", "last"),
    include_step0: bool = False,
    candidates: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Choose the setting without the target: by runs that neither train on it nor are judged on it.

    Taking the best setting of a table and quoting its figure there is peeking. Here the setting for test env ``i``
    is chosen by the runs that hold out ``i`` *and* others: by how it ranks their checkpoints by accuracy on those
    others (mean Kendall tau over the cells of test env and training envs, without cells where no tau is defined).
    It is judged on ``i`` in the runs that hold out ``i`` alone, where there are any: the networks that would be
    shipped. Otherwise it is judged on ``i`` in the runs that chose; their accuracy on ``i`` had no say in it.

    Parameters
    ----------
    df : DataFrame
        As `nacme.load_sweep` returns it; with runs that hold out pairs of envs (``test_envs: pairs`` in a sweep's
        specification), or all envs but one.
    population : {"run", "sweep"}
    baselines : sequence of str
        Criteria to judge beside it.
    include_step0 : bool
        As for `sensitivity`.
    candidates : sequence of str, optional
        Criteria to choose among. None: the settings of the grid.

    Returns
    -------
    DataFrame
        One row per (dataset, test env, choice): ``dataset, test_env, choice, key, kendall_tau, regret, n_chose,
        judged_on``. The choice is ``"nested"``, ``"peeking"`` (the best setting where it is judged, an upper bound
        that nobody can reach), or a baseline's name; ``n_chose`` counts the runs that chose, and ``judged_on`` is
        ``"single"`` or ``"several"``, by how many test envs the runs have. A test env that no run holds out
        together with another has no nested choice: NaN.

    Raises
    ------
    CriterionError
        If the records hold no grid or not a baseline, or no run has several test envs.
    """
    import pandas as pd

    from nacme.targets import observations

    df = of_kinds(df, [RAW])
    several = df[df["n_test_envs"] > 1]
    if several.empty:
        raise CriterionError(
            f"{df.attrs.get('path', 'the sweep')} has no run that holds out two envs, so nothing can be chosen "
            "without runs that trained on the target; add test_envs: pairs, or see nested_seeing_target"
        )
    keys = [setting.key for setting in _settings(df)] if candidates is None else list(candidates)
    names = list(dict.fromkeys([*keys, *baselines]))
    labelled = observations(several, "each")[0]
    cells = (
        several.assign(cell=labelled["test_env"]).groupby(["dataset", "cell"])[["test_env", "test_envs"]].first()
    )
    of_cells = _evaluate(labelled, names, population, include_step0)
    alone = df[df["n_test_envs"] == 1]
    of_alone = _evaluate(alone, names, population, include_step0) if len(alone) else None
    rows = []
    for dataset, whole in of_cells.groupby("dataset", sort=False):
        taus, regrets = (whole.pivot(index="key", columns="test_env", values=v) for v in ("kendall_tau", "regret"))
        about = cells.loc[dataset]
        held_out = about["test_envs"].str.split(",").map(lambda envs: {int(env) for env in envs})
        for env in sorted(set().union(*held_out)):
            others = held_out.map(lambda envs, env=env: env in envs) & (about["test_env"] != env)
            choosing = about.index[others]
            ranked = taus.loc[keys, choosing].dropna(axis=1, how="all").mean(axis=1, skipna=False).dropna()
            chose = several.loc[
                (several["dataset"] == dataset) & labelled["test_env"].isin(choosing), "run"
            ].nunique()
            here = None if of_alone is None else of_alone.query("dataset == @dataset and test_env == @env")
            if here is not None and len(here):
                judged = here.set_index("key")[["kendall_tau", "regret"]]
            else:
                own = about.index[about["test_env"] == env]
                judged = pd.DataFrame({"kendall_tau": taus[own].mean(axis=1), "regret": regrets[own].mean(axis=1)})
            best = judged.loc[keys, "kendall_tau"].dropna()
            picks = {"nested": ranked, "peeking": best}
            chosen = {name: str(of.idxmax()) if len(of) else None for name, of in picks.items()}
            for choice, key in (chosen | {name: name for name in baselines}).items():
                values = judged.loc[key] if key is not None else dict.fromkeys(judged, float("nan"))
                rows.append(
                    {
                        "dataset": dataset,
                        "test_env": env,
                        "choice": choice,
                        "key": key,
                        "kendall_tau": values["kendall_tau"],
                        "regret": values["regret"],
                        "n_chose": chose,
                        "judged_on": "single" if here is not None and len(here) else "several",
                    }
                )
    result: pd.DataFrame = pd.DataFrame(rows)
    return result


def nested_seeing_target(
    df: pd.DataFrame,
    population: Per = "run",
    baselines: Sequence[str] = ("val_acc", "last"),
    include_step0: bool = False,
    candidates: Sequence[str] | None = None,
) -> pd.DataFrame:
    """Choose the setting on the other test envs and judge it on this one, by runs that were trained on this one.

    The setting for a test env is the one with the best mean Kendall tau over the data set's other test envs,
    without those where no tau is defined at all, because every checkpoint of a run has the same test accuracy.
    That is less than peeking at this test env, but not free of it: each run that chooses was trained on its
    labelled samples. `nested_choice` is free of it, and needs runs with several test envs.

    Parameters
    ----------
    df : DataFrame
        As `nacme.load_sweep` returns it.
    population : {"run", "sweep"}
    baselines : sequence of str
        Criteria to judge beside it.
    include_step0 : bool
        As for `sensitivity`.
    candidates : sequence of str, optional
        Criteria to choose among. None: the settings of the grid.

    Returns
    -------
    DataFrame
        One row per (dataset, test env, choice): ``dataset, test_env, choice, key, kendall_tau, regret``. The
        choice is ``"nested_seeing_target"``, ``"peeking"`` (the best setting on this test env itself, an upper
        bound that nobody can reach), or a baseline's name. A data set with a single test env has no nested choice:
        NaN.

    Raises
    ------
    CriterionError
        If the records hold no grid, or not a baseline.
    """
    import pandas as pd

    if candidates is None:
        table = sensitivity(df, population, include_step0)
    else:
        table = _evaluate(df, list(candidates), population, include_step0)
    rows = []
    for dataset, whole in table.groupby("dataset", sort=False):
        taus = whole.pivot(index="key", columns="test_env", values="kendall_tau")
        regrets = whole.pivot(index="key", columns="test_env", values="regret")
        for env in taus.columns:
            # an env where nothing can be ranked says nothing of any setting; a setting that is undefined on one of
            # the others is no candidate, however good it is elsewhere
            others = taus.drop(columns=env).dropna(axis=1, how="all").mean(axis=1, skipna=False).dropna()
            here = taus[env].dropna()
            for choice, ranked in ((SEEING, others), ("peeking", here)):
                key = str(ranked.idxmax()) if len(ranked) and (choice == "peeking" or taus.shape[1] > 1) else None
                rows.append(
                    {
                        "dataset": dataset,
                        "test_env": env,
                        "choice": choice,
                        "key": key,
                        "kendall_tau": taus.loc[key, env] if key else float("nan"),
                        "regret": regrets.loc[key, env] if key else float("nan"),
                    }
                )
    judged = _evaluate(df, list(baselines), population, include_step0).assign(choice=lambda t: t["key"])
    columns = ["dataset", "test_env", "choice", "key", "kendall_tau", "regret"]
    together = pd.concat([pd.DataFrame(rows, columns=columns), judged[columns]])
    result: pd.DataFrame = together.sort_values(["dataset", "test_env"], kind="stable").reset_index(drop=True)
    return result


def _settings(df: pd.DataFrame) -> list[Setting]:
    """Find the settings of the grid, which must be there."""
    settings = grid_settings(df)
    if not settings:
        where = df.attrs.get("path", "the sweep")
        raise CriterionError(
            f"the records of {where} hold no grid of settings; record one with "
            "--nac_grid alpha=0.1,1,10 bins=20,50 fill=500,0.08"
        )
    return settings


def _evaluate(df: pd.DataFrame, keys: list[str], population: Per, include_step0: bool) -> pd.DataFrame:
    """Tau and mean regret of criteria, per (dataset, test env, key)."""
    from nacme.study.correlation import rank_correlation
    from nacme.study.selection import select

    # no interval is asked for here, so one resample is enough
    taus = rank_correlation(
        df, keys, population, include_step0=include_step0, n_boot=1, pool_algorithms=True
    ).rename(columns={"criterion": "key"})
    regrets = (
        select(df, keys, per=population)
        .rename(columns={"criterion": "key"})
        .groupby(["dataset", "test_env", "key"], as_index=False)["regret"]
        .mean()
    )
    columns = ["dataset", "test_env", "key"]
    table: pd.DataFrame = taus[[*columns, "n_runs", "kendall_tau"]].merge(regrets, on=columns, how="left")
    return table
