"""What is covered?  python -m analysis.questions.coverage SWEEP FIGURE"""

import sys
from pathlib import Path

import numpy as np

import nacme
from nacme import plots

sweep, figure = sys.argv[1:]
chosen = nacme.select(nacme.load_sweep(sweep), "val_acc").sort_values("value").iloc[-1]
# of the run's checkpoint with the highest nac_me, as training kept it
with np.load(Path(sweep) / chosen["run"] / "coverage.npz") as kept:
    layer = next(name for name in kept.files if name.startswith("counts_"))
    title = f"{chosen['dataset']}, test env {chosen['test_env']}, step {int(kept['step'])}"
    plots.coverage_picture(kept[layer], fill=float(kept["fill"]), title=title).savefig(figure)
