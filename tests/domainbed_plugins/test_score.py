"""Scoring finished runs: equal to in-run values, resumable, safe, and in as few decodings as possible."""

import json
import os
import pickle
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from domainbed_plugins import score
from domainbed_plugins.backends import find as backends
from domainbed_plugins.data import decoded as validation_data
from domainbed_plugins.runs.checkpoints import build_algorithm, load_checkpoint
from domainbed_plugins.scoring import groups as checkpoint_groups
from domainbed_plugins.train import main as train
from nacme import load_sweep, measure
from nacme.errors import ConfigError, CriterionError, LayerError, NacmeWarning, SweepError
from nacme.output import report_errors
from nacme.settings import CoverageSettings

pytestmark = pytest.mark.filterwarnings("ignore")

RUN = ["--dataset", "RotatedDigits", "--steps", "21", "--checkpoint_freq", "10", "--save_model_every_checkpoint"]
SETTINGS = CoverageSettings(10.0, 50, 2)
FLAGS = ["--nac_alpha", "10", "--nac_fill", "2"]
OPTIONS = score.ScoreOptions(SETTINGS)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Two runs of the embedded testbed."""
    sweep = tmp_path_factory.mktemp("sweep")
    for name, extra in (("a", ["--test_envs", "1"]), ("b", ["--algorithm", "GroupDRO", "--seed", "3"])):
        train([*RUN, *extra, "--output_dir", str(sweep / name), *FLAGS])
    return sweep


@pytest.fixture
def sweep(trained, tmp_path):
    """A copy of them to change."""
    return shutil.copytree(trained, tmp_path / "sweep")


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def as_user(argv, capsys):
    """Run the command; return the exit code and the lines on standard error."""
    try:
        report_errors(lambda: score.main([str(part) for part in argv]))
    except SystemExit as stop:
        code = stop.code
    else:
        code = 0
    streams = capsys.readouterr()
    assert streams.out == ""
    return code, streams.err.splitlines()


def test_equals_the_in_run_values_and_leaves_the_records_alone(sweep):
    before = {path: path.read_bytes() for path in sweep.glob("*/results.jsonl")}
    outcome = score.score(sweep, None, OPTIONS)
    assert (outcome.measured, outcome.skipped, outcome.failures) == (6, 0, [])
    assert outcome.accuracy_gap == 0
    for run in ("a", "b"):
        in_run, post_hoc = lines(sweep / run / "results.jsonl"), lines(sweep / run / "nac.jsonl")
        assert [record["step"] for record in post_hoc] == [0, 10, 20]
        for mine, theirs in zip(post_hoc, in_run, strict=True):
            assert not any(key.endswith("_acc") for key in mine)
            for key in mine.keys() - {"nac"}:
                assert mine[key] == pytest.approx(theirs[key], abs=1e-6)
            assert mine["nac"]["occupied_bins"] == pytest.approx(theirs["nac"]["occupied_bins"])
    assert {path: path.read_bytes() for path in sweep.glob("*/results.jsonl")} == before
    assert load_sweep(sweep)["nac_me"].notna().all()


def test_the_table_of_the_sweep_reads_what_was_added(sweep):
    run = sweep / "a"
    stock = [
        {k: v for k, v in record.items() if k.endswith("_acc") or k in ("step", "args", "hparams")}
        for record in lines(run / "results.jsonl")
    ]
    (run / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in stock))
    score.score(run, None, OPTIONS)
    df = load_sweep(run)
    assert list(df["nac_me"]) == [record["nac_me"] for record in lines(run / "nac.jsonl")]


def test_only_what_is_not_done_is_measured(sweep):
    score.score(sweep, None, OPTIONS)
    again = score.score(sweep, None, OPTIONS)
    assert (again.measured, again.skipped) == (0, 6)
    path = sweep / "a" / "nac.jsonl"
    whole = path.read_text()
    # killed while another tool appended
    path.write_text(whole[: whole.rindex('"step"')])
    resumed = score.score(sweep, None, OPTIONS)
    assert (resumed.measured, resumed.skipped) == (1, 5)
    assert path.read_text() == whole
    other = score.score(sweep, None, score.ScoreOptions(SETTINGS, grid=(CoverageSettings(1.0, 50, 2),)))
    assert other.measured == 6
    assert len(lines(path)) == 3
    assert all(record["nac_me_a1p0_m50_o2"] is not None for record in lines(path))


def test_a_killed_command_is_taken_up_again(sweep):
    command = [sys.executable, "-m", "nacme.cli", "score", str(sweep), *FLAGS]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        while not (sweep / "a" / "nac.jsonl").exists() and process.poll() is None:
            time.sleep(0.001)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    outcome = score.score(sweep, None, OPTIONS)
    assert outcome.skipped >= 1
    assert outcome.measured + outcome.skipped == 6
    interrupted = {run: (sweep / run / "nac.jsonl").read_text() for run in ("a", "b")}
    for run in ("a", "b"):
        (sweep / run / "nac.jsonl").unlink()
    score.score(sweep, None, OPTIONS)
    assert interrupted == {run: (sweep / run / "nac.jsonl").read_text() for run in ("a", "b")}


def test_the_other_split_other_layers_and_criteria(sweep):
    options = score.ScoreOptions(
        SETTINGS, layers=["featurizer.norm2"], split="in", criteria=["ece"], target_unlabeled=False
    )
    outcome = score.score(sweep / "a", None, options)
    record = lines(sweep / "a" / "nac.jsonl")[-1]
    assert record.keys() == {"step", "nac", "nac_me", "val_loss", "ece"}
    assert record["nac"]["split"] == "in"
    assert record["nac"]["layers"] == ["featurizer.norm2"]
    in_run = lines(sweep / "a" / "results.jsonl")[-1]
    assert record["val_loss"] == pytest.approx(in_run["val_loss"])
    assert (outcome.hidden, outcome.apart) == (3, 0)
    with pytest.warns(NacmeWarning, match="3 of these checkpoints with other settings"):
        score._report(outcome)
    assert record["nac"]["num_samples"] > 3 * in_run["nac"]["num_samples"]
    score.score(sweep / "a", None, score.ScoreOptions(SETTINGS, target_unlabeled=True))
    assert "atc" in lines(sweep / "a" / "nac.jsonl")[-1]


def test_the_last_model_stands_for_the_last_step(sweep):
    for path in (sweep / "a").glob("model_step*.pkl"):
        path.unlink()
    score.score(sweep / "a", None, OPTIONS)
    assert [record["step"] for record in lines(sweep / "a" / "nac.jsonl")] == [20]


class Exploit:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def _truncate(path):
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


def _foreign(path):
    torch.save({"model_dict": {}, "other": Exploit()}, path)


def _bare_pickle(path):
    path.write_bytes(pickle.dumps(Exploit()))


def _empty(path):
    path.write_bytes(b"")


def _other_class_count(path):
    checkpoint = load_checkpoint(path)
    checkpoint["model_dict"]["classifier.weight"] = torch.zeros(7, 64)
    torch.save(checkpoint, path)


def _other_network(path):
    checkpoint = load_checkpoint(path)
    del checkpoint["model_dict"]["featurizer.conv1.weight"]
    torch.save(checkpoint, path)


def _more_layers(path):
    checkpoint = load_checkpoint(path)
    checkpoint["model_dict"]["featurizer.conv4.weight"] = torch.zeros(1)
    torch.save(checkpoint, path)


def _no_model(path):
    torch.save({"args": {}}, path)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_truncate, "truncated or no checkpoint"),
        (_empty, "truncated or no checkpoint"),
        (_foreign, "posix.mkdir; nothing of it was executed"),
        (_bare_pickle, "nothing of it was executed"),
        (_other_class_count, "another architecture.*classifier.weight has shape \\[7, 64\\], not \\[10, 64\\]"),
        (_other_network, "another architecture.*lacks featurizer.conv1.weight"),
        (_more_layers, "another architecture.*holds featurizer.conv4.weight"),
        (_no_model, "no checkpoint of DomainBed: it has no 'model_dict'"),
    ],
)
def test_a_bad_checkpoint_is_listed_and_the_others_are_measured(spoil, message, sweep, capsys, monkeypatch):
    monkeypatch.chdir(sweep)
    spoil(sweep / "a" / "model_step10.pkl")
    code, err = as_user([sweep, *FLAGS], capsys)
    assert code == 1
    told = [line for line in err if "model_step10.pkl" in line]
    assert len(told) == 1
    assert re.search(message, told[0])
    assert err[-1] == "nacme: 1 of 6 checkpoints could not be measured; the others were"
    assert [record["step"] for record in lines(sweep / "a" / "nac.jsonl")] == [0, 20]
    assert not (sweep / "executed").exists()


def test_user_mistakes(sweep, tmp_path):
    with pytest.raises(SweepError, match="holds no runs"):
        score.score(tmp_path / "nowhere", None, OPTIONS)
    with pytest.raises(ConfigError, match=r"--data_dir .* is not a directory"):
        score.score(sweep, str(tmp_path / "nowhere"), OPTIONS)
    with pytest.raises(CriterionError, match="did you mean 'nac_me'"):
        score.score(sweep, None, score.ScoreOptions(SETTINGS, criteria=["nac_mee"]))
    with pytest.raises(ConfigError, match="val_acc: it follows from"):
        score.score(sweep, None, score.ScoreOptions(SETTINGS, criteria=["val_acc"]))
    with pytest.raises(ConfigError, match="named by --nac_grid"):
        score.score(sweep, None, score.ScoreOptions(SETTINGS, criteria=["nac_me_a1p0_m50_o2"]))
    outcome = score.score(sweep / "a", None, score.ScoreOptions(SETTINGS, layers=["featurizer.conv9"]))
    assert "no layer 'featurizer.conv9'; did you mean" in outcome.failures[0]
    for path in sweep.glob("*/*.pkl"):
        path.unlink()
    with pytest.raises(SweepError, match="--save_model_every_checkpoint"):
        score.score(sweep, None, OPTIONS)


def test_numbers_of_numpy_are_read(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    hparams = {"lr": np.float64(1e-3), "batch_size": np.int64(8), "flip": np.bool_(True), "p": np.float32(0.5)}
    torch.save({"model_dict": {}, "model_hparams": hparams}, tmp_path / "model.pkl")
    read = load_checkpoint(tmp_path / "model.pkl")["model_hparams"]
    assert read == {"lr": 1e-3, "batch_size": 8, "flip": True, "p": 0.5}
    assert set(torch.serialization.get_safe_globals()) == before
    torch.save({"model_dict": {}, "array": np.array([object()])}, tmp_path / "objects.pkl")
    with pytest.raises(Exception, match="nothing of it was executed"):
        load_checkpoint(tmp_path / "objects.pkl")


class Counted(Dataset):
    """Images that count how often they are decoded."""

    decoded = 0

    def __init__(self, angle):
        self.angle = angle

    def __len__(self):
        return 40

    def __getitem__(self, index):
        if index >= len(self):
            raise IndexError
        Counted.decoded += 1
        return torch.full((1, 16, 16), float(index + self.angle)), index % 10


class Folders:
    """A data set as DomainBed's image folders are: augmented unless it is told not to be."""

    N_STEPS, CHECKPOINT_FREQ, N_WORKERS = 1, 1, 0
    ENVIRONMENTS = ("0", "1", "2", "3", "4", "5")
    input_shape, num_classes = (1, 16, 16), 10

    def __init__(self, root, test_envs, hparams):
        assert not (hparams["data_augmentation"] and 0 not in test_envs)
        self.datasets = [Counted(env) for env in range(6)]

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return self.datasets[index]


