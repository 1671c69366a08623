from __future__ import annotations

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from nacme import load_sweep
from nacme.cli import app
from nacme.errors import ConfigError, CriterionError, NacmeError
from nacme.report.findings import gather
from nacme.report.verdicts import Verdict, degenerate, verdicts
from nacme.report.write import write_report
from nacme.study.comparison import compare_criteria

WriteSweep = Callable[..., Path]
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
VOID = {"meta", "link", "img", "br", "hr", "input"}


@dataclass
class Page(HTMLParser):
    """What a report holds: its tags in order, its tables as text, and whether its tags close as they open."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    tables: dict[str, list[list[str]]] = field(default_factory=dict)
    text: str = ""

    def __post_init__(self) -> None:
        super().__init__()
        self._open: list[str] = []
        self._rows: list[list[str]] | None = None

    @classmethod
    def read(cls, path: Path) -> Page:
        page = cls()
        page.feed(path.read_text())
        page.close()
        assert not page._open, f"never closed: {page._open}"
        return page

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in VOID:
            return
        self._open.append(tag)
        if tag == "table":
            self._rows = self.tables.setdefault(str(dict(attrs)["id"]), [])
        elif self._rows is not None and tag == "tr":
            self._rows.append([])
        elif self._rows is not None and tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag
        if tag == "table":
            self._rows = None

    def handle_data(self, data: str) -> None:
        if "script" in self._open or "style" in self._open:
            return
        self.text += data
        if self._rows and ("td" in self._open or "th" in self._open):
            self._rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def df(simulated_sweep: Path) -> pd.DataFrame:
    return load_sweep(simulated_sweep)


@pytest.fixture(scope="module")
def small(df: pd.DataFrame) -> pd.DataFrame:
    """Return one test env of the sweep, for tests of what does not depend on the numbers."""
    return df[df["test_env"] == 0].reset_index(drop=True)


@pytest.fixture(scope="module")
def report(df: pd.DataFrame, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("report") / "new" / "report.html"
    return write_report(df, path, command="nacme report sweep <x>", n_boot=200)


@pytest.fixture(scope="module")
def page(report: Path) -> Page:
    return Page.read(report)


def judge(df: pd.DataFrame, criteria: tuple[str, ...] = ("nac_me", "val_acc", "last")) -> list[Verdict]:
    return verdicts(gather(df, criteria, include_step0=False, n_boot=200, seed=0))


# --- the page


def test_page_is_well_formed_and_says_what_it_is_about(page: Page) -> None:
    assert page.all("html") == [{"lang": "en"}]
    assert len(page.all("h1")) == len(page.all("main")) == 1
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "Checkpoint selection on RotatedDigits" in page.text
    assert "24 runs, 216 checkpoints, 3 test envs, 2 trials, ERM" in page.text
    assert "nacme report sweep <x>" in page.text
    for word in ("How to read this critically", "autocorrel|not independent", "confounder", "torch", "scipy"):
        assert re.search(word, page.text), word


def test_page_needs_nothing_from_elsewhere(report: Path, page: Page) -> None:
    for tag, attributes in page.tags:
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attributes.get(name)
            assert value is None or value.startswith(("data:", "#")), (tag, name, value)
    html = re.sub(r"data:[a-z/+]+;base64,[A-Za-z0-9+/=]+", "", report.read_text())
    assert not re.search(r"@import|url\(|https?://|fetch\(|XMLHttpRequest", html)
    for image in page.all("img"):
        kind, _, content = str(image["src"]).partition(";base64,")
        if kind == "data:image/svg+xml":
            svg = base64.b64decode(content).decode()
            ElementTree.fromstring(svg)
            assert not re.search(r"""(href|src)=["']https?:""", svg)


def test_every_image_has_a_text_and_every_figure_a_caption(page: Page) -> None:
    images = page.all("img")
    assert len(images) == 2 + 3 * (2 + 2 + 1)
    assert all(len(str(image["alt"])) > 40 for image in images)
    assert len({image["alt"] for image in images}) == len(images)
    assert len(page.all("figure")) == len(page.all("figcaption")) == 6


