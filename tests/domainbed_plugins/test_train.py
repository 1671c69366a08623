"""The command that trains: each mistake is told in one line before anything is trained."""

import pytest

from domainbed_plugins.recording.flags import parse_grid
from domainbed_plugins.train import main, parser
from nacme.errors import ConfigError
from nacme.output import report_errors
from nacme.settings import CoverageSettings

RUN = ["--dataset", "RotatedDigits", "--steps", "2"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--algorithm", "EMR"], "--algorithm 'EMR' is unknown to embedded; did you mean 'ERM'"),
        (["--hparams", "{lr: 1}"], "--hparams is not JSON"),
        (["--hparams", "[1]"], "--hparams must be a JSON object, not '[1]'"),
        (["--test_envs", "6"], "--test_envs 6 is out of range: RotatedDigits has envs 0 to 5"),
        (["--test_envs", "-1"], "--test_envs -1 is out of range"),
        (["--test_envs", "0", "1", "2", "3", "4", "5"], "names every environment"),
        (["--hparams", '{"batch_size": 4000}'], "batch_size 4000 is larger than env1_in"),
        (["--holdout_fraction", "0"], "without a validation split; raise it"),
        (["--task", "domain_adaptation"], "set --uda_holdout_fraction above 0"),
        (["--nac_layers", "featurizer.conv9"], "no layer 'featurizer.conv9'; did you mean 'featurizer.conv"),
        (["--nac_alpha", "-1"], "alpha=-1.0 must be a positive number or 'auto'"),
        (["--nac_grid", "alpa=1"], "'alpa' is unknown; did you mean 'alpha'"),
        (["--nac_grid", "bins=many"], "'many' are not numbers"),
    ],
)
def test_mistakes(flags, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        report_errors(lambda: main([*RUN, *flags, "--output_dir", str(tmp_path / "run")]))
    assert stop.value.code == 1
    err = capsys.readouterr().err
    assert err.startswith("nacme: ")
    assert err.count("\n") == 1
    assert message in err
    assert not (tmp_path / "run" / "results.jsonl").exists()


@pytest.mark.domainbed
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--dataset", "RotatedMNISt"],
            "--dataset 'RotatedMNISt' is unknown to domainbed; did you mean 'RotatedMNIST'",
        ),
        (["--dataset", "Debug28", "--algorithm", "VRex"], "unknown to domainbed; did you mean 'VREx'"),
        (["--dataset", "Debug28", "--test_envs", "3"], "--test_envs 3 is out of range: Debug28 has envs 0 to 2"),
        # DomainBed itself would wait for ever: no batch of 64 comes out of 13 samples
        (["--dataset", "Debug28"], "batch_size 64 is larger than env1_in (13 samples)"),
        (["--dataset", "PACS", "--data_dir", "/nowhere"], "--data_dir /nowhere: PACS cannot be read there"),
    ],
)
def test_mistakes_with_domainbed(flags, message, domainbed, tmp_path, capsys):
    test_mistakes(flags, message, tmp_path, capsys)


def test_a_grid_is_a_product():
    grid = parse_grid(["alpha=0.1,auto", "fill=500,0.08"], CoverageSettings(1.0, 20, 3, correct_only=False))
    assert {(s.alpha, s.fill) for s in grid} == {(0.1, 500), (0.1, 0.08), ("auto", 500), ("auto", 0.08)}
    assert {(s.bins, s.correct_only) for s in grid} == {(20, False)}
    assert parse_grid([], CoverageSettings()) == ()
    with pytest.raises(ConfigError, match="fill"):
        parse_grid(["fill=-1"], CoverageSettings())


def test_a_flag_is_known_by_both_spellings():
    words = ["--output-dir", "a-b", "--nac-split=in", "--hparams", '{"weight-decay": 0}']
    flags = parser().parse_args(words)
    assert (flags.output_dir, flags.nac_split, flags.hparams) == ("a-b", "in", '{"weight-decay": 0}')
