"""The blocks of docs/own_models.md run, in their order, and do what stands beside them."""

import re
from pathlib import Path

import pytest

pytest.importorskip("lightning")
pytest.importorskip("transformers")
PAGE = (Path(__file__).parents[1] / "docs" / "own_models.md").read_text()
BLOCKS = re.findall(r"^```python\n(.*?)^```$", PAGE, re.S | re.M)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::nacme.errors.NacmeWarning")
def test_the_page_runs_as_it_stands(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names = {"__name__": "own_models"}
    for block in BLOCKS:
        exec(compile(block, "docs/own_models.md", "exec"), names)
    said = capsys.readouterr().out
    assert "loader 'env2_out' is of test environment 2" in said
    assert names["record"]["nac_me"] == names["averaged"]["nac_me"] == names["scalars"]["nac_me"]
    assert len(names["df"]) == 12
    for name in "ABC":
        assert len(list(Path("runs", name).glob("model_step*.pkl"))) == 1
    assert Path(names["best"].best_model_path).is_file()
    assert names["trainer"].state.best_metric > 0
