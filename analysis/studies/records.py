"""Keep a finished sweep's records as one small file, with what is needed to make them again.

    python -m analysis.studies.records SWEEP analysis/studies/NAME --spec SPEC
    python -m analysis.studies.records MEASURED_AGAIN analysis/studies/NAME --inside

Writes ``records.parquet`` (what `nacme.load_sweep` reads of the finished runs, paths from the sweep's directory
on), ``spec.yaml`` and ``about.json``: how many runs of how many, versions and testbed as the runs noted them,
where and on which splits coverage was measured, when they ended, and how long they took. With ``--merge`` runs
that are stored already stay, as for a sweep of which another part was trained elsewhere; the same run read again
takes the stored one's place. With ``--inside``: ``records_in.parquet``, the coverage of checkpoints measured again
by ``nacme score --nac_split in``.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import json
import shutil
import statistics
from pathlib import Path
from typing import Any

import pandas as pd

import nacme
from domainbed_plugins.sweep.jobs import make_jobs
from domainbed_plugins.sweep.spec_file import load_spec

#: What tells a run of a study from the others.
RUN = ["dataset", "algorithm", "test_envs", "trial_seed", "hparams_seed"]


def keep(sweep: Path, out: Path, spec: Path, *, merge: bool = False) -> None:
    """Keep the records of a sweep's finished runs, its specification and its circumstances."""
    df = nacme.load_sweep(sweep)
    df = df[df["done"]].reset_index(drop=True)
    if df.empty:
        raise SystemExit(f"{sweep}: no run is finished; go on with nacme sweep run {spec}")
    out.mkdir(parents=True, exist_ok=True)
    df.attrs.clear()  # Parquet would keep them, the sweep's path on this machine among them
    paths = [None if path is None else str(Path(path).relative_to(sweep)) for path in df["checkpoint"]]
    df["checkpoint"] = pd.Series(paths, dtype=object)
    about = described([sweep / run / "results.jsonl" for run in df["run"].unique()])
    if merge and (out / "records.parquet").exists():
        df = merged(pd.read_parquet(out / "records.parquet"), df)
        about = joined(json.loads((out / "about.json").read_text()), about)
    df.to_parquet(out / "records.parquet", compression="zstd", index=False)
    shutil.copy(spec, out / "spec.yaml")
    about = {
        "command": f"nacme sweep run analysis/studies/{out.name}/spec.yaml --output_dir SWEEP --data_dir DATA",
        "runs": int(df["run"].nunique()),
        "planned": len(make_jobs(load_spec(spec), out, "DATA")),
        "checkpoints": len(df.drop_duplicates(["run", "step"])),
        **about,
    }
    (out / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    print(json.dumps(about, indent=2))


def merged(stored: pd.DataFrame, new: pd.DataFrame) -> pd.DataFrame:
    """Put newly finished runs beside the stored ones; the same run read again takes the stored one's place."""
    again = pd.MultiIndex.from_frame(stored[RUN]).isin(pd.MultiIndex.from_frame(new[RUN]))
    kept = stored[~again]
    taken = set(kept["run"])
    new = new.assign(run=[f"{run}-again" if run in taken else run for run in new["run"]])
    return pd.concat([kept, new], ignore_index=True).sort_values(["run", "test_env", "step"], ignore_index=True)


def joined(stored: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Say of runs that were trained at several places what holds for any of them; the minutes are the latest's."""
    versions = {}
    for key in sorted({*stored["versions"], *new["versions"]}):
        said = [*stored["versions"].get(key, "").split(", "), *new["versions"].get(key, "").split(", ")]
        versions[key] = ", ".join(sorted(set(filter(None, said))))
    layers = sorted({*stored.get("layers", []), *new["layers"]})
    return {**new, "versions": versions, "layers": layers, "ended": max(stored["ended"], new["ended"])}


def keep_inside(sweep: Path, out: Path) -> None:
    """Keep the coverage that was measured on the training splits."""
    rows = []
    for path in sorted(sweep.glob("*/nac.jsonl")):
        for record in map(json.loads, path.read_text().splitlines()):
            if record["nac"]["split"] != "in":
                raise SystemExit(
                    f"{path}: measured on the {record['nac']['split']} splits; nacme score --nac_split in"
                )
            keys = ["step", "nac_me", *record["nac"]["grid"]]
            rows.append({"run": path.parent.name, **{key: record[key] for key in keys}})
    if not rows:
        raise SystemExit(f"{sweep} holds no nac.jsonl; nacme score --nac_split in writes them")
    inside = pd.DataFrame(rows)
    inside.to_parquet(out / "records_in.parquet", compression="zstd", index=False)
    print(f"{len(inside)} checkpoints of {inside['run'].nunique()} runs")


def described(results: list[Path]) -> dict[str, Any]:
    """Read from the runs' own files what they ran with and when."""
    said: dict[str, set[str]] = {}
    for path in results:
        lines = (path.parent / "out.txt").read_text().partition("Args:")[0].splitlines()
        for line in lines:
            key, colon, value = line.strip().partition(": ")
            if colon:
                said.setdefault(key, set()).add(value)
    ended = [path.stat().st_mtime for path in results]
    begun = [min(file.stat().st_mtime for file in path.parent.iterdir()) for path in results]
    in_steps = [step_seconds(path) for path in results]
    measured = [
        json.loads(line).get("nac") or {} for path in results for line in path.read_text().splitlines()[:1]
    ]
    return {
        "layers": sorted({layer for nac in measured for layer in nac.get("layers", [])}),
        "splits": sorted({nac["split"] for nac in measured if "split" in nac}),
        "versions": {key: ", ".join(sorted(values)) for key, values in sorted(said.items())},
        "ended": datetime.datetime.fromtimestamp(max(ended), datetime.timezone.utc).strftime("%Y-%m-%d"),
        # the median, for a run that was stopped and taken up again seems to last longer
        "minutes_per_run": round(statistics.median(b - a for a, b in zip(begun, ended)) / 60, 1),
        "minutes_per_run_in_training_steps": round(statistics.median(in_steps) / 60, 1),
    }


def step_seconds(results: Path) -> float:
    """Add up the seconds that a run spent in training steps; the rest is evaluation, recording and saving."""
    records = [json.loads(line) for line in results.read_text().splitlines()]
    pairs = itertools.pairwise(records)
    return sum(after["step_time"] * (after["step"] - before["step"]) for before, after in pairs)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m analysis.studies.records")
    parser.add_argument("sweep", type=Path)
    parser.add_argument("out", type=Path, help="analysis/studies/NAME")
    kinds = parser.add_mutually_exclusive_group(required=True)
    kinds.add_argument("--spec", type=Path, help="what the sweep was run by")
    parser.add_argument("--merge", action="store_true", help="keep stored runs that this sweep does not hold")
    kinds.add_argument("--inside", action="store_true", help="keep what nacme score --nac_split in measured")
    flags = parser.parse_args()
    if flags.inside:
        keep_inside(flags.sweep, flags.out)
    else:
        keep(flags.sweep, flags.out, flags.spec, merge=flags.merge)
