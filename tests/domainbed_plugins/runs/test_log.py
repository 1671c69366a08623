"""A loop of one's own written as runs: read, chosen from and reported like DomainBed's."""

import json

import pytest
import torch
from torch import nn

import nacme
from domainbed_plugins.runs.checkpoints import load_checkpoint
from nacme.errors import ConfigError, CriterionError, NacmeError, SweepError
from nacme.settings import CoverageSettings

pytestmark = pytest.mark.filterwarnings("ignore::nacme.errors.DegenerateCoverageWarning")
SETTINGS = CoverageSettings(alpha=20.0, bins=20, fill=2)
ENVS = ("photo", "art", "sketch")


def loaders():
    """Digits in three environments: as they are, paler, noisier."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    changed = (x, x * 0.5, x + 0.3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
    return {
        name: list(zip(each[i::3][:128].split(64), y[i::3][:128].split(64)))
        for i, (name, each) in enumerate(zip(ENVS, changed))
    }


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 10))


def log_of(path, test_env="art", **options):
    return nacme.RunLog(path, dataset="digits", test_env=test_env, settings=SETTINGS, criteria=["ece"], **options)


def train(path, test_env="art", steps=(0, 10, 20, 30), model=None, **options):
    data, model = loaders(), model or network()
    val = {name: loader for name, loader in data.items() if name != test_env}
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    log, records = log_of(path, test_env, **options), []
    for step in range(max(steps) + 1):
        if step in steps:
            records.append(log.checkpoint(step, model, val=val, test=data[test_env]))
        for batches in val.values():
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batches[0][0]), batches[0][1]).backward()
            optimizer.step()
    log.finish()
    return records


def test_a_loops_runs_are_read_chosen_from_and_reported(tmp_path):
    sweep = tmp_path / "runs"
    written = {name: train(sweep / name, name) for name in ENVS}
    df = nacme.load_sweep(sweep)
    assert len(df) == 12
    assert df["done"].all()
    for number, name in enumerate(sorted(ENVS)):
        rows, records = df[df["run"] == name].sort_values("step"), written[name]
        assert set(rows["test_env"]) == {number}
        assert rows["test_acc"].tolist() == [record[f"env{number}_in_acc"] for record in records]
        others = [i for i in range(3) if i != number]
        means = [sum(record[f"env{i}_out_acc"] for i in others) / 2 for record in records]
        assert rows["val_acc"].tolist() == pytest.approx(means)
        assert rows["nac_me"].tolist() == [record["nac_me"] for record in records]
        assert records[0]["args"]["env_names"] == sorted(ENVS)
    chosen = nacme.select(df, criterion="nac_me", per="run")
    assert len(chosen) == 3
    assert nacme.rank_correlation(df, criteria=["nac_me", "val_acc"], population="run")["n_runs"].max() >= 1
    from nacme.report.write import write_report

    write_report(df, tmp_path / "report.html")
    assert "digits" in (tmp_path / "report.html").read_text()


def test_accuracies_are_measured_and_the_model_saved_is_the_model(tmp_path):
    data, model = loaders(), network()
    val = {name: data[name] for name in ("photo", "sketch")}
    record = log_of(tmp_path / "a").checkpoint(5, model, val=val, test=data["art"])
    assert record["env0_in_acc"] == nacme.measure(model, data["art"]).accuracy
    assert record["env1_out_acc"] == nacme.measure(model, data["photo"]).accuracy
    assert record["env0_out_acc"] is None
    pooled = nacme.measure(model, data["photo"] + data["sketch"], None, 20.0, 20, 2)
    assert record["nac_me"] == pytest.approx(pooled.nac_me)
    saved = load_checkpoint(tmp_path / "a" / "model_step5.pkl")
    assert saved["step"] == 5
    assert all(torch.equal(saved["model_dict"][name], value) for name, value in model.state_dict().items())


def test_only_the_best_stays_on_disk_and_is_what_select_chooses(tmp_path):
    records = train(tmp_path / "runs" / "a", keep="best:nac_me")
    best = max(records, key=lambda record: record["nac_me"])["step"]
    assert [path.name for path in (tmp_path / "runs" / "a").glob("model*")] == [f"model_step{best}.pkl"]
    row = nacme.select(nacme.load_sweep(tmp_path / "runs"), criterion="nac_me", per="run").iloc[0]
    assert row["checkpoint"].endswith(f"a/model_step{best}.pkl")
    train(tmp_path / "none", keep=())
    assert not list((tmp_path / "none").glob("model*"))


def test_a_loop_that_goes_back_replaces_what_came_after(tmp_path):
    path = tmp_path / "a"
    train(path)
    whole = (path / "results.jsonl").read_text()
    with pytest.raises(ConfigError, match=r"holds step 30 already.*resume=True"):
        train(path, steps=(0,))
    assert (path / "results.jsonl").read_text() == whole
    # as a crash in the middle of writing leaves it
    (path / "results.jsonl").write_text(whole + whole[:40])
    train(path, resume=True)
    assert (path / "results.jsonl").read_text() == whole
    train(path, steps=(40,))
    log_of(path).checkpoint(50, network(), val={name: loaders()[name] for name in ("photo", "sketch")})
    assert not (path / "done").exists()
    steps = [json.loads(line)["step"] for line in (path / "results.jsonl").read_text().splitlines()]
    assert steps == [0, 10, 20, 30, 40, 50]


def test_a_directory_of_another_run_is_refused_and_left_alone(tmp_path):
    train(tmp_path / "a")
    before = (tmp_path / "a" / "results.jsonl").read_text()
    with pytest.raises(ConfigError, match="holds another run"):
        train(tmp_path / "a", "photo", resume=True)
    (tmp_path / "a" / "results.jsonl").write_text("{broken\n" + before)
    with pytest.raises(SweepError, match="line 1"):
        train(tmp_path / "a", steps=(40,))
    assert (tmp_path / "a" / "results.jsonl").read_text() == "{broken\n" + before


def test_what_makes_no_sense_is_refused(tmp_path):
    data, model = loaders(), network()
    log = log_of(tmp_path / "a", ["art", "photo"])
    for options, message in [
        ({"val": data}, "'art' is the test environment"),
        ({"val": data["sketch"]}, "by environment"),
        ({"val": {"sketch": data["sketch"]}, "test": data["art"]}, "give their loaders by name"),
        ({"val": {"sketch": data["sketch"]}, "test": {"arts": data["art"]}}, "'arts', which is none of test_env"),
    ]:
        with pytest.raises(ConfigError, match=message):
            log.checkpoint(0, model, **options)
    with pytest.raises(ConfigError, match="step=-1"):
        log.checkpoint(-1, model, val={"sketch": data["sketch"]})
    with pytest.raises(CriterionError, match="nac_me"):
        log_of(tmp_path / "a", keep="best:nac_mee")
    with pytest.raises(NacmeError, match="names no environment"):
        log_of(tmp_path / "a", [])
    assert not (tmp_path / "a").exists()
    both = log.checkpoint(0, model, val={"sketch": data["sketch"]}, test={n: data[n] for n in ("art", "photo")})
    assert both["args"]["test_envs"] == [0, 1]
    assert len(nacme.load_sweep(tmp_path)) == 2
