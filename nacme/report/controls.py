"""The report's section on controls: what a finding about coverage has to beat."""

from __future__ import annotations

import pandas as pd

from nacme.criteria.registry import get_criterion, held_controls
from nacme.report.findings import Findings
from nacme.report.page import Section
from nacme.report.tables import Table, decimal, integer, text
from nacme.study.correlation import rank_correlation

#: What the controls stand beside, where the records hold it.
_COVERAGE = ("nac_me", "nac_me_all")


def controls_section(findings: Findings, df: pd.DataFrame, include_step0: bool) -> Section | None:
    """Set coverage beside its shams, within runs.

    Parameters
    ----------
    findings : Findings
    df : DataFrame
        As `nacme.targets.observations` gives it.
    include_step0 : bool

    Returns
    -------
    Section or None
        None for records that hold no control.
    """
    controls = [name for name in held_controls(df) if name not in findings.criteria]
    if not controls:
        return None
    held = [name for name in _COVERAGE if name in df and df[name].notna().any()]
    ranks = rank_correlation(
        df,
        [*held, *controls],
        "run",
        include_step0=include_step0,
        n_boot=findings.n_boot,
        seed=findings.seed,
        pool_algorithms=findings.rows["algorithm"].nunique() > 1,
    )
    ranks = ranks.assign(what=["control" if get_criterion(name).control else "" for name in ranks["criterion"]])
    table = Table(
        "controls",
        "Rank correlation with test accuracy within runs, coverage beside its controls. sham_count knows only how "
        "many samples were counted; sham_permuted is coverage of another checkpoint's states, as many as this one "
        "counts. Where coverage does not beat them, it says nothing that they do not. They are no candidates.",
        ranks,
        [
            *([text("data set", "dataset")] if ranks["dataset"].nunique() > 1 else []),
            text("test env", "test_env"),
            text("criterion", "criterion"),
            text("", "what"),
            decimal("Kendall tau", "kendall_tau", "kendall_low", "kendall_high"),
            decimal("Spearman rho", "spearman_rho", "spearman_low", "spearman_high"),
            decimal("rho given step", "partial_spearman_step"),
            integer("checkpoints", "n_checkpoints"),
            integer("runs", "n_runs"),
        ],
    )
    return Section("controls", "Coverage and its controls", [], [table])
