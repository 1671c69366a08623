"""The report's section on candidates that are no raw checkpoints."""

from __future__ import annotations

import pandas as pd

from nacme.candidates import RAW, kinds
from nacme.report.findings import Findings
from nacme.report.page import Section
from nacme.report.tables import Table, integer, percent, points, text
from nacme.study.quality import candidate_gains
from nacme.targets import Targets

_WITHIN = {"run": "within a run", "sweep": "across the sweep"}


def candidates_section(findings: Findings, df: pd.DataFrame, targets: Targets | None) -> Section | None:
    """Lay out what averages and ensembles gain over raw checkpoints, of which all else on the page is.

    Parameters
    ----------
    findings : Findings
    df : DataFrame
        The whole sweep.
    targets : {"each", "mean"}, optional

    Returns
    -------
    Section or None
        None: there are raw checkpoints only.
    """
    if kinds(df) == [RAW]:
        return None
    tables = [
        Table(
            f"candidates-{per}",
            f"Of each kind the candidate with the highest validation accuracy, {_WITHIN[per]}: gain over the "
            "best-validated raw checkpoint in points of test accuracy, plus and minus its standard error over the "
            "choices; networks is what one prediction costs.",
            candidate_gains(df, per, targets=targets),
            [
                text("candidate", "candidate"), percent("test accuracy", "test_acc"),
                points("gain", "gain", "gain_error"), integer("better", "better"), integer("worse", "worse"),
                integer("networks", "networks"), integer("choices", "n_populations"),
            ],
        )
        for per in findings.picks
    ]  # fmt: skip
    return Section("candidates", "What other candidates gain", [], tables)
