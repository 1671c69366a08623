"""The command line as a whole: quick to answer, light to import, one line for a user's mistake."""

import json
import resource
import subprocess
import sys

import pytest


def nacme(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "nacme.cli", *map(str, arguments)], capture_output=True, text=True, timeout=120
    )


@pytest.mark.parametrize("module", ["nacme", "nacme.cli", "domainbed_plugins.train"])
def test_importing_loads_neither_torch_nor_matplotlib(module):
    heavy = "{'torch', 'matplotlib', 'pandas', 'scipy', 'torchmetrics'}"
    code = f"import sys, {module}; print(sorted({heavy} & set(sys.modules)))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_every_name_in_the_package_loads():
    code = "import nacme; print(all(getattr(nacme, name) is not None for name in nacme.__all__))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "True"


def test_help_answers_in_half_a_second():
    took = []
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = nacme("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        # of the processor, since others may be busy on the machine
        took.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
        assert result.returncode == 0
    assert {"demo", "train", "select", "correlate", "report", "criteria"} <= set(result.stdout.split())
    assert min(took) < 0.5


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


@pytest.mark.parametrize("flag", ["--include_step0", "--include-step0"])
def test_a_flag_is_known_by_both_spellings(flag, simulated_sweep):
    done = nacme("correlate", simulated_sweep, flag, "--format", "json", "--criterion", "last")
    assert done.returncode == 0, done.stderr
    plain = nacme("correlate", simulated_sweep, "--format", "json", "--criterion", "last")
    counts = [[row["n_checkpoints"] for row in json.loads(told.stdout)] for told in (done, plain)]
    assert all(with_step0 > without for with_step0, without in zip(*counts))


def test_flags_are_listed_in_one_spelling():
    for command in ("select", "correlate", "report", "criteria", "prune", "export", "demo"):
        told = nacme(command, "--help")
        words = {word.strip(",│") for word in told.stdout.split()}
        assert [word for word in words if word.startswith("--") and "-" in word[2:]] == [], command
    for command in ("run", "plan", "status", "delete"):
        words = set(nacme("sweep", command, "--help").stdout.split())
        assert [word for word in words if word.startswith("--") and "-" in word[2:]] == [], command