def _as_folders(sweep, monkeypatch, test_envs):
    datasets = backends.embedded().datasets
    monkeypatch.setattr(datasets, "get_dataset_class", lambda name: Folders)
    for run, envs in test_envs.items():
        path = sweep / run / "results.jsonl"
        records = [record | {"args": record["args"] | {"test_envs": envs}} for record in lines(path)]
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
    monkeypatch.setattr(Counted, "decoded", 0)


def test_all_checkpoints_that_share_a_split_share_its_decoding(sweep, monkeypatch):
    _as_folders(sweep, monkeypatch, {"a": [1], "b": [0]})
    outcome = score.score(sweep, None, OPTIONS)
    assert outcome.measured == 6
    # six splits of eight images, and one look at each split for its size
    assert Counted.decoded == 6 * 8 + 6
    with pytest.warns(NacmeWarning, match="validation accuracies differ from the recorded"):
        score._report(outcome)


@pytest.mark.parametrize(("models", "passes"), [(1, 3), (2, 2), (3, 1), (None, 1)])
def test_what_does_not_fit_is_decoded_again_for_each_group_and_told(models, passes, sweep, monkeypatch, capsys):
    _as_folders(sweep, monkeypatch, {"a": [1]})
    three = 3 * 8 * (1024 + 8) / 2**30
    outcome = score.score(sweep / "a", None, OPTIONS, cache_gb=three, models=models)
    assert outcome.measured == 3
    told = [line for line in capsys.readouterr().err.splitlines() if "does not fit" in line]
    assert len(told) == 2
    once, again, looks = 3 * 8, 2 * 8 * passes, 5
    assert Counted.decoded == once + again + looks


