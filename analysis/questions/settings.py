"""What do NAC-ME's settings matter?  python -m analysis.questions.settings SWEEP FIGURE"""

import sys

import nacme
from nacme import plots
from nacme.study.sensitivity import sensitivity

sweep, figure = sys.argv[1:]
df = nacme.load_sweep(sweep)
table = sensitivity(df, population="run").astype({"alpha": str, "bins": int})
table = table[table["layer"] == "mean"]  # the layers of nac_me itself
plots.sensitivity_heatmap(table, x="alpha", y="bins", value="kendall_tau", label="Kendall tau").savefig(figure)
