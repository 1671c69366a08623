"""Does a higher value mean a better model?  python -m analysis.questions.scatter SWEEP FIGURE"""

import sys

import nacme
from nacme import plots

sweep, figure = sys.argv[1:]
df = nacme.load_sweep(sweep)
plots.scatter(df[df["n_test_envs"] == 1], "nac_me").savefig(figure)
