"""The command line as a whole: quick to answer, light to import, one line for a user's mistake."""

import subprocess
import sys
import time

import pytest


def nacme(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "nacme.cli", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("module", ["nacme", "nacme.cli"])
def test_importing_loads_neither_torch_nor_matplotlib(module):
    heavy = "{'torch', 'matplotlib', 'pandas', 'scipy', 'torchmetrics'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_every_name_in_the_package_loads():
    code = "import nacme; print(all(getattr(nacme, name) is not None for name in nacme.__all__))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "True"


def test_help_answers_in_under_a_second():
    quickest = float("inf")
    for _ in range(3):
        started = time.perf_counter()
        result = nacme("--help")
        quickest = min(quickest, time.perf_counter() - started)
        assert result.returncode == 0
    assert {"demo", "train", "select", "correlate", "report", "criteria"} <= set(result.stdout.split())
    assert quickest < 1.0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["select", "no/such/sweep"], "no/such/sweep"),
        (["train", "--dataset", "RotatedDigit", "--domainbed", "/nowhere"], "/nowhere"),
        (["train", "--dataset", "RotatedDigits", "--algorithm", "ERMM"], "did you mean 'ERM'"),
        (["train", "--dataset", "RotatedDigits", "--test_envs", "6"], "envs 0 to 5"),
        (["train", "--dataset", "RotatedDigits", "--hparams", "{lr: 1}"], "--hparams is not JSON"),
        (["train", "--dataset", "RotatedDigits", "--nac_alpha", "-1"], "alpha=-1.0"),
        (["train", "--dataset", "RotatedDigits", "--nac_grid", "beta=1"], "'beta' is unknown"),
        (["train", "--dataset", "RotatedDigits", "--output_dir", "/proc/x"], "/proc/x"),
    ],
)
def test_a_users_mistake_is_one_line_and_exit_1(arguments, says, tmp_path):
    if arguments[0] == "train" and "--output_dir" not in arguments:
        arguments = [*arguments, "--output_dir", tmp_path / "run"]
    result = nacme(*arguments)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1, result.stderr
    assert result.stderr.startswith("nacme: ")
    assert says in result.stderr


def test_batch_larger_than_a_split_is_said_at_once(tmp_path):
    big = ("--hparams", '{"batch_size": 300}')
    result = nacme("train", "--dataset", "RotatedDigits", *big, "--output_dir", tmp_path / "run")
    assert result.returncode == 1
    assert "batch_size 300 is larger than env1_in (240 samples)" in result.stderr
    assert "Traceback" not in result.stderr


def test_bad_usage_exits_with_2():
    assert nacme("select").returncode == 2
    assert nacme("train", "--no_such_flag").returncode == 2
