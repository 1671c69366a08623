"""When would it have stopped training?  python -m analysis.questions.stopping SWEEP FIGURE"""

import sys

import nacme
from nacme import plots

sweep, figure = sys.argv[1:]
df = nacme.load_sweep(sweep)
picks = nacme.select(df, ["nac_me", "val_acc", "oracle"], per="run")
plots.training_curves(df[df["n_test_envs"] == 1], picks, max_runs=3).savefig(figure)
