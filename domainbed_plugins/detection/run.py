"""Examining the checkpoints of a sweep, and adding what is found to the records of their runs."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from domainbed_plugins.detection.options import COVARIATE, DETECTORS, Detection, DetectOptions
from domainbed_plugins.runs.saved import Job, find_jobs
from nacme.errors import ConfigError, SweepError, nearest
from nacme.records.run import DETECTED, RESULTS
from nacme.system import files

if TYPE_CHECKING:
    import pandas as pd


def detect(
    path: str | os.PathLike[str],
    data_dir: str | None,
    options: DetectOptions | None = None,
    *,
    every_checkpoint: bool = False,
    out: str | os.PathLike[str] | None = None,
    domainbed: str | None = None,
) -> pd.DataFrame:
    """Examine checkpoints, add what is found to each run's ``ood.jsonl``, and draw the scores.

    Parameters
    ----------
    path : path-like
        A saved model, a run directory, or a sweep directory.
    data_dir : str or None
        As DomainBed's ``--data_dir``.
    options : DetectOptions, optional
    every_checkpoint : bool
        Whether to examine all saved models of a run rather than the last.
    out : path-like, optional
        Where histograms go.
    domainbed : str, optional
        A DomainBed clone.

    Returns
    -------
    pandas.DataFrame
        One row per (checkpoint, detector, shift): ``run, dataset, algorithm, test_envs, step, detector, shift,
        ood, n_in, n_out`` and ``auroc, aupr, fpr95``, each with ``_low`` and ``_high``.

    Raises
    ------
    NacmeError
        If there is nothing to examine, a name is unknown, or the data or a checkpoint cannot be read.
    """
    import pandas as pd
    from tqdm import tqdm

    options = options or DetectOptions()
    _check(options, data_dir)
    jobs = _jobs(Path(path), every_checkpoint)

    from domainbed_plugins.detection.examiner import Examiner
    from nacme.ood.score_plots import score_histograms
    from nacme.plots.style import render
    from nacme.report.page import write_file

    examiner = Examiner(data_dir, options, domainbed)
    rows: list[dict[str, Any]] = []
    for job in tqdm(jobs, desc="detect", unit="checkpoint", disable=None):
        found = examiner.examine(job)
        rows += found.rows
        _write_down(found, options)
        if out is not None:
            name = files.file_name(job.directory.resolve().name, f"step{job.step}")
            title = f"{job.args['algorithm']} on {job.args['dataset']}, step {job.step}"
            picture = render(score_histograms(found.scores, title), "png")
            write_file(Path(out) / f"{name}.png", picture)
    table: pd.DataFrame = pd.DataFrame(rows)
    return table


def _check(options: DetectOptions, data_dir: str | None) -> None:
    """Refuse what cannot work before anything is read."""
    for name in options.detectors:
        if name not in DETECTORS:
            raise ConfigError(f"--detector {name!r} is unknown; {nearest(name, DETECTORS)}")
    for flag, value, least in (
        ("fit_samples", options.fit_samples, 4),
        ("ood_samples", options.ood_samples, 2),
        ("n_boot", options.n_boot, 1),
        ("seed", options.seed, 0),
    ):
        if value < least:
            raise ConfigError(f"--{flag} {value} must be at least {least}")
    for flag, folder in (("data_dir", data_dir), ("ood_data_dir", options.ood_data_dir)):
        if folder is not None and not Path(folder).is_dir():
            raise ConfigError(f"--{flag} {folder} is not a directory; give the folder that training read")


def _jobs(path: Path, every: bool) -> list[Job]:
    """Find the checkpoints that are meant."""
    if not path.exists():
        raise SweepError(f"{path} does not exist; give a saved model, a run directory or a sweep directory")
    failures: list[str] = []
    if path.is_file():
        if not (path.parent / RESULTS).is_file():
            raise SweepError(f"{path} lies beside no {RESULTS}, which says how it was trained; keep them together")
        wanted = [job for job in find_jobs(path.parent, failures) if job.checkpoint == path]
        if not wanted and path.name == "model.pkl":  # stands beside the same model under its step's name
            wanted = find_jobs(path.parent, failures)[-1:]
        if not wanted and not failures:
            raise SweepError(f"{path} is not named as a saved model is (model.pkl, model_step100.pkl)")
    else:
        wanted = find_jobs(path, failures)
        if not every:
            wanted = list({job.directory: job for job in wanted}.values())
    if failures:
        raise SweepError(failures[0])
    return wanted


def _write_down(found: Detection, options: DetectOptions) -> None:
    """Add a checkpoint's numbers to its run's records; those of other detectors and data sets stay."""
    from domainbed_plugins.runs.records import update

    def put(record: dict[str, Any]) -> dict[str, Any]:
        ood = record.get("ood")
        record["ood"] = ood if isinstance(ood, dict) else {}
        for row in found.rows:
            end = f"{COVARIATE if row['shift'] == COVARIATE else row['ood']}_{row['detector']}"
            record.update({f"{metric}_{end}": row[metric] for metric in ("auroc", "aupr", "fpr95")})
            record["ood"][end] = {
                **{key: row[key] for key in row if key.startswith("n_") or key.endswith(("_low", "_high"))},
                "settings": found.settings[row["detector"]],
                "asked": asdict(options),
            }
        return record

    update(found.job.directory / DETECTED, found.job.step, put)
