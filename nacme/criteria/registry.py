"""The registry of selection criteria: numbers by which the checkpoints of a run or a sweep are ranked.

A criterion's direction is fixed here, before any data is seen. Two kinds live in one registry:

* *recorded* criteria need the network (its logits, features, gradients or weights) and are written into
  ``results.jsonl`` while it trains, or into ``nac.jsonl`` afterwards;
* criteria with ``needs == ("records",)`` follow from the records alone.

This module imports neither torch nor pandas at import time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from nacme.criteria import expressions
from nacme.errors import CriterionError, NacmeError, nearest
from nacme.system.plugins import import_module, load_entry_points
from nacme.system.text import short

if TYPE_CHECKING:
    import pandas as pd

    from nacme.criteria.counter import Counter

Sees = Literal["ind", "target_unlabeled", "oracle"]
Need = Literal["logits", "features", "gradients", "weights", "records"]

#: A recorded key that starts like this is ``nac_me`` measured with other settings (``nac.grid`` names them).
VARIANT_PREFIX = "nac_me_"
#: No criterion, with all its settings, has a longer name.
LONGEST_NAME = 200
#: Entry point group in which installed packages name modules that register criteria.
ENTRY_POINTS = "nacme.criteria"
#: The package's own modules that register criteria; none imports torch before it computes one.
OWN = ("nacme.criteria.builtin", "nacme.criteria.lodo", "nacme.criteria.craft")


@dataclass(frozen=True)
class Criterion:
    """One selection criterion.

    Parameters
    ----------
    name : str
        Its name, which is also its key in the records and its column in the frame of ``load_sweep``.
    higher_is_better : bool
        Its direction.
    sees : {"ind", "target_unlabeled", "oracle"}
        The data it looks at: in-distribution splits only, unlabelled target data, or target labels.
    needs : tuple of {"logits", "features", "gradients", "weights", "records"}
        What it is computed from.
    cost : str
        What computing it takes, in words.
    source : str
        The paper or code it comes from.
    description : str
        What it is, in one line.
    compute : callable, optional
        With ``needs == ("records",)``: a function of the frame of ``load_sweep`` that returns one value per
        row; None where the column of that name holds it. Otherwise: a function of the data collected
        from the network that returns a float; None where another part of the package measures it.
    partial : bool
        Whether it is undefined at some checkpoints by design, so that this needs no warning.
    optional : bool
        Whether it is recorded only when asked for by name.
    counter : callable, optional
        Makes the `Counter` that measures it on the splits that coverage is measured on, a fresh one each time.
    changes : mapping, optional
        For coverage with other settings than ``nac_me``'s: what it changes of the `CoverageSettings` in use.
    control : bool
        Whether it is a sham: it shares everything with another criterion but what that one claims to measure, and
        stands in tables for comparison, never as a candidate for use.
    """

    name: str
    higher_is_better: bool
    sees: Sees
    needs: tuple[Need, ...]
    cost: str
    source: str
    description: str
    compute: Callable[[Any], Any] | None = None
    partial: bool = False
    optional: bool = False
    counter: Callable[[], Counter] | None = None
    control: bool = False
    changes: Mapping[str, Any] | None = None

    @property
    def is_recorded(self) -> bool:
        """Whether the records hold it under its own key, as opposed to following from other keys."""
        return self.needs != ("records",)


_REGISTRY: dict[str, Criterion] = {}


def register(criterion: Criterion) -> Criterion:
    """Add a criterion to the registry.

    Raises
    ------
    CriterionError
        If the name is taken, or is not a plain identifier, or what it sees or needs is unknown.
    """
    for field, value, known in (
        ("sees", (criterion.sees,), get_args(Sees)),
        ("needs", criterion.needs, get_args(Need)),
    ):
        unknown = [repr(v) for v in value if v not in known]
        if unknown:
            raise CriterionError(
                f"criterion {criterion.name!r}: {field}={unknown[0]} is unknown; use {', '.join(map(repr, known))}"
            )
    if criterion.name in _REGISTRY:
        raise CriterionError(f"criterion {criterion.name!r} is registered already; choose another name")
    if not criterion.name.isidentifier():
        raise CriterionError(f"criterion name {criterion.name!r} is not a plain identifier")
    _REGISTRY[criterion.name] = criterion
    return criterion


def criterion(
    *,
    higher_is_better: bool,
    sees: Sees,
    needs: Sequence[Need],
    cost: str,
    source: str,
    name: str | None = None,
    description: str | None = None,
    partial: bool = False,
    optional: bool = False,
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Register a function as a criterion; its name and first docstring line serve unless given.

    Parameters
    ----------
    higher_is_better, sees, needs, cost, source, name, description, partial, optional
        As for `Criterion`.

    Returns
    -------
    callable
        A decorator that leaves the function as it was.

    Examples
    --------
    >>> @criterion(higher_is_better=False, sees="ind", needs=["records"], cost="none", source="here")
    ... def train_gap(df):
    ...     "How far validation accuracy is from 1."
    ...     return 1 - df["val_acc"]
    """

    def decorate(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        summary = (function.__doc__ or "").strip().partition("\n")[0]
        register(
            Criterion(
                name=name or function.__name__,
                higher_is_better=higher_is_better,
                sees=sees,
                needs=tuple(needs),
                cost=cost,
                source=source,
                description=description or summary,
                compute=function,
                partial=partial,
                optional=optional,
            )
        )
        return function

    return decorate


def all_criteria() -> dict[str, Criterion]:
    """Return every criterion by name: the package's own, then those of installed plug-ins."""
    for module in OWN:
        import_module(module)
    load_entry_points(ENTRY_POINTS)
    return dict(_REGISTRY)


def load_criteria_module(module: str) -> None:
    """Import a module that registers criteria with the decorator `criterion`.

    Parameters
    ----------
    module : str
        A dotted name, or the path of a ``.py`` file.

    Raises
    ------
    ConfigError
        If it cannot be imported.
    """
    all_criteria()  # the names that are taken already
    import_module(module)


def recorded_names() -> list[str]:
    """Return the names that are keys of the records."""
    return [c.name for c in all_criteria().values() if c.is_recorded]


def get_criterion(name: str) -> Criterion:
    """Look a criterion up.

    Parameters
    ----------
    name : str
        A registered name, ``nac_me_*`` for NAC-ME measured with other settings, or a combination like
        ``rank_mean(nac_me, val_acc)`` or ``running_mean(val_acc, 3)``.

    Returns
    -------
    Criterion

    Raises
    ------
    CriterionError
        If there is none of that name; the message suggests the nearest.
    """
    if "(" not in name and len(name) > LONGEST_NAME:
        raise CriterionError(f"no criterion {short(name)}; 'nacme criteria' lists them")
    known = all_criteria()
    if name in known:
        return known[name]
    if combination := expressions.parse(name):
        parts = [get_criterion(part) for part in combination.parts]
        if isinstance(combination, expressions.RunningMean):
            about = f"Mean of {combination.part} over {combination.window} neighbouring checkpoints of the run."
            return replace(
                parts[0], name=str(combination), needs=("records",), compute=None, counter=None, description=about
            )
        return Criterion(
            name=str(combination),
            higher_is_better=True,
            sees=max((part.sees for part in parts), key=get_args(Sees).index),
            needs=("records",),
            cost="; ".join(dict.fromkeys(part.cost for part in parts)),
            source="; ".join(dict.fromkeys(part.source for part in parts)),
            description=f"Mean of the ranks by {', '.join(combination.parts)} within the population.",
            partial=any(part.partial for part in parts),
        )
    if name.startswith(VARIANT_PREFIX) and len(name) > len(VARIANT_PREFIX):
        return replace(known["nac_me"], name=name, description="NAC-ME measured with other settings.")
    raise CriterionError(f"no criterion {name!r}; {nearest(name, known)}")


def criterion_values(df: pd.DataFrame, name: str, populations: pd.Series[float] | None = None) -> pd.Series[float]:
    """Evaluate a criterion at every row of a sweep.

    Parameters
    ----------
    df : pandas.DataFrame
        As `nacme.load_sweep` returns it, all runs included.
    name : str
        Name of the criterion, or a combination.
    populations : pandas.Series, optional
        A number for each row's population, NaN for a row in none; by default all rows are one population.
        Only combinations ask: ``rank_mean`` ranks within it.

    Returns
    -------
    pandas.Series
        Its value per row in the criterion's own direction; NaN where it is undefined or not finite. The
        value of ``rank_mean(a, b)`` is the mean of the ranks of ``a`` and ``b``, each turned so that higher
        is better, ties averaged and divided by the population's size (so the best has 1), among the rows
        where all are defined. The value of ``running_mean(a, n)`` is the mean of ``a`` over the checkpoint
        itself and the ``(n - 1) / 2`` before and behind it in the same run (and of the same candidate), of those
        that there are and where ``a`` is defined; undefined where ``a`` itself is.

    Raises
    ------
    CriterionError
        If there is no such criterion, or the records do not hold it.
    """
    import numpy as np
    import pandas as pd

    if name in df.columns and name not in all_criteria() and not name.startswith(VARIANT_PREFIX):
        raise CriterionError(
            f"the direction of column {name!r} in {df.attrs.get('path', 'the table')} is unknown; register it in "
            "a module that --criteria_module names, before looking at the data: docs/tables.md shows how"
        )
    chosen = get_criterion(name)
    values: pd.Series[float]
    combination = None if name in all_criteria() else expressions.parse(name)
    if isinstance(combination, expressions.RunningMean):
        values = _running_mean(df, criterion_values(df, combination.part, populations), combination.window)
    elif combination:
        parts = pd.concat([oriented_values(df, part, populations) for part in combination.parts], axis=1)
        whole = pd.Series(0.0, index=df.index) if populations is None else populations
        ranks = parts[parts.notna().all(axis=1)].groupby(whole).rank(pct=True)
        values = ranks.mean(axis=1).reindex(df.index)
    elif chosen.needs == ("records",) and chosen.compute is not None:
        values = _computed(chosen, df)
    elif name in df.columns:
        values = df[name]
    else:
        raise CriterionError(_missing(chosen, df))
    values = values.astype(float)
    finite: pd.Series[float] = values.where(np.isfinite(values))
    return finite


def _computed(chosen: Criterion, df: pd.DataFrame) -> pd.Series[float]:
    """Compute a criterion of the records by its function, which may be anybody's."""
    import numpy as np
    import pandas as pd

    assert chosen.compute is not None
    code = getattr(chosen.compute, "__code__", None)
    name = f"criterion {chosen.name!r}" + (f" ({code.co_filename})" if code else "")
    try:
        values = chosen.compute(df)
    except NacmeError:
        raise
    except Exception as error:  # a user's function may raise anything
        raise CriterionError(
            f"{name} raised {type(error).__name__}: {str(error).partition(chr(10))[0]}"
        ) from error
    if isinstance(values, pd.Series) and len(values) == len(df) and not values.index.equals(df.index):
        values = values.reindex(df.index)
    try:
        numbers = np.asarray(values, float)
    except (TypeError, ValueError):
        numbers = None
    if numbers is None or numbers.shape != (len(df),):
        raise CriterionError(f"{name} must give one number for each of the {len(df)} rows, not {short(values)}")
    series: pd.Series[float] = pd.Series(numbers, df.index)
    return series


def _running_mean(df: pd.DataFrame, values: pd.Series[float], window: int) -> pd.Series[float]:
    """Average over neighbouring checkpoints within each run, whatever the order of the rows."""
    run = [c for c in ("sweep", "run", "candidate", "test_env", "target") if c in df.columns]
    # by position: rows of several sweeps may share labels
    rows = df[[*run, "step"]].assign(value=values).reset_index(drop=True)
    ordered = rows.sort_values("step", kind="stable")
    means = (
        ordered.groupby(run, sort=False, dropna=False)["value"]
        .rolling(window, center=True, min_periods=1)
        .mean()
        .droplevel(list(range(len(run))))
    )
    smooth: pd.Series[float] = means.sort_index().set_axis(df.index).where(values.notna())
    return smooth


def oriented_values(df: pd.DataFrame, name: str, populations: pd.Series[float] | None = None) -> pd.Series[float]:
    """Evaluate a criterion and turn it so that higher is better; as `criterion_values` otherwise."""
    values = criterion_values(df, name, populations)
    return values if get_criterion(name).higher_is_better else -values


def held_controls(df: pd.DataFrame) -> list[str]:
    """Name the controls that a sweep holds; see `Criterion`.

    Parameters
    ----------
    df : pandas.DataFrame
        As `nacme.load_sweep` returns it.

    Returns
    -------
    list of str
    """
    return [c.name for c in all_criteria().values() if c.control and c.name in df and df[c.name].notna().any()]


def default_criteria(df: pd.DataFrame, oracle: bool = False) -> list[str]:
    """Name the standard criteria that a sweep holds.

    Parameters
    ----------
    df : pandas.DataFrame
        As `nacme.load_sweep` returns it.
    oracle : bool
        Whether to name the upper bound too.

    Returns
    -------
    list of str
        Those of ``nac_me``, ``val_acc``, ``val_loss``, ``last`` and ``oracle`` that are there.
    """
    held = [n for n in ("nac_me", "val_acc", "val_loss") if n in df.columns and df[n].notna().any()]
    return [*held, "last", *(["oracle"] if oracle else [])]


def _missing(chosen: Criterion, df: pd.DataFrame) -> str:
    where = df.attrs.get("path", "SWEEP")
    if os.path.isfile(where):
        return f"{where} has no column {chosen.name!r}; add it, or name another criterion"
    return (
        f"the records of {where} do not hold criterion {chosen.name!r}; measure the saved checkpoints with "
        f"'nacme score {where} --data_dir DIR --criteria {chosen.name}'"
    )
