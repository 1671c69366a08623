"""The registry of selection criteria: numbers by which the checkpoints of a run or a sweep are ranked.

A criterion's direction is fixed here, before any data is seen. Two kinds live in one registry:

* *recorded* criteria need the network (its logits, features, gradients or weights) and are written into
  ``results.jsonl`` while it trains, or into ``nac.jsonl`` afterwards;
* criteria with ``needs == ("records",)`` follow from the records alone.

This module imports neither torch nor pandas at import time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from nacme.errors import CriterionError, nearest

if TYPE_CHECKING:
    import pandas as pd

Sees = Literal["ind", "target_unlabeled", "oracle"]
Need = Literal["logits", "features", "gradients", "weights", "records"]

#: A recorded key that starts like this is ``nac_me`` measured with other settings (``nac.grid`` names them).
VARIANT_PREFIX = "nac_me_"


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
        If the name is taken, or is not a plain identifier.
    """
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
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Register a function as a criterion; its name and first docstring line serve unless given.

    Parameters
    ----------
    higher_is_better, sees, needs, cost, source, name, description
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
            )
        )
        return function

    return decorate


def all_criteria() -> dict[str, Criterion]:
    """Return every registered criterion by name, in order of registration."""
    return dict(_REGISTRY)


def recorded_names() -> list[str]:
    """Return the names that are keys of the records."""
    return [c.name for c in all_criteria().values() if c.is_recorded]


def get_criterion(name: str) -> Criterion:
    """Look a criterion up.

    Parameters
    ----------
    name : str
        A registered name, or ``nac_me_*`` for NAC-ME measured with other settings.

    Returns
    -------
    Criterion

    Raises
    ------
    CriterionError
        If there is none of that name; the message suggests the nearest.
    """
    known = all_criteria()
    if name in known:
        return known[name]
    if name.startswith(VARIANT_PREFIX) and len(name) > len(VARIANT_PREFIX):
        return replace(known["nac_me"], name=name, description="NAC-ME measured with other settings.")
    raise CriterionError(f"no criterion {name!r}; {nearest(name, known)}")


def criterion_values(df: pd.DataFrame, name: str) -> pd.Series[float]:
    """Evaluate a criterion at every row of a sweep.

    Parameters
    ----------
    df : pandas.DataFrame
        As `nacme.load_sweep` returns it, all runs included.
    name : str
        Name of the criterion.

    Returns
    -------
    pandas.Series
        Its value per row in the criterion's own direction; NaN where it is undefined or not finite.

    Raises
    ------
    CriterionError
        If there is no such criterion, or the records do not hold it.
    """
    import numpy as np

    chosen = get_criterion(name)
    values: pd.Series[float]
    if chosen.needs == ("records",) and chosen.compute is not None:
        values = chosen.compute(df)
    elif name in df.columns:
        values = df[name]
    else:
        raise CriterionError(_missing(chosen, df))
    values = values.astype(float)
    finite: pd.Series[float] = values.where(np.isfinite(values))
    return finite


def oriented_values(df: pd.DataFrame, name: str) -> pd.Series[float]:
    """Evaluate a criterion and turn it so that higher is better; as `criterion_values` otherwise."""
    values = criterion_values(df, name)
    return values if get_criterion(name).higher_is_better else -values


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
    return (
        f"the records of {where} do not hold criterion {chosen.name!r}; measure the saved checkpoints with "
        f"'nacme score {where} --data_dir DIR --criteria {chosen.name}'"
    )


def _last(df: pd.DataFrame) -> pd.Series[float]:
    return df["step"]


def _oracle(df: pd.DataFrame) -> pd.Series[float]:
    return df["test_acc"]


def _domainbed_oracle(df: pd.DataFrame) -> pd.Series[float]:
    last = df.groupby("run", sort=False)["step"].transform("max")
    values: pd.Series[float] = df["test_out_acc"].where(df["step"] == last)
    return values