def test_tables_hold_the_numbers_of_the_frames(df: pd.DataFrame, page: Page) -> None:
    found = gather(df, ["nac_me", "val_acc", "val_loss", "last"], include_step0=False, n_boot=200, seed=0)
    head, *rows = page.tables["correlations-run"]
    assert head == [
        "test env", "criterion", "Kendall tau", "Spearman rho", "weighted tau", "rho given step", "checkpoints",
        "runs",
    ]  # fmt: skip
    assert len(rows) == 12
    for row, expected in zip(rows, found.ranks["run"].to_dict("records"), strict=True):
        numbers = [f"{expected[key]:.2f}" for key in ("kendall_tau", "kendall_low", "kendall_high")]
        assert row[2].replace("−", "-") == "{} [{}, {}]".format(*numbers)
        assert row[-2:] == ["64", "8"]
    head, *rows = page.tables["summary-sweep"]
    best = found.summary["sweep"].set_index("criterion")
    assert {row[0]: row[1] for row in rows} == {n: f"{100 * best.loc[n, 'top1_acc']:.1f}%" for n in best.index}
    own = dict(zip(head, next(row for row in rows if row[0] == "val_acc")))
    assert own["gain over val_acc"] == own["wins"] == own["sign test p"] == "–"
    assert page.tables["correlations-run"][4][5] == "undefined"  # rho of last given the step


def test_notes_say_what_was_left_out(df: pd.DataFrame, tmp_path: Path) -> None:
    holes = df.copy()
    holes.attrs["exclusions"] = ["1 directory without results.jsonl: broken <b>"]
    holes.loc[holes["run"] == holes["run"].iloc[0], "done"] = False
    holes.loc[holes.index[:4], "nac_me"] = np.nan
    page = Page.read(write_report(holes, tmp_path / "r.html", n_boot=20))
    assert "left out: 1 directory without results.jsonl: broken <b>" in page.text
    assert "1 of 24 runs are not finished" in page.text
    assert "step 0 is left out: 24 of 216 checkpoints" in page.text
    assert re.search(r"nac_me.* undefined at \d+ checkpoints", page.text)


def test_degenerate_coverage_is_said_plainly(
    df: pd.DataFrame, page: Page, write_sweep: WriteSweep, tmp_path: Path
) -> None:
    assert "Coverage is degenerate" not in page.text
    assert (
        "coverage was measured at 216 checkpoints; 21.5 bins occupied on average; degenerate at none" in page.text
    )
    bad = load_sweep(write_sweep(tmp_path / "sweep", degenerate=True, hparams_seeds=2, trial_seeds=1))
    bad.loc[bad.index[:4], "degenerate"] = False
    page = Page.read(write_report(bad, tmp_path / "r.html", n_boot=20))
    assert "Coverage is degenerate." in page.text
    assert "At 50 of the 54 checkpoints where it was measured, steps 0 to 400, nearly all states" in page.text
    assert "1.1 bins occupied on average" in page.text
    assert degenerate(df.drop(columns=["degenerate", "occupied_bins"])) is None


def test_coverage_without_full_bins_is_said_plainly(df: pd.DataFrame, page: Page, tmp_path: Path) -> None:
    assert "Coverage only counts samples" not in page.text
    few = df.assign(full_bins=0.0)
    few.loc[few.index[:54], "full_bins"] = 3.0
    page = Page.read(write_report(few, tmp_path / "r.html", n_boot=20))
    assert "Coverage only counts samples. At 75% of the checkpoints" in page.text


def test_several_data_sets_and_algorithms(write_sweep: WriteSweep, tmp_path: Path) -> None:
    sweep = write_sweep(
        tmp_path / "sweep",
        datasets=("A_1", "B", "C"),
        algorithms=("ERM", "IRM"),
        envs=2,
        hparams_seeds=1,
        checkpoints=5,
    )
    page = Page.read(write_report(load_sweep(sweep), tmp_path / "r.html", n_boot=20))
    assert "Checkpoint selection on 3 data sets" in page.text
    assert "24 runs, 120 checkpoints, 6 test envs, 2 trials, 2 algorithms" in page.text
    assert page.tables["correlations-run"][0][:3] == ["data set", "test env", "criterion"]
    assert "Algorithms are taken together." in page.text
    assert "here a test env has 4 runs" in page.text
    assert "of the 24 correlations per population" in page.text
    assert page.tables["quality-run"][0][:4] == ["data set", "algorithm", "test env", "criterion"]
    assert all(f"On {name}, across 8 runs" in page.text for name in ("A_1", "B", "C"))
    assert re.search(r"Within a run: [a-z ]+Better on \d, worse on \d of 3 data sets\.", page.text)


