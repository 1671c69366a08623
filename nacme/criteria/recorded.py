"""Which criteria a recording makes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nacme.criteria.registry import all_criteria, get_criterion
from nacme.errors import ConfigError

#: Recorded at every checkpoint whatever is asked for.
ALWAYS = ("nac_me", "val_loss")


def chosen_criteria(names: Sequence[str] | None, with_target: bool) -> list[str]:
    """Name the criteria to record that the network's outputs decide.

    Parameters
    ----------
    names : sequence of str, optional
        What is asked for. None: all that take no further pass.
    with_target : bool
        Whether there is unlabelled target data.

    Returns
    -------
    list of str
        Without those of `ALWAYS`.

    Raises
    ------
    ConfigError
        If one needs unlabelled target data, and there is none.
    """
    if names is None:
        seen = {"ind", "target_unlabeled"} if with_target else {"ind"}
        return [
            c.name
            for c in all_criteria().values()
            if c.is_recorded and c.sees in seen and not c.optional and c.name not in ALWAYS
        ]
    chosen = [get_criterion(name) for name in names]
    blind = [c.name for c in chosen if c.sees == "target_unlabeled" and not with_target]
    if blind:
        raise ConfigError(
            f"criterion {blind[0]!r} looks at unlabelled target data; record it with --target_unlabeled"
        )
    return [c.name for c in chosen if c.is_recorded and c.name not in ALWAYS]


#: Criteria that are coverage with other settings. Alone, activation and gradient are on scales of their own.
ABLATIONS: dict[str, dict[str, Any]] = {
    "nac_me_auto": {"alpha": "auto"},
    "nac_me_all": {"correct_only": False},
    "nac_activation": {"alpha": "auto", "quantity": "activation"},
    "nac_gradient": {"alpha": "auto", "quantity": "gradient"},
}
