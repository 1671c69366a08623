"""Which criterion ranks checkpoints best, and is that sure?  python -m analysis.questions.ranking SWEEP FIGURE"""

import sys

import nacme
from nacme import plots

sweep, figure = sys.argv[1:]
df = nacme.load_sweep(sweep)
criteria = ["nac_me", "val_acc", "val_loss", "last", "rank_mean(nac_me, val_acc)"]
table = nacme.rank_correlation(df, criteria, population="run", pool_algorithms=True)
plots.correlation_forest(table, statistic="kendall_tau").savefig(figure)
