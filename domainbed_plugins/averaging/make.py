"""Making one candidate: its weights or its members, and its record."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from domainbed_plugins.averaging.bench import Bench
from domainbed_plugins.averaging.members import Group, Member
from domainbed_plugins.averaging.weights import MeanState
from domainbed_plugins.runs.checkpoints import load_checkpoint
from domainbed_plugins.runs.saved import check_step
from nacme.errors import SweepError


@dataclass(frozen=True)
class Candidate:
    """What is to be made.

    Attributes
    ----------
    kind : {"ensemble", "soup", "average", "swad"}
    variant : {"uniform", "greedy"}, optional
        Of a soup.
    members : str
        Which checkpoint of each run: see `domainbed_plugins.averaging.members.MEMBERS`.
    group : Group
    """

    kind: str
    variant: str | None
    members: str
    group: Group

    @property
    def name(self) -> str:
        """For the column ``candidate``: such as ``soup:greedy`` or ``ensemble:sma``."""
        parts = [self.kind, self.variant, None if self.members == "best" else self.members]
        return ":".join(part for part in parts if part)


def make(candidate: Candidate, bench: Bench) -> dict[str, Any]:
    """Make a candidate and measure it.

    Parameters
    ----------
    candidate : Candidate
    bench : Bench

    Returns
    -------
    dict
        Its record: keys of a record of DomainBed, ``candidate``, ``networks`` and ``members``.

    Raises
    ------
    NacmeError
        If a member cannot be read, members do not fit together, or the data cannot be read.
    """
    members = candidate.group.members
    first = _content(members[0])
    args, hparams = first["args"], first["model_hparams"]
    bench.open(args, hparams)
    if bench.drawn_by_seed and len({_content(member)["args"]["seed"] for member in members}) > 1:
        raise SweepError(
            f"{args['dataset']} draws the images of its environments by a run's seed, so that each member was "
            "trained on images that others are validated and tested on; give the runs one --seed"
        )
    if candidate.kind == "ensemble":
        measured, networks = bench.ensemble(_networks(members, bench)), len(members)
    else:
        if candidate.variant == "greedy":
            members, mean = _greedy(members, bench, hparams)
        else:
            mean = mean_of(members)
        network = bench.network(hparams, mean.state(), candidate.name)
        if len(members) > 1:
            bench.renew(network)
        measured, networks = bench.record(network), 1
    several = len({member.run for member in candidate.group.members}) > 1
    seeds = {"hparams_seed": -1, "seed": -1} if several else {}
    return {
        **{key: _finite(value) for key, value in measured.items()},
        "step": max(member.step for member in members),
        "candidate": candidate.name,
        "networks": networks,
        "members": [
            {
                "run": member.run,
                "step": member.step,
                "candidate": member.candidate,
                "checkpoint": member.checkpoint.name,
                "weight": 1 / len(members),
            }
            for member in members
        ],
        "args": {**args, **seeds, "output_dir": None, "data_dir": None},
        "hparams": hparams,
    }


def mean_of(members: Sequence[Member]) -> MeanState:
    """Average the weights of all members.

    Raises
    ------
    CheckpointError
        If one cannot be read, or they are of different architectures.
    """
    mean = MeanState()
    for member in members:
        mean = mean.added(_state(member))
    return mean


def _greedy(
    members: Sequence[Member], bench: Bench, hparams: Mapping[str, Any]
) -> tuple[tuple[Member, ...], MeanState]:
    """Take members in falling order as long as the mean's validation accuracy does not fall.

    Source: Wortsman et al. 2022, arXiv 2203.05482, recipe 1; "restricted" in DiWA, arXiv 2205.09739.
    """
    taken: list[Member] = []
    best, mean = -1.0, MeanState()
    for member in members:
        tried = mean.added(_state(member))
        network = bench.network(hparams, tried.state(), str(member.checkpoint))
        if taken:
            bench.renew(network)
        accuracy = bench.val_acc(network)
        if accuracy >= best:
            best, mean = accuracy, tried
            taken.append(member)
    return tuple(taken), mean


def _networks(members: Sequence[Member], bench: Bench) -> Iterator[Any]:
    for member in members:
        content = _content(member)
        yield bench.network(content["model_hparams"], content["model_dict"], str(member.checkpoint))


def _state(member: Member) -> Mapping[str, Tensor]:
    state: Mapping[str, Tensor] = _content(member)["model_dict"]
    return state


def _content(member: Member) -> dict[str, Any]:
    content = load_checkpoint(member.checkpoint)
    check_step(content, member.step, member.checkpoint)
    return content


def _finite(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
