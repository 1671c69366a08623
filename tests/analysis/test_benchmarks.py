"""The benchmark: what it compares computes the same, its clock is fair, and counting keeps its bounds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nacme import measure

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from analysis.benchmarks import kernel, recipes, results, score_sweep, startup, timing, workloads  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    return workloads.Algorithm(workloads.MNISTCNN(10)).eval()


@pytest.fixture(scope="module")
def data(network):
    workload = workloads.Workload("MNIST_CNN", (2, 28, 28), 10, "network.avgpool", (), batch=16, batches=2)
    return workload.data(network, CPU)


@pytest.mark.parametrize("layers", [("network.avgpool",), ("network.bn1", "network.bn2", "network.bn3")])
def test_the_recipe_is_the_authors_and_finds_what_measure_finds(network, data, layers):
    sizes = recipes.layer_sizes(network, layers, data[0][0])
    assert set(sizes.values()) == {128}
    ours = measure(network, data, layers, alpha=1000.0, bins=20, fill=3)
    assert ours.occupied_bins > 3
    recipe = recipes.authors_pass(network, data, sizes, 20, 3, 1000.0, CPU)
    assert recipe == pytest.approx(ours.per_layer, abs=1e-3)
    theirs = recipes.authors_code()
    if theirs is not None:
        code = recipes.authors_code_pass(theirs, network, data, sizes, 20, 3, 1000.0, CPU)
        assert code == pytest.approx(recipe, abs=1e-6)


def test_most_samples_are_classified_correctly(network, data):
    found = recipes.accuracy(network, data, None, CPU)
    assert 0.5 < found < 1
    assert recipes.domainbed_accuracy()[0](network, data, None, CPU) == found
    assert measure(network, data, alpha=1000.0).accuracy == found


def test_order_alternates_and_warm_up_does_not_count():
    order = []
    times = timing.side_by_side({name: lambda name=name: order.append(name) for name in "abc"}, CPU, repeats=3)
    assert "".join(order) == "abccbaabccba"
    assert {name: len(taken) for name, taken in times.wall.items()} == {"a": 3, "b": 3, "c": 3}


def test_ratios_are_taken_round_by_round():
    times = timing.Times({"a": [1.0, 2.0, 9.0], "b": [2.0, 2.0, 3.0], "c": [1.0, 2.0, 3.0]}, {})
    assert times.ratio(("a",), ("b",), "wall") == timing.Spread(1.0, 0.5, 3.0)
    assert times.ratio(("a", "b"), ("c",), "wall") == timing.Spread(3.0, 2.0, 4.0)
    assert times.ratio(("a",), ("b",), "processor") is None


def test_peak_memory_counts_what_is_held_at_once():
    def three_at_most_two_at_once():
        first = torch.zeros(2**20)
        second = torch.zeros(2**20)
        del first
        return second + torch.zeros(1)

    assert kernel.peak_extra_bytes(three_at_most_two_at_once, CPU) == pytest.approx(2 * 2**22, abs=1000)


@pytest.mark.parametrize("bins", [50, 1000])
def test_counting_is_fast_and_takes_little_memory(bins):
    figures = kernel.measure_kernel(bins, CPU, repeats=2, calls=5)
    assert figures.extra_bytes < figures.allowed_bytes < figures.authors_extra_bytes
    assert figures.times_faster.median > 5  # a fraction of what is measured on a quiet machine


def test_a_target_that_is_missed_is_reported_as_missed():
    taken = {"accuracy": [1.0, 1.0], "nac": [1.2, 1.2], "authors": [2.0, 2.0]}
    figures = results.PassFigures("ResNet-50", "penultimate", 50, 8, timing.Times(taken, taken), 0.0)
    started = {name: [0.4] for name in startup.COMMANDS}
    found = results.Results({"threads": 1}, {"cpu": [figures]}, {"cpu": []}, timing.Times(started, started))
    met = {name: met for name, _, _, met in results.targets(found)}
    assert met == {
        "ResNet-50: NAC at most 1.03 times the accuracy pass": False,
        "penultimate: at least 2.0 times faster than accuracy and the authors' recipe": True,
        "`import nacme` below 1.3 times `import torch`": True,
        "import torch, the first nacme.measure: at most 1.2 times import torch, a plain pass": True,
        "`nacme --help` below 0.5 s of processor time": True,
    }
    page = results.markdown(found)
    assert (
        "| ResNet-50: NAC at most 1.03 times the accuracy pass | cpu | 1.200 (1.200 to 1.200) | **no** |" in page
    )


@pytest.mark.domainbed
@pytest.mark.filterwarnings("ignore")
def test_scoring_finds_the_accuracies_of_the_stock_loaders(domainbed, tmp_path):
    run = tmp_path / "run"
    score_sweep.train(run, None, "RotatedDigits", "ERM", checkpoints=2)
    stock = score_sweep.measure_stock(run, None, augmented=False)
    assert stock.keys() == {f"{step} env{env}_out" for step in range(2) for env in range(1, 6)}
    score_sweep.put_on_record(run, {name: value + 0.125 for name, value in stock.items()})
    assert score_sweep.measure_score(run, None) == {"accuracy gap": 0.125, "checkpoints": 2}
    score_sweep.put_on_record(run, stock)
    assert score_sweep.measure_score(run, None) == {"accuracy gap": 0.0, "checkpoints": 2}


@pytest.mark.long
def test_the_command_writes_its_files(tmp_path):
    command = [sys.executable, "-m", "analysis.benchmarks", "--quick", "--threads", "1", "--out", str(tmp_path)]
    without = {key: value for key, value in os.environ.items() if key != "OOD_COVERAGE_ROOT"}
    subprocess.run(command, cwd=ROOT, check=True, env=without, stdout=subprocess.PIPE)
    found = json.loads((tmp_path / "results.json").read_text())
    assert {"date", "processor", "cores", "torch", "threads"} <= found["setting"].keys()
    assert [(p["model"], p["layers"], p["bins"]) for p in found["passes"]["cpu"]] == [
        ("MNIST_CNN", "penultimate", 50),
        ("MNIST_CNN", "four stages", 50),
    ]
    assert all(p["difference"] < 1e-3 for p in found["passes"]["cpu"])
    page = (tmp_path / "results.md").read_text()
    assert "| MNIST_CNN | penultimate | 50 | 384 |" in page
    assert sorted(path.name for path in tmp_path.iterdir()) == ["results.json", "results.md"]


def test_what_averages_cost_is_measured(tmp_path):
    """A smoke run: the figures are there, and no candidate of the sweep it makes fails."""
    command = [sys.executable, "-m", "analysis.benchmarks.averages", "--dataset", "RotatedDigits"]
    command += ["--runs", "2", "--steps", "2", "--out", str(tmp_path / "figures.json")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["step"]["ratio_sma"] > 1
    assert figures["step"]["ratio_sma_ema"] > 1
    assert figures["average"]["ratio"] > 0
    assert "of RotatedDigits" not in done.stderr


def test_the_cost_of_a_report_is_measured_with_and_without_the_cache(tmp_path):
    command = [sys.executable, str(ROOT / "analysis/benchmarks/report.py"), "--runs", "20"]
    done = subprocess.run([*command, "--sweep", str(tmp_path / "sweep")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert list(found) == ["no cache", "from cache"]
    for figures in map(json.loads, found.values()):
        assert figures["page_mb"] > 0.05
        assert 0 < figures["peak_gb"] < 4
