"""What lies in the working directory is no code and no configuration."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from nacme import children

ROOT = Path(children.__file__).parents[1]
CANARY = "open(__file__ + '.ran', 'w').close(); raise SystemExit('ran')\n"


@pytest.fixture
def hostile(tmp_path):
    """A directory of modules that say when they are imported."""
    for name in ("json", "pickle", "orjson", "numpy", "matplotlib", "typer", "runpy", "worker"):
        (tmp_path / f"{name}.py").write_text(CANARY)
    (tmp_path / "matplotlibrc").write_bytes(b"backend: module://worker\nfont.size: \xff\n")
    return tmp_path


def ran(directory):
    return sorted(path.name for path in directory.glob("*.ran"))


@pytest.mark.parametrize("safe_flag", [sys.version_info >= (3, 11), False], ids=["-P", "-c"])
def test_a_child_finds_no_module_in_the_working_directory(safe_flag, hostile, tmp_path):
    task = tmp_path / "task.json"
    task.write_text(f'{{"sweep": {str(hostile)!r}, "names": [], "known": [], "out": "out.npz"}}'.replace("'", '"'))
    command = [*children.interpreter(safe_flag), "-m", "nacme.records.worker", str(task)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONSAFEPATH", None)
    done = subprocess.run(command, cwd=hostile, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, ran(hostile)) == (0, []), done.stderr
    assert (hostile / "out.npz").exists()


def test_the_command_line_finds_none_there_through_an_empty_entry_of_the_path(hostile):
    path = os.pathsep.join([str(ROOT), ""])
    command = [sys.executable, "-c", "from nacme.__main__ import main; main()", "criteria"]
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
    done = subprocess.run(command, cwd=hostile, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode, ran(hostile)) == (0, []), done.stderr
    assert "nac_me" in done.stdout


def test_processes_of_multiprocessing_find_none_there(hostile, tmp_path):
    script = tmp_path / "elsewhere" / "script.py"
    script.parent.mkdir()
    script.write_text(
        textwrap.dedent("""
        import multiprocessing
        from nacme import children

        if __name__ == "__main__":
            with children.starting():
                process = multiprocessing.get_context("spawn").Process(target=print, args=("here",))
                process.start()
            process.join()
        """)
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONSAFEPATH", None)
    done = subprocess.run(
        [sys.executable, str(script)], cwd=hostile, env=environment, capture_output=True, text=True, check=False
    )
    assert (done.stdout, ran(hostile)) == ("here\n", []), done.stderr


def test_figures_look_the_same_whatever_the_working_directory_says(hostile):
    for module in hostile.glob("*.py"):
        module.unlink()
    script = (
        "from nacme.children import leave_working_directory as leave; leave(); import hashlib, matplotlib;"
        "from matplotlib.figure import Figure; from nacme.plots.style import render, styled;"
        "figure = styled(Figure)(); styled(figure.subplots)().set_title('$x_1$ and _');"
        "print(hashlib.sha256(render(figure, 'svg')).hexdigest(), matplotlib.rcParams['font.size'])"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    said = [
        subprocess.run(
            [sys.executable, "-c", script], cwd=where, env=environment, capture_output=True, text=True, check=False
        )
        for where in (hostile, ROOT)
    ]
    assert said[0].stdout == said[1].stdout != "", said[0].stderr