def _measured(sweep, models, options=OPTIONS):
    """What scoring so many checkpoints at a time records."""
    outcome = score.score(sweep, None, options, models=models)
    assert (outcome.measured, outcome.failures) == (6, [])
    found = {}
    for path in sweep.glob("*/nac.jsonl"):
        found[path.parent.name] = path.read_text()
        path.unlink()
    return found


@pytest.mark.parametrize("models", [2, 4, 6, None])
def test_values_do_not_depend_on_how_many_are_measured_at_a_time(models, sweep, monkeypatch):
    # runs that left out other environments share those that both trained on
    _as_folders(sweep, monkeypatch, {"a": [1], "b": [0]})
    options = score.ScoreOptions(
        SETTINGS, grid=(CoverageSettings("auto", 20, 0.1, layer="featurizer.norm2"),), target_unlabeled=True
    )
    assert _measured(sweep, models, options) == _measured(sweep, 1, options)


@pytest.mark.parametrize("models", [2, 6])
def test_random_numbers_do_not_depend_on_how_many_are_measured_at_a_time(models, sweep, monkeypatch):
    plain = _measured(sweep, 1)
    predict = backends.embedded().algorithms.ERM.predict

    def noisy(self, x):
        logits = predict(self, x)
        return logits + torch.randn(logits.shape)

    monkeypatch.setattr(backends.embedded().algorithms.ERM, "predict", noisy)
    options = score.ScoreOptions(SETTINGS, layers=["featurizer.norm2"])
    alone = _measured(sweep, 1, options)
    assert alone != plain
    assert _measured(sweep, models, options) == _measured(sweep, 1, options) == alone


