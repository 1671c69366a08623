"""Specifications and expressions of any content: one line that says what is wrong, before anything is made."""

import pytest

from .conftest import SPEC

LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in zip("abcdefgh", "bcdefghi")
)
SPECS: dict[str, bytes] = {
    "empty": b"",
    "number": b"7",
    "list": b"[1]",
    "tab": b"a:\n\t- b",
    "not UTF-8": b"datasets: [\xff]",
    "UTF-16": SPEC.encode("utf-16"),
    "null byte": b"datasets: [a\0]",
    "recursive": b"datasets: &a [*a]\nalgorithms: [ERM]",
    "recursive object": b"&a {datasets: *a}",
    "billion laughs": LAUGHS.encode(),
    "deep": b"[" * 5000 + b"]" * 5000,
    "date": SPEC.encode() + b"hparams: {lr: 2020-01-01}",
    "no date": SPEC.encode() + b"hparams: {lr: 2020-99-99}",
    "bytes": SPEC.encode() + b"hparams: {lr: !!binary aGVsbG8=}",
    "set": SPEC.encode() + b"hparams: {lr: !!set {a, b}}",
    "object": b"datasets: !!python/object/apply:os.mkdir [canary]",
    "module": b"datasets: !!python/module:os",
    "10**9 seeds": SPEC.encode().replace(b"hparams_seeds: 3", b"hparams_seeds: 1000000000"),
    "10**30 seeds": SPEC.encode().replace(b"hparams_seeds: 3", b"hparams_seeds: 1" + b"0" * 30),
    "5,000 digits": SPEC.encode().replace(b"steps: 21", b"steps: " + b"9" * 5000),
    "seeds times seeds": SPEC.encode().replace(b"hparams_seeds: 3", b"hparams_seeds: 90000\ntrial_seeds: 90000"),
    "grid of millions": SPEC.encode()
    + f"nac: {{grid: {{alpha: {[*range(1, 301)]}, bins: {[*range(2, 302)]}, fill: {[*range(1, 301)]}}}}}".encode(),
    "infinite steps": SPEC.encode().replace(b"21", b".inf"),
    "NaN": SPEC.encode() + b"nac: {alpha: .nan}",
    "infinite alpha": SPEC.encode() + b"nac: {alpha: .inf}",
    "negative steps": SPEC.encode().replace(b"21", b"-1"),
    "steps as text": SPEC.encode().replace(b"21", b"'21'"),
    "key of a list": SPEC.encode() + b"? [a, b]\n: 1",
    "key of a number": SPEC.encode() + b"7: 1",
    "unknown key": SPEC.encode() + b"hparam_seeds: 3",
    "escape sequence": b'"\\e[2J": 1',
    "data set with a path": SPEC.encode().replace(b"RotatedDigits", b"../../x"),
    "algorithm with a newline": SPEC.encode().replace(b"ERM", b'"ERM\\nrm"'),
    "partition of two lines": SPEC.encode() + b'resources: {partition: "gpu\\n#SBATCH --wrap=canary"}',
    "account of two words": SPEC.encode() + b"resources: {account: a b}",
    "time with a command": SPEC.encode() + b'resources: {time: "1:00\\ntouch canary"}',
    "memory with an escape": SPEC.encode() + b'resources: {mem: "\\e16G"}',
    "memory as a list": SPEC.encode() + b"resources: {mem: [16G]}",
    "criterion unknown": SPEC.encode() + b"criteria: [os.system]",
    "keep unknown": SPEC.encode() + b"keep: ['best:__import__']",
}
EXPRESSIONS = {
    "nested": "rank_mean(" * 5000 + "a" + ")" * 5000,
    "long": "rank_mean(" + "nac_me, " * 100_000 + "val_acc)",
    "call": "__import__('os').mkdir('canary')",
    "argument with a call": "rank_mean(nac_me, __import__('os').mkdir('canary'))",
    "lambda": "(lambda: 0)()",
    "open": "rank_mean(nac_me",
    "closed": "nac_me)",
    "one": "rank_mean(nac_me)",
    "twice the same": "rank_mean(nac_me, nac_me)",
    "empty": "",
    "commas": ",,,",
    "null": "nac_me\0",
    "newline": "nac_me\nval_acc",
    "escape sequence": "\x1b[2J",
    "half a character": "\udcff",
    "digits": "9" * 5000,
    "keyword": "rank_mean(a=nac_me, b=val_acc)",
    "stars": "rank_mean(*nac_me)",
    "dunder": "rank_mean.__globals__(a, b)",
    "variant": "nac_me_" + "a" * 10_000,
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("content", SPECS.values(), ids=SPECS)
def test_a_specification_of_any_content_is_answered_in_one_line(content, place, nacme):
    place.spec.write_bytes(content)
    for command in (["plan"], ["status"], ["run", "--jobs", "1"]):
        answer = nacme("sweep", *command, place.spec, "--output_dir", place.sweep.parent / "new")
        assert answer.is_clean(command)
        assert answer.code == 1, (command, answer.err)
        assert len(answer.err.splitlines()) == 1
        assert len(answer.err) < 2000
    assert not (place.sweep.parent / "new").exists()
    assert not list(place.sweep.parent.parent.glob("here/*"))


@pytest.mark.timeout(60)
@pytest.mark.parametrize("kind", ["directory", "pipe", "dangling", "loop", "device", "nowhere", "long"])
def test_a_specification_that_is_no_file(kind, place, nacme):
    from .damage import unusual

    path = place.spec.with_name("other.yaml" if kind != "long" else "x" * 5000)
    if kind not in ("nowhere", "long"):
        unusual(kind, path.name)(path.parent, place.outside)
    answer = nacme("sweep", "plan", path)
    assert answer.is_clean()
    assert answer.code == 1


@pytest.mark.timeout(60)
@pytest.mark.parametrize("text", EXPRESSIONS.values(), ids=EXPRESSIONS)
def test_a_criterion_of_any_text_is_answered_in_one_line(text, place, nacme):
    for argv in (
        ["select", place.sweep, "--criterion", text],
        ["correlate", place.sweep, "--criterion", text],
        ["prune", place.sweep, "--keep", f"best:{text}"],
    ):
        answer = nacme(*argv)
        assert answer.is_clean(argv[0])
        assert answer.code in (1, 2), (argv[0], answer.err)
        assert len(answer.err) < 3000
    assert not list(place.sweep.parent.parent.glob("here/*"))


CRITERIA = {
    "raises": "raise ValueError('no\\nluck')",
    "exits": "raise SystemExit",
    "gives a number": "return 1.0",
    "gives text": "return 'high'",
    "gives too few": "return df['step'][:-1]",
    "gives a table": "return df",
    "gives nothing": "return None",
    "gives lists": "return [[1.0]] * len(df)",
    "gives text for rows": "return ['x'] * len(df)",
    "asks for a column": "return df['nowhere']",
    "recurses": "return mine(df)",
}


@pytest.mark.timeout(60)
@pytest.mark.parametrize("body", CRITERIA.values(), ids=CRITERIA)
def test_a_criterion_of_the_users_that_fails_is_named_with_its_file(body, place, nacme, monkeypatch):
    from nacme.criteria import registry

    monkeypatch.setattr(registry, "_REGISTRY", dict(registry.all_criteria()))
    module = place.spec.with_name("own.py")
    module.write_text(
        "from nacme.criteria.registry import criterion\n\n"
        "@criterion(higher_is_better=True, sees='ind', needs=['records'], cost='none', source='here')\n"
        f"def mine(df):\n    'Mine.'\n    {body}\n"
    )
    answer = nacme("select", place.sweep, "--criteria_module", module, "--criterion", "mine")
    if answer.code == 2:  # by its older spelling
        answer = nacme("select", place.sweep, "--criteria-module", module, "--criterion", "mine")
    if "SystemExit" in body:
        assert answer.code == 0
        return
    assert answer.is_clean()
    assert answer.code == 1
    assert "criterion 'mine' (" in answer.err
    assert "own.py" in answer.err
