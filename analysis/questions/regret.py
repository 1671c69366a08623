"""What does trusting a criterion cost?  python -m analysis.questions.regret SWEEP FIGURE"""

import sys

import nacme
from nacme import plots

sweep, figure = sys.argv[1:]
df = nacme.load_sweep(sweep)
chosen = nacme.select(df, ["nac_me", "val_acc", "val_loss", "last"], per="sweep")
plots.regret_plot(chosen).savefig(figure)