def test_an_algorithm_that_fails_leaves_the_others_of_its_group_alone(sweep, monkeypatch):
    plain = _measured(sweep, 6)
    calls, predict = [], backends.embedded().algorithms.GroupDRO.predict

    def failing(self, x):
        calls.append(len(x))
        if len(calls) == 5:
            raise ValueError("no such\nluck")
        return predict(self, x)

    monkeypatch.setattr(backends.embedded().algorithms.GroupDRO, "predict", failing)
    outcome = score.score(sweep, None, OPTIONS, models=6)
    assert outcome.measured == 5
    (failure,) = outcome.failures
    assert re.search(r"b/model_step10.pkl cannot be measured: ValueError: no such$", failure)
    kept = [line for line in plain["b"].splitlines(keepends=True) if json.loads(line)["step"] != 10]
    assert (sweep / "a" / "nac.jsonl").read_text() == plain["a"]
    assert (sweep / "b" / "nac.jsonl").read_text() == "".join(kept)


def test_a_network_of_nan_leaves_the_others_of_its_group_alone(sweep):
    plain = _measured(sweep, 6)
    path = sweep / "a" / "model_step10.pkl"
    checkpoint = load_checkpoint(path)
    checkpoint["model_dict"]["classifier.weight"].fill_(torch.nan)
    torch.save(checkpoint, path)
    found = _measured(sweep, 6)
    assert found["b"] == plain["b"]
    assert found["a"].splitlines()[::2] == plain["a"].splitlines()[::2]
    assert json.loads(found["a"].splitlines()[1])["nac_me"] is None


