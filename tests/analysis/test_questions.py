"""Each script that answers one question draws its figure from a sweep that was really trained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from domainbed_plugins import train

ROOT = Path(__file__).parents[2]
QUESTIONS = sorted(path.stem for path in (ROOT / "analysis" / "questions").glob("*.py"))


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    root = tmp_path_factory.mktemp("sweep")
    for env in ("0", "1"):
        flags = ["--dataset", "RotatedDigits", "--test_envs", env, "--steps", "41", "--checkpoint_freq", "10"]
        coverage = ["--nac_alpha", "1", "--nac_fill", "0.08", "--nac_grid", "alpha=0.1,1", "bins=20,50"]
        train.main([*flags, *coverage, "--output_dir", str(root / env)])
    return root


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_figure_is_drawn(question, sweep, tmp_path):
    figure = tmp_path / "figure.png"
    command = [sys.executable, "-m", f"analysis.questions.{question}", str(sweep), str(figure)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert f"analysis.questions.{question} " in (ROOT / "analysis" / "questions" / "README.md").read_text()