def test_long_tables_are_cut_in_the_page_and_whole_in_the_export(
    df: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nacme.report.write.MAX_ROWS", 10)
    monkeypatch.setattr("nacme.report.page.MAX_BYTES", 20_000)
    page = Page.read(write_report(df, tmp_path / "r.html", export=tmp_path / "out", n_boot=20))
    assert len(page.tables["choices-run"]) == 11
    assert "The first 10 of 96 rows; --export writes all." in page.text
    assert "The first 1 of 3 panels; --export writes all." in page.text
    assert len(pd.read_csv(tmp_path / "out" / "choices-run.csv")) == 96


def test_a_large_sweep_compares_the_judged_criterion_alone(
    small: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nacme.report.findings.LARGE", 4)
    page = Page.read(write_report(small, tmp_path / "r.html", n_boot=20))
    assert [row[1] for row in page.tables["differences-sweep"][1:]] == ["nac_me"]
    assert "more than 4 runs: only nac_me is compared with val_acc, with 1,000 permutations" in page.text


def test_same_sweep_same_page(small: pd.DataFrame, tmp_path: Path) -> None:
    pages = [write_report(small, tmp_path / f"{i}.html", n_boot=50).read_text() for i in range(2)]
    first, second = (re.sub(r"<dt>date</dt><dd>[^<]*</dd>", "", text) for text in pages)
    assert first == second


def test_report_does_not_import_torch(simulated_sweep: Path, tmp_path: Path) -> None:
    code = (
        "import sys, nacme.report as r, nacme;"
        f"r.write_report(nacme.load_sweep({str(simulated_sweep)!r}), {str(tmp_path / 'r.html')!r}, n_boot=5);"
        "sys.exit('torch' in sys.modules or 'matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# --- files


def test_export_writes_every_figure_and_table(small: pd.DataFrame, tmp_path: Path) -> None:
    page = Page.read(write_report(small, tmp_path / "r.html", export=tmp_path / "out", n_boot=50))
    written = {path.name for path in (tmp_path / "out").iterdir()}
    figures = {str(attributes["id"]) for attributes in page.all("figure")}
    assert written == {f"{n}.{k}" for n in figures for k in ("png", "pdf")} | {
        f"{n}.{k}" for n in page.tables for k in ("csv", "tex")
    }
    assert all((tmp_path / "out" / f"{n}.pdf").read_bytes().startswith(b"%PDF") for n in figures)
    assert all((tmp_path / "out" / f"{n}.png").read_bytes().startswith(b"\x89PNG") for n in figures)
    exported = pd.read_csv(tmp_path / "out" / "correlations-run.csv")
    expected = gather(small, ["nac_me", "val_acc", "val_loss", "last"], include_step0=False, n_boot=50, seed=0)
    pd.testing.assert_frame_equal(exported, expected.ranks["run"].drop(columns="reason"), check_dtype=False)
    latex = (tmp_path / "out" / "summary-sweep.tex").read_text()
    assert r"\toprule" in latex
    assert r"nac\_me" in latex
    assert not set("−±–") & set(latex)


def test_nothing_half_written_remains(small: pd.DataFrame, tmp_path: Path) -> None:
    place = tmp_path / "report.html"
    write_report(small, place, n_boot=5)
    write_report(small, place, n_boot=5)
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    umask = os.umask(0)
    os.umask(umask)
    assert place.stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.parametrize("what", ["report", "export"])
def test_what_cannot_be_written_is_named_in_one_line(small: pd.DataFrame, tmp_path: Path, what: str) -> None:
    (tmp_path / "file").write_text("")
    bad = tmp_path / "file" / "inside"
    options = {"path": bad / "r.html"} if what == "report" else {"path": tmp_path / "r.html", "export": bad}
    with pytest.raises(NacmeError) as caught:
        write_report(small, n_boot=5, **options)  # type: ignore[arg-type]
    assert str(bad) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_directory_in_the_place_of_the_report_is_named(small: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=re.escape(str(tmp_path))):
        write_report(small, tmp_path, n_boot=5)
    assert list(tmp_path.iterdir()) == []


def test_criteria_are_checked(small: pd.DataFrame, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="criteria is empty"):
        write_report(small, tmp_path / "r.html", criteria=[])
    with pytest.raises(CriterionError, match="nac_mee"):
        write_report(small, tmp_path / "r.html", criteria=["nac_mee"])


def test_command_line_writes_the_report_and_prints_its_place(simulated_sweep: Path, tmp_path: Path) -> None:
    out = tmp_path / "page.html"
    arguments = [
        "report",
        str(simulated_sweep),
        "--out",
        str(out),
        "--criterion",
        "nac_me,rank_mean(nac_me, val_acc)",
    ]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert result.stdout == f"{out}\n"
    page = Page.read(out)
    assert {row[0] for row in page.tables["summary-run"][1:]} == {"nac_me", "rank_mean(nac_me, val_acc)"}


# --- the verdict


def test_verdict_better(df: pd.DataFrame) -> None:
    within, across, choice = judge(df)
    assert (within.kind, across.kind) == ("better", "better")
    merged = compare_criteria(df.assign(test_env=-1), "nac_me", "val_acc", n_boot=200, pool_algorithms=True).iloc[
        0
    ]
    assert merged["n_runs"] == 24
    for key in ("value", "baseline_value", "difference"):
        assert f"{merged[key]:.2f}" in within.sentence
    assert within.sentence.startswith(
        "On RotatedDigits, across 24 runs, NAC-ME ranks the checkpoints of a run better than validation accuracy"
    )
    assert "], p < 0.001." in within.sentence
    assert "Test env by test env: better in 3, worse in 0 of 3 test envs." in within.sentence
    assert "NAC-ME ranks all checkpoints of a sweep better than validation accuracy" in across.sentence
    # Eight runs a test env are four pairs: that tells of no test env by itself, but of the three together.
    assert across.sentence.endswith("Test env by test env: no difference can be told in any of 3.")
    # Three test envs cannot give a sign test below 0.25, whatever the gain.
    assert choice.kind == "none"
    assert "sign test p = 0.250" in choice.sentence
    assert choice.sentence.endswith("no difference can be told.")


def test_verdict_worse(write_sweep: WriteSweep, tmp_path: Path) -> None:
    within, across, choice = judge(load_sweep(write_sweep(tmp_path / "s", nac_me="bad")))
    assert (within.kind, across.kind) == ("worse", "worse")
    assert "NAC-ME ranks the checkpoints of a run worse than validation accuracy" in within.sentence
    assert re.search(r"difference −\d\.\d\d \[−\d\.\d\d, −\d\.\d\d\]", within.sentence)
    assert "NAC-ME ranks all checkpoints of a sweep worse than validation accuracy" in across.sentence
    assert re.search(r"NAC-ME loses \d+\.\d points: better in 0, worse in 3 of 3 test envs", choice.sentence)


def test_verdict_no_difference(df: pd.DataFrame) -> None:
    noise = np.random.default_rng(0).normal(0, 1e-3, len(df))
    within, across, _ = judge(df.assign(nac_me=df["val_acc"] + noise))
    assert within.kind == across.kind == "none"
    assert within.label == "Within a run: no difference can be told"
    assert "no difference can be told between NAC-ME and validation accuracy" in within.sentence
    assert "an interval that contains 0" in within.sentence
    assert re.search(r"Its tau is higher in \d and lower in \d of 3 test envs\.", across.sentence)


def test_verdict_on_a_constant_criterion_is_undefined_with_its_reason(
    write_sweep: WriteSweep, tmp_path: Path
) -> None:
    sweep = load_sweep(write_sweep(tmp_path / "s", nac_me="constant"))
    within, across, choice = judge(sweep)
    assert within.kind == across.kind == "undefined"
    assert "6 of the 6 choices by NAC-ME rest on a tie of more than half of the candidates" in choice.sentence
    assert "constant criterion" in within.sentence
    assert "constant criterion" in across.sentence
    path = write_report(sweep[sweep["test_env"] == 0], tmp_path / "r.html", n_boot=20)
    forests = [
        str(image["alt"]) for image in Page.read(path).all("img") if str(image["alt"]).startswith("Kendall tau")
    ]
    assert forests
    assert all("nac_me undefined" in alt for alt in forests)


def test_verdict_of_one_run_claims_nothing(df: pd.DataFrame, tmp_path: Path) -> None:
    alone = df[df["run"] == df["run"].iloc[0]]
    found = judge(alone)
    assert [verdict.kind for verdict in found[:2]] == ["undefined", "undefined"]
    assert "one run says nothing about uncertainty" in found[0].sentence
    assert "one run says nothing about uncertainty" in found[1].sentence
    assert all(verdict.kind in ("undefined", "none") for verdict in found)
    assert write_report(alone, tmp_path / "r.html", n_boot=20).exists()


def test_verdict_of_few_runs_claims_nothing_however_they_agree(df: pd.DataFrame) -> None:
    few = df[(df["test_env"] == 0) & df["run"].isin(sorted(df.loc[df["test_env"] == 0, "run"].unique())[:3])]
    within, across, choice = judge(few.assign(nac_me=few["test_acc"]))
    assert [verdict.kind for verdict in (within, across, choice)] == ["none"] * 3
    assert "no interval (3 runs, an interval needs 4), p = 0.250" in within.sentence


def test_verdict_of_test_envs_that_disagree_counts_them(df: pd.DataFrame) -> None:
    mixed = df.copy()
    bad = mixed["test_env"] == 1
    mixed.loc[bad, "nac_me"] = -mixed.loc[bad, "nac_me"]
    within = judge(mixed)[0]
    assert within.kind == "none"
    assert "Its tau is higher in 2 and lower in 1 of 3 test envs." in within.sentence


def test_verdict_passes_over_test_envs_where_it_is_undefined(df: pd.DataFrame) -> None:
    holes = df.copy()
    holes.loc[holes["test_env"] == 1, "nac_me"] = 0.25
    within, across, _ = judge(holes)
    assert within.kind == "better"
    assert "across 16 runs" in within.sentence
    assert "across 16 runs" in across.sentence
    assert "better in 2, worse in 0 of 3 test envs; in 1 it is undefined" in within.sentence


def test_choice_can_be_told_better_with_enough_test_envs(write_sweep: WriteSweep, tmp_path: Path) -> None:
    sweep = load_sweep(write_sweep(tmp_path / "s", datasets=("A", "B", "C"), hparams_seeds=3))
    choice = judge(sweep)[-1]
    assert choice.label == "Choosing from the sweep: better"
    assert "better in 8, worse in 1 of 9 test envs (sign test p = 0.039)" in choice.sentence


def test_without_nac_me_the_report_says_so(write_sweep: WriteSweep, tmp_path: Path) -> None:
    sweep = load_sweep(write_sweep(tmp_path / "s", criteria=False, hparams_seeds=2))
    page = Page.read(write_report(sweep, tmp_path / "r.html", n_boot=20))
    assert "NAC-ME: not reported" in page.text
    assert "nacme score" in page.text
    assert "validation accuracy" in page.text


def test_a_criterion_that_is_always_null_is_not_reported(write_sweep: WriteSweep, tmp_path: Path) -> None:
    null = load_sweep(write_sweep(tmp_path / "s", nac_me="null", hparams_seeds=2))
    found = write_report(null[null["test_env"] == 0], tmp_path / "r.html", n_boot=20)
    assert "NAC-ME: not reported" in Page.read(found).text


def test_one_criterion_has_nothing_to_be_compared_with(small: pd.DataFrame, tmp_path: Path) -> None:
    page = Page.read(write_report(small, tmp_path / "r.html", criteria=["nac_me"], n_boot=20))
    assert "Only nac_me is reported: there is nothing to compare it with." in page.text
    assert "differences-run" not in page.tables


# --- in a real browser


def browse(path: Path, *flags: str) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    command = [
        CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--enable-logging=stderr", "--v=0", f"--user-data-dir={path.parent / 'profile'}",
        "--virtual-time-budget=10000", *flags, path.as_uri(),
    ]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)


needs_chromium = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
PROBE = """
<script>
window.addEventListener("load", () => {
const seen = { tables: {}, images: [], wide: document.documentElement.scrollWidth };
document.querySelectorAll("details").forEach(d => { d.open = true; });
document.querySelectorAll("table").forEach(table => {
  const columns = [];
  Array.from(table.tHead.rows[0].cells).forEach((head, place) => {
    const read = () => Array.from(table.tBodies[0].rows).map(row => row.cells[place].textContent);
    const before = head.getAttribute("aria-sort");
    head.querySelector("button").click();
    const up = read(), first = head.getAttribute("aria-sort");
    head.querySelector("button").click();
    columns.push({ title: head.textContent, numeric: head.classList.contains("number"), before, first, up,
                   second: head.getAttribute("aria-sort"), down: read() });
  });
  seen.tables[table.id] = columns;
});
document.querySelectorAll("img").forEach(i => { seen.images.push([i.complete, i.naturalWidth]); });
const said = document.createElement("pre");
said.id = "seen";
said.textContent = JSON.stringify(seen);
document.body.appendChild(said);
});
</script>
</body>"""


def number(text: str) -> float:
    return float(re.match(r"(< )?(-?[\d.]+)", text.replace("−", "-").replace(",", ""))[2])  # type: ignore[index]


@needs_chromium
def test_every_column_of_every_table_sorts_both_ways_in_a_browser(
    report: Path, page: Page, tmp_path: Path
) -> None:
    copy = tmp_path / "probe.html"
    copy.write_text(report.read_text().replace("</body>", PROBE))
    done = browse(copy, "--dump-dom")
    assert "CONSOLE" not in done.stderr, done.stderr
    seen = json.loads(re.search(r'<pre id="seen">(.*?)</pre>', done.stdout, re.S)[1].replace("&lt;", "<"))  # type: ignore[index]
    assert all(complete and width > 0 for complete, width in seen["images"])
    assert seen["tables"].keys() == page.tables.keys()
    for name, columns in seen["tables"].items():
        for place, column in enumerate(columns):
            original = [row[place] for row in page.tables[name][1:]]
            up, down = column["up"], column["down"]
            assert sorted(up) == sorted(down) == sorted(original)
            assert (column["before"], column["first"], column["second"]) == ("none", "ascending", "descending")
            defined = len([text for text in up if text not in ("undefined", "–")])
            for order in (up, down):
                assert set(order[defined:]) <= {"undefined", "–"}, "what is undefined stands last"
            if column["numeric"]:
                shown = [number(text) for text in up[:defined]]
                assert shown == sorted(shown), (name, column["title"])
                shown = [number(text) for text in down[:defined]]
                assert shown == sorted(shown, reverse=True), (name, column["title"])
            else:
                assert up == sorted(up, key=str.casefold)
                assert down == sorted(down, key=str.casefold, reverse=True)


@needs_chromium
@pytest.mark.parametrize("width", [400, 1280])
def test_nothing_but_tables_scrolls_sideways(report: Path, tmp_path: Path, width: int) -> None:
    # A window cannot be narrower than 500 pixels, a frame can.
    probe = """<script>
    const frame = document.querySelector("iframe");
    frame.addEventListener("load", () => {
      const inside = frame.contentDocument, far = [];
      inside.querySelectorAll("body *").forEach(e => {
        if (!e.closest("table") && e.getBoundingClientRect().right > innerWidthOf + 0.5) far.push(e.tagName);
      });
      const image = inside.querySelector("img").width;
      document.title = JSON.stringify([inside.documentElement.scrollWidth, far, image]);
    });
    </script>""".replace("innerWidthOf", str(width))
    shutil.copy(report, tmp_path / "report.html")
    outer = tmp_path / "outer.html"
    frame = f'<iframe src="report.html" style="border:0;width:{width}px;height:800px"></iframe>'
    outer.write_text(f"<!DOCTYPE html><html><head><title>x</title></head><body>{frame}{probe}</body></html>")
    done = browse(outer, "--dump-dom", "--allow-file-access-from-files", "--window-size=1400,900")
    across, far, image = json.loads(re.search("<title>(.*?)</title>", done.stdout)[1])  # type: ignore[index]
    assert across <= width
    assert far == []
    assert image >= 320, "a panel stays legible"