def test_a_device_without_memory_for_a_group_measures_smaller_ones(sweep, monkeypatch):
    plain = _measured(sweep, 1)
    built, predict = [], backends.embedded().algorithms.ERM.predict

    def build(*args):
        built.append(build_algorithm(*args))
        return built[-1]

    def crowded(self, x):
        at_work = [network for network in built if not network.training]
        if len(at_work) > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return predict(self, x)

    monkeypatch.setattr(checkpoint_groups, "build_algorithm", build)
    monkeypatch.setattr(backends.embedded().algorithms.ERM, "predict", crowded)
    assert _measured(sweep, 6) == plain


def test_memory_decides_how_many_are_measured_at_a_time(sweep, monkeypatch, capsys):
    sizes = []
    measure_next = checkpoint_groups.GroupScorer.measure_next

    def watched(self, waiting):
        results = measure_next(self, waiting)
        sizes.append(len(results))
        return results

    monkeypatch.setattr(checkpoint_groups.GroupScorer, "measure_next", watched)
    assert _measured(sweep, None).keys() == {"a", "b"}
    assert sizes == [6]
    monkeypatch.setattr(checkpoint_groups, "free_memory", lambda: 2**22)
    sizes.clear()
    _measured(sweep, None)
    assert sizes == [1] * 6
    sizes.clear()
    assert as_user([sweep, *FLAGS, "--models", "4"], capsys)[0] == 0
    assert sizes == [4, 2]
    code, err = as_user([sweep, *FLAGS, "--models", "0"], capsys)
    assert (code, len(err)) == (1, 1)
    assert "--models 0: at least one" in err[0]


def test_data_that_depends_on_the_seed_is_not_shared():
    data = validation_data.ValidationData(backends.embedded(), None, 2**20, 0)

    class Drawn(Folders):
        def __init__(self, root, test_envs, hparams):
            super().__init__(root, test_envs, hparams)
            self.draw = torch.rand(1).item()

    args = {"dataset": "RotatedDigits", "test_envs": [0], "trial_seed": 0, "seed": 1}
    for made, shared in ((Drawn, False), (Folders, True)):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(backends.embedded().datasets, "get_dataset_class", lambda name, made=made: made)
            data._dataset = None
            first = data.open(args, {"lr": 1.0})
            assert data.open({**args, "trial_seed": 2}, {"lr": 2.0}) is first
            assert (data.open({**args, "seed": 2}, {"lr": 1.0}) is first) == shared
            if not shared:
                assert data.open(args, {}).draw == first.draw


@pytest.mark.domainbed
def test_domainbeds_algorithms_share_batches_and_keep_their_values(in_process, tmp_path):
    # MTL draws random numbers to predict, ARM looks at the whole batch, CORAL's network is as ERM's
    for number, algorithm in enumerate(["MTL", "ERM", "MTL", "ARM", "CORAL"]):
        hparams = in_process.hparams_registry.default_hparams(algorithm, "Debug28")
        torch.manual_seed(number)
        network = build_algorithm(in_process, algorithm, (3, 28, 28), 2, 2, hparams)
        run = tmp_path / f"{number}"
        run.mkdir()
        args = {"dataset": "Debug28", "algorithm": algorithm, "test_envs": [0], "trial_seed": 0, "seed": 0}
        args |= {"hparams_seed": 0}
        record = {"step": number, "args": {**args, "holdout_fraction": 0.5}, "hparams": hparams}
        record |= {f"env{env}_{split}_acc": 0.5 for env in range(3) for split in ("in", "out")}
        (run / "results.jsonl").write_text(json.dumps(record) + "\n")
        torch.save({"model_dict": network.state_dict()}, run / "model.pkl")
    options = score.ScoreOptions(CoverageSettings(10.0, 50, 2, correct_only=False))

    def measured(models):
        assert score.score(tmp_path, None, options, models=models).measured == 5
        return [(path.read_text(), path.unlink())[0] for path in sorted(tmp_path.glob("*/nac.jsonl"))]

    alone = measured(1)
    assert measured(2) == alone
    assert measured(5) == alone


