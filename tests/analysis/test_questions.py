"""Each script that answers one question draws its figure from a sweep that was really trained."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
QUESTIONS = sorted(path.stem for path in (ROOT / "analysis" / "questions").glob("*.py"))


@pytest.mark.parametrize("question", QUESTIONS)
def test_the_figure_is_drawn(question, small_sweep, tmp_path):
    figure = tmp_path / "figure.png"
    command = [sys.executable, "-m", f"analysis.questions.{question}", str(small_sweep / "sweep"), str(figure)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert f"analysis.questions.{question} " in (ROOT / "analysis" / "questions" / "README.md").read_text()
