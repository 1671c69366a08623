"""Model selection inside DomainBed: its own tables unchanged, and those of recorded criteria beside them."""

import json
import shutil

import pytest

from domainbed_plugins import collect_results, selection_methods
from domainbed_plugins.backends import find as backends
from nacme import load_sweep, select
from nacme.errors import CriterionError, SweepError
from nacme.output import report_errors

pytestmark = [pytest.mark.domainbed, pytest.mark.usefixtures("domainbed")]


def record(step, nac_me, acc, *, hparams_seed=0, test_env=0, **added):
    args = {"dataset": "RotatedMNIST", "algorithm": "ERM", "test_envs": [test_env], "trial_seed": 0, "seed": 0}
    accs = {f"env{env}_{split}_acc": 0.5 for env in range(6) for split in ("in", "out")}
    accs |= {f"env{test_env}_in_acc": acc}
    return {
        "step": step,
        "args": {**args, "hparams_seed": hparams_seed},
        "hparams": {},
        **accs,
        "nac_me": nac_me,
        **added,
    }


def write(run, records, name="results.jsonl"):
    run.mkdir(exist_ok=True, parents=True)
    (run / name).write_text("".join(json.dumps(line) + "\n" for line in records))


def query(records):
    return backends.module("lib.query").Q(records)


def test_the_best_value_in_the_criterions_direction():
    records = query(
        [
            record(0, 0.1, 0.2, val_loss=3.0),
            record(1, 0.3, 0.6, val_loss=2.0),
            record(2, 0.2, 0.7, val_loss=1.0),
            record(3, None, 0.9, val_loss=float("nan")),
        ]
    )
    nac, loss = (selection_methods.selection_method(name) for name in ("nac_me", "val_loss"))
    assert nac.run_acc(records) == {"val_acc": 0.3, "test_acc": 0.6}
    assert loss.run_acc(records) == {"val_acc": -1.0, "test_acc": 0.7}
    assert nac.sweep_acc(records) == 0.6
    assert nac.run_acc(query([record(0, None, 0.9)])) is None
    assert nac.sweep_acc(query([record(0, None, 0.9)])) is None
    pair = record(0, 0.9, 1.0)
    pair["args"]["test_envs"] = [0, 1]
    assert nac.run_acc(query([pair])) is None


def test_across_hyper_parameters_the_best_run_counts():
    records = query([record(0, 0.1, 0.2), record(0, 0.4, 0.3, hparams_seed=1), record(5, 0.2, 0.9)])
    assert selection_methods.selection_method("nac_me").sweep_acc(records) == 0.3


def test_classes_are_importable_by_name():
    from domainbed_plugins.selection_methods import NacMeSelectionMethod, ValLossSelectionMethod

    base = backends.module("model_selection").SelectionMethod
    assert issubclass(NacMeSelectionMethod, base)
    assert NacMeSelectionMethod is selection_methods.selection_method("nac_me")
    assert ValLossSelectionMethod.name == "val_loss (lowest)"
    assert "NacMeSelectionMethod" in dir(selection_methods)
    with pytest.raises(AttributeError, match="NoSuchSelectionMethod"):
        selection_methods.NoSuchSelectionMethod  # noqa: B018
    with pytest.raises(CriterionError, match="'val_acc' is no key of the records"):
        selection_methods.selection_method("val_acc")
    with pytest.raises(CriterionError, match="did you mean"):
        selection_methods.selection_method("nac_mee")


def test_picks_what_nacme_select_picks(tmp_path):
    for seed, (first, second) in enumerate([(0.31, 0.33), (0.2, 0.6), (0.5, 0.1)]):
        lines = [
            record(0, first, 0.1 * seed, hparams_seed=seed),
            record(9, second, 0.05 * seed, hparams_seed=seed),
        ]
        write(tmp_path / str(seed), lines)
    chosen = select(load_sweep(tmp_path), criterion="nac_me", per="sweep")
    theirs = selection_methods.selection_method("nac_me").sweep_acc(query(collect_results.load_records(tmp_path)))
    assert theirs == chosen["test_acc"].item()


@pytest.mark.data
def test_domainbeds_tables_are_its_own(nacme_data, capsys):
    sweep = nacme_data / "domainbed_test_sweep"
    before = sorted(path.name for path in sweep.iterdir())
    collect_results.main(["--input_dir", str(sweep)])
    assert capsys.readouterr().out == (sweep / "expected_results.txt").read_text()
    assert sorted(path.name for path in sweep.iterdir()) == before


@pytest.mark.data
@pytest.mark.parametrize("latex", [[], ["--latex"]])
def test_domainbeds_own_script_agrees(latex, nacme_data, tmp_path, monkeypatch, capsys):
    import runpy
    import sys

    sweep = shutil.copytree(nacme_data / "domainbed_test_sweep", tmp_path / "sweep")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", ["collect_results", "--input_dir", str(sweep), *latex])
        patch.setattr(sys, "stdout", sys.stdout)
        runpy.run_module("domainbed.scripts.collect_results", run_name="__main__")
    capsys.readouterr()
    collect_results.main(["--input_dir", str(sweep), *latex])
    assert capsys.readouterr().out == (sweep / ("results.tex" if latex else "results.txt")).read_text()


@pytest.mark.parametrize("latex", [[], ["--latex"]])
def test_tables_of_the_recorded_criteria_are_added(latex, tmp_path, capsys):
    for env in range(6):
        write(tmp_path / str(env), [record(0, 0.1, 0.25, test_env=env), record(5, 0.0, 0.75, test_env=env)])
        added = [{"step": 0, "val_loss": 2.0, "nac_me": 0.0}, {"step": 5, "val_loss": 1.0, "nac_me": 9.0}]
        write(tmp_path / str(env), added, "nac.jsonl")
    collect_results.main(["--input_dir", str(tmp_path), *latex])
    out = capsys.readouterr().out
    start = (
        "\\subsection{Model selection: " if latex else "-------- Dataset: RotatedMNIST, model selection method: "
    )
    sections = out.split(start)[1:]
    assert len(sections) == 5
    by_nac, by_loss = sections[3:]
    # what the records hold wins over what was added
    assert by_nac.startswith("nac\\_me (highest)}" if latex else "nac_me (highest)")
    assert by_nac.count("25.0") >= 7
    assert by_loss.startswith("val\\_loss (lowest)}" if latex else "val_loss (lowest)")
    assert by_loss.count("75.0") >= 7
    collect_results.main(["--input_dir", str(tmp_path), *latex, "--criteria"])
    assert capsys.readouterr().out.count(start) == 3


def test_user_mistakes(tmp_path, capsys):
    with pytest.raises(SweepError, match="holds no records"):
        collect_results.main(["--input_dir", str(tmp_path)])
    lines = [record(0, 0.1, 0.25)]
    lines[0]["args"]["dataset"] = "RotatedDigits"
    write(tmp_path / "a", lines)
    with pytest.raises(SystemExit):
        report_errors(lambda: collect_results.main(["--input_dir", str(tmp_path)]))
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "RotatedDigits: no data set of DomainBed's; use nacme select" in err
