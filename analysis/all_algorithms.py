"""Which of DomainBed's algorithms train, record coverage unchanged, and give the same value after training?

For every name in DomainBed's ``ALGORITHMS``: its own ``train`` and ours with the same arguments in one process,
then ``nacme score`` on DomainBed's run. Writes Markdown to standard output.

    DOMAINBED_ROOT=... python -m analysis.all_algorithms > docs/algorithms.md
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import platform
import runpy
import sys
import tempfile
import warnings
from datetime import date
from pathlib import Path

import torch

import nacme
from domainbed_plugins import score
from domainbed_plugins.backends import find as backends
from domainbed_plugins.runs.checkpoints import build_algorithm, load_checkpoint, load_weights
from domainbed_plugins.train import main as our_train
from nacme.settings import CoverageSettings

INTRODUCTION = """\
# Every algorithm of DomainBed

Made by `python -m analysis.all_algorithms`: {dataset}, {steps} steps, batch size 8, test env 1, loaders without
worker processes. {machine}; {date};
{versions}.

What the exceptions are about stands in [domainbed.md](domainbed.md#algorithms).

- *Stock's keys and model*: whether every key that stock DomainBed writes, but `step_time` and `mem_gb`, is equal
  to the last digit at every checkpoint of a run that records coverage, and all tensors of `model.pkl`.
- *Post hoc = in-run*: whether `nacme score` on stock's checkpoints gives the `nac_me` and `val_loss` that training
  with the same arguments recorded, to 1e-6; in brackets the largest difference, if there is any.
"""
UNEQUAL_BY_NATURE = ("step_time", "mem_gb")
TOLERANCE = 1e-6


def train(entry, argv):
    """Run a training quietly; return why it failed, or None."""
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            entry(argv)
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition('. ')[0].splitlines()[0]}"
    return None


def stock_train(argv):
    saved = sys.argv, sys.stdout, sys.stderr
    try:
        sys.argv = ["train", *argv]
        runpy.run_module("domainbed.scripts.train", run_name="__main__")
    finally:
        sys.argv, sys.stdout, sys.stderr = saved


def records(directory, name="results.jsonl"):
    return [json.loads(line) for line in (directory / name).read_text().splitlines()]


def same(a, b):
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isnan(a) and math.isnan(b))


def unequal_keys(stock, ours):
    """Keys of stock DomainBed whose values differ at any checkpoint, and the model if its tensors do."""
    keys = set()
    for theirs, mine in zip(records(stock), records(ours), strict=True):
        for key in theirs.keys() - {*UNEQUAL_BY_NATURE, "args"}:
            if not same(theirs[key], mine.get(key)):
                keys.add(key)
    theirs, mine = (load_checkpoint(run / "model.pkl")["model_dict"] for run in (stock, ours))
    if theirs.keys() != mine.keys() or not all(torch.equal(theirs[key], mine[key]) for key in theirs):
        keys.add("model.pkl")
    return sorted(keys)


def difference_after(stock, ours, data_dir, settings):
    """Largest difference of NAC-ME and of the loss, in-run against post hoc."""
    outcome = score.score(stock, data_dir, score.ScoreOptions(settings))
    if outcome.failures:
        return outcome.failures[0]
    pairs = list(zip(records(ours), records(stock, "nac.jsonl"), strict=True))
    return max(abs((a[key] or 0) - (b[key] or 0)) for a, b in pairs for key in ("nac_me", "val_loss"))


def predicts_at_random(run, testbed):
    """Whether predicting the same batch twice gives two results."""
    checkpoint = load_checkpoint(run / "model.pkl")
    shape, classes, domains = (checkpoint[f"model_{key}"] for key in ("input_shape", "num_classes", "num_domains"))
    algorithm = build_algorithm(testbed, run.parent.name, shape, classes, domains, checkpoint["model_hparams"])
    load_weights(algorithm, checkpoint["model_dict"], run)
    algorithm.eval()
    x = torch.rand(4, *shape)
    with torch.no_grad():
        return not torch.equal(algorithm.predict(x), algorithm.predict(x))


def row(name, flags, root, testbed):
    argv = ["--algorithm", name, "--dataset", flags.dataset, "--steps", str(flags.steps), "--checkpoint_freq", "3"]
    argv += ["--hparams", '{"batch_size": 8}', "--test_envs", "1", "--save_model_every_checkpoint"]
    argv += ["--data_dir", flags.data_dir or "unused"]
    stock, ours = root / name / "stock", root / name / "ours"
    failure = train(stock_train, [*argv, "--output_dir", str(stock)])
    ours_failure = train(our_train, [*argv, "--output_dir", str(ours), "--nac_alpha", "10", "--nac_fill", "2"])
    if failure or ours_failure:
        return name, failure or "yes", ours_failure or "yes", "-", "-"
    keys = unequal_keys(stock, ours)
    recorded = all(record["nac_me"] is not None for record in records(ours))
    settings = CoverageSettings(10.0, 50, 2)
    difference = difference_after(stock, ours, flags.data_dir, settings)
    if not isinstance(difference, str):
        verdict = "yes" if difference <= TOLERANCE else "no"
        difference = f"{verdict} ({difference:.0e})" if difference else verdict
        if predicts_at_random(stock, testbed):
            difference += ": predicting draws random numbers"
    return name, "yes", "yes" if recorded else "no value", ", ".join(keys) or "equal", difference


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", default="Debug28")
    parser.add_argument("--data_dir")
    parser.add_argument("--steps", type=int, default=7)
    parser.add_argument("--algorithms", nargs="+")
    flags = parser.parse_args()
    warnings.simplefilter("ignore")
    testbed = backends.domainbed()
    # the number of worker processes decides nothing on data that lies in memory
    testbed.datasets.MultipleDomainDataset.N_WORKERS = 0
    torch.set_num_threads(1)
    names = [
        name
        for name in flags.algorithms or testbed.algorithms.ALGORITHMS
        # the plugin registers its own there
        if testbed.algorithms.get_algorithm_class(name).__module__ == "domainbed.algorithms"
    ]
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    print(
        INTRODUCTION.format(
            dataset=flags.dataset,
            steps=flags.steps,
            machine=f"{platform.system()} {platform.machine()}, {device}",
            date=date.today(),
            versions=f"Python {platform.python_version()}, PyTorch {torch.__version__}, "
            f"nacme {nacme.__version__}, DomainBed {testbed.version[:7]}",
        )
    )
    print(
        "| algorithm | trains in stock DomainBed | records NAC here | stock's keys and model | post hoc = in-run |"
    )
    print("| --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory() as root:
        for name in names:
            print("| " + " | ".join(row(name, flags, Path(root), testbed)) + " |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
