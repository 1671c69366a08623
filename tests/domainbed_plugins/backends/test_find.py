"""Finding a testbed: what is missing is named, with its remedy."""

import importlib.util
import subprocess
import sys

import pytest

from domainbed_plugins.backends import find as backends
from domainbed_plugins.interface import EXPECTED
from nacme.errors import ConfigError


def test_embedded_data_sets_need_no_clone(monkeypatch):
    monkeypatch.setenv("DOMAINBED_ROOT", "/nowhere")
    assert backends.find("RotatedDigits").name == "embedded"


@pytest.fixture
def without_domainbed(monkeypatch):
    monkeypatch.delenv("DOMAINBED_ROOT", raising=False)
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "domainbed" else found(name))


def test_no_clone(without_domainbed):
    with pytest.raises(ConfigError, match=r"git clone .*DOMAINBED_ROOT.*nacme\[domainbed\]"):
        backends.domainbed()
    with pytest.raises(ConfigError, match="'RotatedDigit' is not embedded; did you mean 'RotatedDigits'"):
        backends.find("RotatedDigit")


def test_a_folder_that_is_no_clone(tmp_path):
    with pytest.raises(ConfigError, match=r"no DomainBed clone.*git clone"):
        backends.domainbed(tmp_path)


def in_a_process_of_its_own(root):
    """Load a clone where no other was loaded; return the exit code and standard error."""
    code = (
        "import sys\nfrom nacme.output import report_errors\nfrom domainbed_plugins.backends import find\n"
        "report_errors(lambda: find.domainbed(sys.argv[1]))"
    )
    done = subprocess.run([sys.executable, "-c", code, str(root)], capture_output=True, text=True, check=False)
    return done.returncode, done.stderr


def clone(tmp_path, lacking=()):
    """Make a package with the functions that the runner calls, less some."""
    for module, functions in EXPECTED.items():
        path = tmp_path / "domainbed" / f"{module.replace('.', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        (path.parent / "__init__.py").touch()
        path.write_text("".join(f"{name} = []\n" for name in functions if name not in lacking))
    return tmp_path


@pytest.mark.parametrize(
    ("function", "module"),
    [("num_environments", "datasets"), ("split_dataset", "lib.misc"), ("Tee", "lib.misc")],
)
def test_an_expected_function_is_missing(function, module, tmp_path):
    code, err = in_a_process_of_its_own(clone(tmp_path, {function}))
    assert code == 1
    assert err == (f"nacme: domainbed.{module} has no {function!r}; update the clone to a commit that has it\n")


def test_a_package_that_domainbed_needs_is_missing(tmp_path):
    root = clone(tmp_path)
    (root / "domainbed" / "datasets.py").write_text("import no_such_package\n")
    code, err = in_a_process_of_its_own(root)
    assert code == 1
    assert err == (
        "nacme: domainbed.datasets cannot be imported (No module named 'no_such_package'); "
        "pip install 'nacme[domainbed]'\n"
    )


@pytest.mark.domainbed
def test_the_commit_in_use_is_known(domainbed):
    assert len(domainbed.version) == 40
    assert str(domainbed) == f"domainbed {domainbed.version}"
