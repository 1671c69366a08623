"""Keep a finished sweep's records as one small file, with what is needed to make them again.

    python -m analysis.studies.records SWEEP SPEC analysis/studies/NAME

Writes ``records.parquet`` (what `nacme.load_sweep` reads, paths from the sweep's directory on), ``spec.yaml`` and
``about.json``: versions and testbed as the runs noted them, when they ended, and how long they took.
"""

from __future__ import annotations

import datetime
import itertools
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import nacme


def main(sweep: Path, spec: Path, out: Path) -> None:
    df = nacme.load_sweep(sweep)
    unfinished = df.loc[~df["done"], "run"].nunique()
    if unfinished:
        raise SystemExit(f"{sweep}: {unfinished} runs are not finished; go on with nacme sweep run {spec}")
    out.mkdir(parents=True, exist_ok=True)
    df["checkpoint"] = [str(Path(path).relative_to(sweep)) for path in df["checkpoint"]]
    df.to_parquet(out / "records.parquet", compression="zstd", index=False)
    shutil.copy(spec, out / "spec.yaml")
    about = {
        "command": f"nacme sweep run analysis/studies/{out.name}/spec.yaml --output_dir SWEEP --data_dir DATA",
        "runs": int(df["run"].nunique()),
        "checkpoints": len(df),
        **described(sorted(sweep.glob("*/results.jsonl"))),
    }
    (out / "about.json").write_text(json.dumps(about, indent=2) + "\n")
    print(json.dumps(about, indent=2))


def described(results: list[Path]) -> dict[str, Any]:
    """Read from the runs' own files what they ran with and when."""
    said: dict[str, set[str]] = {}
    for path in results:
        lines = (path.parent / "out.txt").read_text().partition("Args:")[0].splitlines()
        for line in lines:
            key, colon, value = line.strip().partition(": ")
            if colon:
                said.setdefault(key, set()).add(value)
    begun = min(file.stat().st_mtime for path in results for file in path.parent.iterdir())
    ended = max(path.stat().st_mtime for path in results)
    steps = 0.0
    for path in results:
        records = [json.loads(line) for line in path.read_text().splitlines()]
        counts = [b["step"] - a["step"] for a, b in itertools.pairwise(records)]
        steps += sum(record["step_time"] * count for record, count in zip(records[1:], counts))
    return {
        "versions": {key: ", ".join(sorted(values)) for key, values in sorted(said.items())},
        "ended": datetime.datetime.fromtimestamp(ended, datetime.timezone.utc).strftime("%Y-%m-%d"),
        "elapsed_hours": round((ended - begun) / 3600, 1),
        "hours_in_training_steps": round(steps / 3600, 1),
    }


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