def _leave_one_out(df: pd.DataFrame) -> pd.Series[float]:
    """Mean, over the envs left, of the accuracy on each when it is left out of training as well.

    The checkpoint of a run with test env ``t`` takes its value from the runs with test envs ``{t, v}`` of
    the same dataset, algorithm, trial, hyper-parameter seed and step: the mean over ``v`` of
    ``env{v}_in_acc``. It is undefined unless every ``v`` is there, or if several runs share the key.
    """
    pairs = df.loc[df["n_test_envs"] == 2]
    if pairs.empty:
        raise CriterionError(
            "criterion 'leave_one_out' needs runs with pairs of test envs, and "
            f"{df.attrs.get('path', 'the sweep')} has none; add them to the sweep, or leave this criterion out"
        )
    place = ["dataset", "algorithm", "trial_seed", "hparams_seed", "step"]
    key = [*place, "test_env"]
    # A row of run {t, v} that tests on v says how well v does when t is the final test env.
    other = pairs["test_envs"].map(lambda text: sum(int(e) for e in text.split(","))) - pairs["test_env"]
    accs = pairs[place].assign(test_env=other, left_out=pairs["test_env"], acc=pairs["test_acc"])
    accs = accs.drop_duplicates([*key, "left_out"], keep="last")
    means = accs.groupby(key)["acc"].agg(["mean", "size", "count"]).reset_index()
    singles = df.loc[df["n_test_envs"] == 1, [*key, "n_envs"]]
    alone = singles.groupby(key)["n_envs"].transform("size") == 1
    merged = singles.merge(means, on=key, how="left").set_axis(singles.index)
    complete = (merged["count"] == merged["n_envs"] - 1) & (merged["size"] == merged["count"]) & alone
    values: pd.Series[float] = merged["mean"].where(complete).reindex(df.index)
    return values


_NAC = "Liu et al., Neuron activation coverage: rethinking OOD detection and generalization, ICLR 2024"
_DOMAINBED = "Gulrajani & Lopez-Paz, In search of lost domain generalization, ICLR 2021"

for _builtin in (
    Criterion(
        name="nac_me",
        higher_is_better=True,
        sees="ind",
        needs=("features", "gradients"),
        cost="one pass over the validation splits",
        source=f"{_NAC}, section 3.3",
        description="NAC-ME: the part of the neurons' state space that in-distribution data covers.",
    ),
    Criterion(
        name="val_acc",
        higher_is_better=True,
        sees="ind",
        needs=("records",),
        cost="none: DomainBed records it",
        source=f"{_DOMAINBED}, section 3 (training-domain validation)",
        description="Mean accuracy on the held-out splits of the training envs.",
        compute=lambda df: df["val_acc"],
    ),
    Criterion(
        name="val_loss",
        higher_is_better=False,
        sees="ind",
        needs=("logits",),
        cost="one pass over the validation splits",
        source="common practice in early stopping",
        description="Mean over training envs of the mean cross-entropy on their held-out splits.",
    ),
    Criterion(
        name="last",
        higher_is_better=True,
        sees="ind",
        needs=("records",),
        cost="none",
        source="the baseline without early stopping",
        description="The step itself: the last checkpoint is the best.",
        compute=_last,
    ),
    Criterion(
        name="oracle",
        higher_is_better=True,
        sees="oracle",
        needs=("records",),
        cost="none, but it looks at the test labels",
        source="the upper bound",
        description="Test accuracy itself: regret 0 by construction.",
        compute=_oracle,
    ),
    Criterion(
        name="domainbed_oracle",
        higher_is_better=True,
        sees="oracle",
        needs=("records",),
        cost="none, but it looks at test labels",
        source=f"{_DOMAINBED}, section 3 (test-domain validation)",
        description="Accuracy on the test env's held-out split, last checkpoint of each run only.",
        compute=_domainbed_oracle,
        partial=True,
    ),
    Criterion(
        name="leave_one_out",
        higher_is_better=True,
        sees="ind",
        needs=("records",),
        cost="a run for every pair of test envs",
        source=f"{_DOMAINBED}, section 3 (leave-one-domain-out cross-validation)",
        description="Mean accuracy on each training env when training leaves it out too.",
        compute=_leave_one_out,
        partial=True,
    ),
):
    register(_builtin)
