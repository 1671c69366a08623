"""One recommendation: which candidate to ship for a data set and test env, why, and how sure that is.

The rule is one function, `preferred`: the highest validation accuracy among all candidates. How sure: in runs with
pairs of test envs the same rule is applied, and judged on the one env of the pair that is not the target. No run
that chooses there was trained on the target, and no label of the target is looked at.
"""

from __future__ import annotations

import json
from functools import cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from nacme.candidates import RAW, SEVERAL_NETWORKS, kinds, of_kinds
from nacme.errors import SweepError
from nacme.study.selection import select
from nacme.targets import Targets

if TYPE_CHECKING:
    import pandas as pd

RECOMMEND_COLUMNS = (
    "dataset",
    "test_env",
    "run",
    "step",
    "candidate",
    "reason",
    "test_acc",
    "p_at_least_as_good",
    "checkpoint",
    "cost_if_wrong",
    "evidence",
)
_CELL = ["dataset", "test_env"]
_NAN = float("nan")


def preferred(df: pd.DataFrame, *, targets: Targets | None = None) -> pd.DataFrame:
    """Choose the candidate with the highest validation accuracy in each (dataset, test env): the rule.

    Parameters
    ----------
    df : DataFrame
        Rows to choose among, as `nacme.load_sweep` returns them.
    targets : {"each", "mean"}, optional
        As for `nacme.select`.

    Returns
    -------
    DataFrame
        A row of `nacme.select` for each; all algorithms and trials are chosen among. A tie goes to a raw one.
    """
    picks = select(df, "val_acc", targets=targets).dropna(subset="run")
    picks = picks.assign(_averaged=picks["candidate"].ne(RAW))
    ordered = picks.sort_values(
        [*_CELL, "value", "_averaged", "algorithm", "trial_seed"], ascending=[True, True, False, True, True, True]
    )
    chosen: pd.DataFrame = ordered.drop_duplicates(_CELL).drop(columns="_averaged").reset_index(drop=True)
    return chosen


def recommend(df: pd.DataFrame, *, one_network: bool = True, targets: Targets | None = None) -> pd.DataFrame:
    """Say which candidate to ship for each (dataset, test env).

    Parameters
    ----------
    df : DataFrame
        As `nacme.load_sweep` returns it.
    one_network : bool
        Whether ensembles, which take a network for each member to predict, are left out.
    targets : {"each", "mean"}, optional
        As for `nacme.select`.

    Returns
    -------
    DataFrame
        One row each: ``dataset, test_env, run, step, candidate, reason, test_acc, p_at_least_as_good, checkpoint,
        cost_if_wrong, evidence``.

        ``p_at_least_as_good``
            probability that the candidate is at least as good on the test env as the best-validated raw
            checkpoint: ``(k + 1) / (n + 2)``, if it was so in ``k`` of ``n`` honest comparisons; 1 if it is that
            checkpoint; NaN without any
        ``cost_if_wrong``
            points of test accuracy lost on average in the comparisons where it was worse; NaN if it never was
        ``evidence``
            which comparisons these are: this sweep's own (`pair_gains`), else stored ones with their source, else
            why there are none

    Raises
    ------
    SweepError
        If no checkpoint has a validation accuracy.
    """
    import pandas as pd

    several = [kind for kind in kinds(df) if kind.partition(":")[0] in SEVERAL_NETWORKS]
    if one_network and several:
        df = of_kinds(df, [kind for kind in kinds(df) if kind not in several])
    chosen = preferred(df, targets=targets)
    if chosen.empty:
        raise SweepError(f"{df.attrs.get('path', 'the sweep')} has no checkpoint with a validation accuracy")
    raw = preferred(of_kinds(df, [RAW]), targets=targets).set_index(_CELL)
    among = "candidates that take one network" if one_network else "all candidates"
    rows = []
    for pick in chosen.to_dict("records"):
        place = pick["dataset"], pick["test_env"]
        reason = f"the highest validation accuracy of {among}: {pick['value']:.3f}"
        sure, cost, evidence = 1.0, _NAN, "it is the best-validated checkpoint itself"
        if pick["candidate"] != RAW:
            reason += f" against {raw['value'].get(place, _NAN):.3f} of the best-validated raw checkpoint"
            sure, cost, evidence = _how_sure(df, str(pick["candidate"]), *place)
        pick |= {"reason": reason, "p_at_least_as_good": sure, "cost_if_wrong": cost, "evidence": evidence}
        rows.append(pick)
    result: pd.DataFrame = pd.DataFrame(rows)[list(RECOMMEND_COLUMNS)]
    return result


def pair_gains(df: pd.DataFrame, dataset: object, test_env: object) -> list[float]:
    """Apply the rule where neither the target nor one more env was trained on, and judge it on the latter.

    Parameters
    ----------
    df : DataFrame
        As `nacme.load_sweep` returns it, with runs whose test envs are pairs.
    dataset, test_env
        The target.

    Returns
    -------
    list of float
        For each (other env, algorithm, trial) in which a candidate that is no raw checkpoint was chosen: its test
        accuracy on the other env minus that of the best-validated raw checkpoint, in points.
    """
    pairs = df[(df["dataset"] == dataset) & (df["n_test_envs"] == 2) & (df["test_env"] != test_env)]
    pairs = pairs[[str(test_env) in str(envs).split(",") for envs in pairs["test_envs"]]]
    if pairs.empty:
        return []
    single = pairs.assign(n_test_envs=1)
    key = ["test_env", "algorithm", "trial_seed"]
    chosen, raw = (
        select(of_kinds(single, wanted), "val_acc").set_index(key)[["test_acc", "candidate"]]
        for wanted in (None, [RAW])
    )
    both = chosen.join(raw["test_acc"].rename("raw_acc")).dropna()
    both = both[both["candidate"] != RAW]
    return [float(gain) for gain in (100 * (both["test_acc"] - both["raw_acc"])).round(9)]


def _how_sure(df: pd.DataFrame, candidate: str, dataset: object, test_env: object) -> tuple[float, float, str]:
    """Give ``p_at_least_as_good``, ``cost_if_wrong`` and ``evidence``."""
    if gains := pair_gains(df, dataset, test_env):
        lost = [-gain for gain in gains if gain < 0]
        cost = sum(lost) / len(lost) if lost else _NAN
        said = f"{len(gains)} choices of this sweep's runs with pairs of test envs, judged on the other env"
        return (len(gains) - len(lost) + 1) / (len(gains) + 2), cost, said
    kind = candidate.partition(":")[0]
    for study in _stored():
        if study["kind"] == kind:
            worse, count = study["worse"], study["n"]
            return (
                (count - worse + 1) / (count + 2),
                study.get("cost_if_wrong") or _NAN,
                f"stored: {study['source']}",
            )
    return (
        _NAN,
        _NAN,
        f"none: no runs with pairs of test envs that hold such candidates, and no study of {kind} stored",
    )


@cache
def _stored() -> tuple[dict[str, Any], ...]:
    """Comparisons of earlier studies: in ``worse`` of ``n`` a kind lost to the best-validated raw checkpoint."""
    return tuple(json.loads((files("nacme") / "stored_evidence.json").read_text(encoding="utf-8")))
