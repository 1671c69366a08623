"""The loaders that a recorder is given: by name, and none of a held-out environment where labels are looked at."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from nacme.errors import ConfigError

#: DomainBed's names of the splits of an environment.
_SPLIT = re.compile(r"env(\d+)(?:_.*)?")
#: Numbers of environments; in a list of them, or in a list of lists as SWAD's ``args.test_envs`` is.
TestEnvs = Sequence["int | Sequence[int]"]


def by_name(loaders: Mapping[str, Iterable[Any]] | Iterable[Any]) -> dict[str, Iterable[Any]]:
    """Name loaders; a single one is called ``val``."""
    return dict(loaders) if isinstance(loaders, Mapping) else {"val": loaders}


def refuse_test_envs(names: Iterable[str], test_envs: TestEnvs) -> None:
    """Refuse splits of held-out environments.

    Parameters
    ----------
    names : iterable of str
        Of splits, as in ``env0_out``.
    test_envs : sequence of int, or of sequences of int

    Raises
    ------
    ConfigError
        If a split is of a test environment, or cannot be told to be of none.
    """
    held_out: set[int] = set()
    for env in test_envs:
        held_out.update([env] if isinstance(env, int) else env)
    if not held_out:
        return
    for name in names:
        found = _SPLIT.fullmatch(name)
        if found is None:
            raise ConfigError(
                f"loader {name!r} does not say which environment it is of, so that test_envs={sorted(held_out)} "
                "cannot be kept out; name it as in env1_out"
            )
        if int(found[1]) in held_out:
            raise ConfigError(
                f"loader {name!r} is of test environment {found[1]}, which selection must not look at; leave it "
                "out, or give it as one of target_loaders if its labels are not to be used"
            )
