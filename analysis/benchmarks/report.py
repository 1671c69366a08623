"""How long does the report of a large sweep take, how much memory, and how large is its page?

Writes a synthetic sweep as load_sweep.py does, then runs ``nacme report`` on it twice, each time in a process of
its own: without a cache and from it.

    python analysis/benchmarks/report.py --runs 2400

Prints one line of JSON per run: seconds of the clock and of the processor, peak memory in GB, and megabytes of
page.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from analysis.benchmarks.load_sweep import write_sweep


def measure(sweep: Path, page: Path) -> dict[str, float]:
    """Write one report and return its figures."""
    command = [sys.executable, "-m", "nacme.cli", "report", str(sweep), "--out", str(page)]
    clock = time.perf_counter()
    process = subprocess.Popen(command, cwd=Path(__file__).parents[2], stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    elapsed = time.perf_counter() - clock
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"nacme report ended with {process.returncode}")
    return {
        "wall_s": round(elapsed, 1),
        "cpu_s": round(usage.ru_utime + usage.ru_stime, 1),
        "peak_gb": round(usage.ru_maxrss / 1e6, 2),
        "page_mb": round(page.stat().st_size / 1e6, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=2_400)
    parser.add_argument("--sweep", type=Path, help="Where to write the sweep, or where one was written before.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        sweep = (options.sweep or Path(temporary) / "sweep").absolute()
        if not sweep.exists():
            write_sweep(sweep, options.runs)
        for cache in sweep.glob(".nacme_cache*"):
            cache.unlink()
        for title in ("no cache", "from cache"):
            print(f"{title}: {json.dumps(measure(sweep, Path(temporary) / 'report.html'))}", flush=True)


if __name__ == "__main__":
    main()
