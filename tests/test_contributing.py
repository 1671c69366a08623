"""The worked examples of CONTRIBUTING.md work, each in an empty folder, as they stand there."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs" / "CONTRIBUTING.md").read_text()
HOW_TO = {
    title: re.findall(r"^```(\w+)\n(.*?)^```$", text, re.S | re.M)
    for title, text in re.findall(r"^## Add an? (.*?)$(.*?)(?=^## )", PAGE, re.S | re.M)
}


def install(folder):
    """Offer the entry points of the example's project, as installing it would."""
    project = folder / "pyproject.toml"
    if not project.exists():
        return
    name = re.search(r'^name = "(.*)"$', project.read_text(), re.M)[1]
    points = re.findall(r'^\[project\.entry-points\."(.*)"\]\n(\w+) = "(.*)"$', project.read_text(), re.M)
    info = folder / f"{name}-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n")
    (info / "entry_points.txt").write_text("".join(f"[{group}]\n{key} = {what}\n" for group, key, what in points))


def test_every_extension_has_its_example():
    assert HOW_TO.keys() == {"criterion", "detector", "launcher", "data set", "algorithm"}


@pytest.mark.parametrize("what", HOW_TO)
def test_an_example_works(what, tmp_path):
    commands = ""
    for language, text in HOW_TO[what]:
        if language == "sh":
            commands += text
        else:
            (tmp_path / text.partition("\n")[0].removeprefix("# ")).write_text(text)
    install(tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, call in (("python", ""), ("nacme", " -m nacme.cli")):
        (programs / name).write_text(f'#!/bin/sh\nexec "{sys.executable}"{call} "$@"\n')
        (programs / name).chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)]),
    }
    done = subprocess.run(
        ["bash", "-euc", commands], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    for promised in re.findall(r"^# (.*)$", commands, re.M):
        assert promised in done.stdout
    if "sweep" in commands:
        assert list(tmp_path.glob("sweep/*/done"))