@pytest.mark.domainbed
@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_stock_sweep_of_rotated_mnist(stock_train, nacme_data, records, tmp_path):
    argv = ["--dataset", "RotatedMNIST", "--data_dir", str(nacme_data / "mnist10k"), "--steps", "4"]
    argv += ["--checkpoint_freq", "3", "--test_envs", "0", "--hparams", '{"batch_size": 16}']
    for seed in ("0", "1"):
        stock = ["--save_model_every_checkpoint", "--output_dir", str(tmp_path / "stock" / seed)]
        stock_train([*argv, *stock, "--seed", seed])
        train([*argv, "--output_dir", str(tmp_path / "ours" / seed), "--seed", seed])
    outcome = score.score(tmp_path / "stock", str(nacme_data / "mnist10k"), score.ScoreOptions(CoverageSettings()))
    assert (outcome.measured, outcome.failures) == (4, [])
    assert outcome.accuracy_gap <= 1e-3
    for seed in ("0", "1"):
        pairs = zip(
            records(tmp_path / "ours" / seed), records(tmp_path / "stock" / seed, "nac.jsonl"), strict=True
        )
        for in_run, post_hoc in pairs:
            assert post_hoc["nac_me"] == pytest.approx(in_run["nac_me"], abs=1e-6)
            assert post_hoc["val_loss"] == pytest.approx(in_run["val_loss"], abs=1e-6)


@pytest.mark.domainbed
@pytest.mark.data
@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_photographs_are_read_without_augmentation(in_process, nacme_data, tmp_path):
    hparams = in_process.hparams_registry.default_hparams("ERM", "PACS")
    hparams |= {"resnet18": True, "resnet50_augmix": False}
    assert hparams["data_augmentation"]
    torch.manual_seed(0)
    algorithm = build_algorithm(in_process, "ERM", (3, 224, 224), 7, 3, hparams)
    for run, env in (("a", 0), ("b", 2)):
        args = {"dataset": "PACS", "algorithm": "ERM", "test_envs": [env], "trial_seed": 0, "seed": env}
        args |= {"holdout_fraction": 0.02}
        (tmp_path / run).mkdir()
        record = {"step": 0, "args": args, "hparams": hparams}
        (tmp_path / run / "results.jsonl").write_text(json.dumps(record) + "\n")
        torch.save({"model_dict": algorithm.state_dict()}, tmp_path / run / "model.pkl")
    options = score.ScoreOptions(CoverageSettings(1.0, 50, 2, correct_only=False))
    assert score.score(tmp_path, str(nacme_data), options).measured == 2

    dataset = in_process.datasets.PACS(str(nacme_data), [0], {**hparams, "data_augmentation": False})
    splits = [
        in_process.misc.split_dataset(env, int(len(env) * 0.02), in_process.misc.seed_hash(0, index))[0]
        for index, env in enumerate(dataset)
        if index != 0
    ]
    loader = DataLoader(ConcatDataset(splits), batch_size=64)
    expected = measure(algorithm, loader, None, 1.0, 50, 2, correct_only=False)
    (post_hoc,) = lines(tmp_path / "a" / "nac.jsonl")
    assert post_hoc["nac_me"] == pytest.approx(expected.nac_me, abs=1e-6)
    assert post_hoc["nac"]["num_samples"] == sum(map(len, splits)) > 100


def test_an_unknown_layer_is_told_before_training(tmp_path):
    with pytest.raises(LayerError, match="did you mean 'featurizer"):
        train([*RUN, "--output_dir", str(tmp_path / "run"), "--nac_layers", "featurizer.norm9"])
    assert not (tmp_path / "run" / "results.jsonl").exists()
