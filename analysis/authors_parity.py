"""Does our instrument agree with the authors' code on a trained network?

Runs the authors' ``KMNC.assess`` (https://github.com/BierOne/ood_coverage, folder ``domainbed/benchmark_notes``)
and our ``measure`` on one checkpoint and the same in-distribution training splits, with the same hyper-parameters,
and fails where the two differ by 1e-6 or more.

    OOD_COVERAGE_ROOT=... python -m analysis.authors_parity [RUN --data_dir DIR]

Without RUN, a run is trained on the embedded testbed. Their code is used as it is; ``.cuda()`` is made a no-op
where there is no GPU, and of their module ``instr_state`` only the function ``kl_grad`` is loaded, since the rest
of it imports their fork of DomainBed.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import io
import itertools
import json
import os
import sys
import tempfile
import types
import warnings
from pathlib import Path

import torch
from torch import nn

from domainbed_plugins.backends import find as backends
from domainbed_plugins.data.decoded import ValidationData
from domainbed_plugins.runs.checkpoints import build_algorithm, load_checkpoint, load_weights
from domainbed_plugins.train import main as train
from nacme import measure

TOLERANCE = 1e-6
#: alpha, M, O
SETTINGS = [(0.1, 50, 500), (1.0, 50, 500), (10.0, 50, 50), (100.0, 1000, 1)]


class Predictor(nn.Module):
    """The authors call a model; DomainBed's algorithms predict."""

    def __init__(self, algorithm):
        super().__init__()
        self.algorithm = algorithm

    def forward(self, x):
        """Predict."""
        return self.algorithm.predict(x)


def load_theirs(root):
    """Import the authors' coverage."""
    home = Path(root) / "domainbed"
    source = home / "benchmark_notes" / "instr_state.py"
    if not source.is_file():
        sys.exit(
            f"{source} does not exist; git clone https://github.com/BierOne/ood_coverage, set OOD_COVERAGE_ROOT"
        )
    sys.path.insert(0, str(home))
    stand_in = types.ModuleType("benchmark_notes.instr_state")
    stand_in.torch = torch
    wanted = [node for node in ast.parse(source.read_text()).body if getattr(node, "name", "") == "kl_grad"]
    exec(compile(ast.Module(wanted, []), str(source), "exec"), vars(stand_in))
    sys.modules["benchmark_notes.instr_state"] = stand_in
    if not torch.cuda.is_available():
        nn.Module.cuda = lambda self, *_: self
        torch.Tensor.cuda = lambda self, *_: self
    return importlib.import_module("benchmark_notes.coverage")


def load_run(run, data_dir):
    """Build a run's final network and the batches of its training environments' in splits."""
    line = json.loads((run / "results.jsonl").read_text().splitlines()[-1])
    args, hparams = line["args"], line["hparams"]
    testbed = backends.find(args["dataset"])
    data = ValidationData(testbed, data_dir, cache_bytes=4 * 2**30, n_workers=0)
    dataset = data.open(args, hparams)
    domains = len(dataset) - len(args["test_envs"])
    algorithm = build_algorithm(
        testbed, args["algorithm"], dataset.input_shape, dataset.num_classes, domains, hparams
    )
    load_weights(algorithm, load_checkpoint(run / "model.pkl")["model_dict"], run)
    envs = [env for env in range(len(dataset)) if env not in args["test_envs"]]
    print(f"{args['algorithm']} on {args['dataset']}, step {line['step']}, in splits of envs {envs}, {testbed}\n")
    return algorithm, list(itertools.chain.from_iterable(data.loader(f"env{env}_in") for env in envs))


def theirs_on(theirs, model, batches, layer, neurons, alpha, bins, fill):
    coverage = theirs.KMNC({layer: neurons}, hyper={"M": bins, "O": fill}, unpack=lambda batch, device: batch)
    _, accuracy = coverage.assess(
        model,
        batches,
        spatial_func=lambda state: state.sum(dim=(2, 3)),  # as they pool the maps of ResNets
        method="sigmoid(o*g_kl[f])",
        sig_alpha=alpha,
    )
    return float(coverage.update(method="avg")[-1]), accuracy


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", nargs="?", type=Path)
    parser.add_argument("--data_dir")
    parser.add_argument("--layers", nargs="+", help="default: the pooled features, and the last map before them")
    flags = parser.parse_args()
    theirs = load_theirs(os.environ.get("OOD_COVERAGE_ROOT", "ood_coverage"))
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        run = flags.run
        if run is None:
            run = Path(scratch) / "run"
            with contextlib.redirect_stdout(io.StringIO()):
                train(["--dataset", "RotatedDigits", "--steps", "151", "--output_dir", str(run)])
        algorithm, batches = load_run(run, flags.data_dir)
    model = Predictor(algorithm.eval()).eval()
    names = {name for name, _ in model.named_modules()}
    last_map = next(f"featurizer.{name}" for name in ("bn3", "norm3") if f"algorithm.featurizer.{name}" in names)
    layers = flags.layers or ["featurizer.avgpool", last_map]
    sizes = {}
    for layer in layers:
        hook = algorithm.get_submodule(layer).register_forward_hook(
            lambda module, _, out, layer=layer: sizes.update({layer: out.shape[1]})
        )
        with torch.no_grad():
            algorithm.predict(batches[0][0])
        hook.remove()

    print("| layer | alpha | M | O | theirs | ours | difference | accuracy |")
    print("| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |")
    worst = 0.0
    for layer in layers:
        for alpha, bins, fill in SETTINGS:
            value, accuracy = theirs_on(
                theirs, model, batches, f"algorithm.{layer}", sizes[layer], alpha, bins, fill
            )
            ours = measure(algorithm, batches, layer, alpha, bins, fill)
            worst = max(worst, abs(value - ours.nac_me))
            agree = "equal" if accuracy == ours.accuracy else f"{accuracy} and {ours.accuracy}"
            print(
                f"| {layer} | {alpha} | {bins} | {fill} | {value:.8f} | {ours.nac_me:.8f} | "
                f"{abs(value - ours.nac_me):.1e} | {agree} |"
            )
    pooled = measure(algorithm, batches, None, 0.1, 50, 500)
    print(f"\nLargest difference: {worst:.1e}. Closed form at the default layer: {pooled.nac_me:.8f}.")
    sys.exit(worst >= TOLERANCE)


if __name__ == "__main__":
    main()
