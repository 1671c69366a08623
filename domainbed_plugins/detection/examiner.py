"""Running detectors on one checkpoint: its network, its data, and what each detector makes of them."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from pytorch_ood.detector import EnergyBased, MaxSoftmax, ViM
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Subset

from domainbed_plugins.backends import find as backends
from domainbed_plugins.backends.arguments import check_names
from domainbed_plugins.data.decoded import ValidationData, default_workers
from domainbed_plugins.data.generators import seed_everything
from domainbed_plugins.data.splits import EVAL_BATCH_SIZE, make_dataset
from domainbed_plugins.detect import COVARIATE, DETECTORS, Detection, DetectOptions
from domainbed_plugins.machine import free_memory
from domainbed_plugins.runs.checkpoints import build_algorithm, load_checkpoint, load_weights
from domainbed_plugins.runs.saved import Job
from nacme.bootstrap import generator
from nacme.errors import ConfigError, LayerError, NacmeError, NacmeWarning
from nacme.ood.base import Extract, NetworkDetector
from nacme.ood.evaluation import bootstrap_intervals, detection_metrics
from nacme.ood.line import LINe
from nacme.ood.nacue import NACUE
from nacme.ood.nap import NAP
from nacme.ood.outliers import resized
from nacme.ood.score_plots import INSIDE
from nacme.ood.tuning import tune
from nacme.taps import INPUT, Taps, untouched

Batch = tuple[Tensor, Tensor]
_OURS: dict[str, Callable[[nn.Module], NetworkDetector]] = {"nacue": NACUE, "line": LINe, "nap": NAP}


class Examiner:
    """Examines checkpoint after checkpoint and keeps the data that the next one can use.

    Parameters
    ----------
    data_dir : str or None
        As DomainBed's ``--data_dir``.
    options : DetectOptions
    domainbed : str, optional
        A DomainBed clone.
    """

    def __init__(self, data_dir: str | None, options: DetectOptions, domainbed: str | None) -> None:
        self._data_dir = data_dir
        self._options = options
        self._domainbed = domainbed
        self._opened: tuple[str, ValidationData] | None = None
        self._other: dict[tuple[int, ...], list[Tensor]] = {}

    def examine(self, job: Job) -> Detection:
        """Fit each detector on a checkpoint's training splits and tell its validation splits from the rest.

        Parameters
        ----------
        job : Job

        Returns
        -------
        Detection

        Raises
        ------
        NacmeError
            If the data or the checkpoint cannot be read, or a detector that was named does not suit the network.
        """
        options, args = self._options, job.args
        testbed = backends.find(args["dataset"], self._domainbed)
        check_names(testbed, args)
        state = load_checkpoint(job.checkpoint)["model_dict"]
        if self._opened is None or self._opened[0] != testbed.name:
            data = ValidationData(testbed, self._data_dir, free_memory() // 2, default_workers())
            self._opened = testbed.name, data
        data = self._opened[1]
        dataset = data.open(args, job.hparams)
        inside = [env for env in range(len(dataset)) if env not in args["test_envs"]]
        algorithm = build_algorithm(
            testbed, args["algorithm"], dataset.input_shape, dataset.num_classes, len(inside), job.hparams
        )
        load_weights(algorithm, state, job.checkpoint)
        algorithm.to("cuda" if torch.cuda.is_available() else "cpu")
        # some algorithms draw random numbers to predict; so detecting again gives the same
        torch.manual_seed(testbed.misc.seed_hash(args["seed"], job.step))

        parts: dict[str, list[Iterable[Any]]] = {
            INSIDE: [data.loader(f"env{env}_out") for env in inside],
            COVARIATE: [data.loader(f"env{env}_{kind}") for env in args["test_envs"] for kind in ("in", "out")],
        }
        if options.ood is not None:
            parts[options.ood] = [self._other_data(tuple(dataset.input_shape), job)]
        fit = balanced(
            [data.loader(f"env{env}_in") for env in inside],
            options.fit_samples,
            np.random.default_rng([options.seed, args["trial_seed"]]),
        )
        scores, settings = self._score(algorithm, fit, parts)
        rows = [
            {
                "run": job.directory.resolve().name,
                "dataset": args["dataset"],
                "algorithm": args["algorithm"],
                "test_envs": ",".join(map(str, args["test_envs"])),
                "step": job.step,
                "detector": name,
                "shift": COVARIATE if shift == COVARIATE else "semantic",
                "ood": ",".join(f"env{env}" for env in args["test_envs"]) if shift == COVARIATE else shift,
                "n_in": len(of[INSIDE]),
                "n_out": len(of[shift]),
                **self._figures(of[INSIDE], of[shift], shift),
            }
            for name, of in scores.items()
            for shift in parts
            if shift != INSIDE
        ]
        return Detection(job, rows, scores, settings)

    def _figures(self, inside: Any, outside: Any, shift: str) -> dict[str, float]:
        found: dict[str, float] = {}
        point = detection_metrics(inside, outside)
        # the same resamples for each detector
        intervals = bootstrap_intervals(
            inside, outside, generator(self._options.seed, shift), self._options.n_boot
        )
        for name, value in point.items():
            low, high = intervals[name]
            found |= {name: value, f"{name}_low": low, f"{name}_high": high}
        return found

    def _score(
        self, algorithm: nn.Module, fit: list[Batch], parts: dict[str, list[Iterable[Any]]]
    ) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
        """Fit what suits the network, then read each part once for all detectors."""
        device = next(algorithm.parameters()).device
        # seen once, so that the network need not run for each detector alone
        has_head = _has_head(algorithm, fit[0][0].to(device))
        members: dict[str, _Member] = {}
        refused: dict[str, str] = {}
        for name in self._options.detectors or DETECTORS:
            try:
                members[name] = _member(name, algorithm, fit, self._options)
            except LayerError as error:
                if self._options.detectors:
                    raise
                refused[name] = str(error)
        for reason in dict.fromkeys(refused.values()):
            names = ", ".join(name for name, why in refused.items() if why == reason)
            warnings.warn(f"left out: {names}: {reason}", NacmeWarning, stacklevel=2)
        if not members:
            raise ConfigError("no detector suits this network; see the warnings above")
        scores: dict[str, dict[str, Any]] = {name: {} for name in members}
        for part, loaders in parts.items():
            found: dict[str, list[Tensor]] = {name: [] for name in members}
            for x in _images(loaders):
                x = x.to(device)
                readings = _read(algorithm, x, has_head)
                for name, member in members.items():
                    found[name].append(member.score(x, readings).detach().double().cpu())
            for name, values in found.items():
                whole = torch.cat(values)
                if whole.isnan().any():
                    raise NacmeError(f"{name} scores NaN: the network's outputs are not finite")
                scores[name][part] = whole.numpy()
        return scores, {name: member.settings for name, member in members.items()}

    def _other_data(self, shape: tuple[int, ...], job: Job) -> list[Tensor]:
        """Draw images of another data set, made to fit the network."""
        if shape in self._other:
            return self._other[shape]
        options = self._options
        assert options.ood is not None
        testbed = backends.find(options.ood, self._domainbed)
        if options.ood == job.args["dataset"]:
            raise ConfigError(f"--ood {options.ood} is what {job.directory} was trained on; name another data set")
        args = {**job.args, "dataset": options.ood, "test_envs": [], "data_dir": self._data_dir}
        args["data_dir"] = options.ood_data_dir or self._data_dir
        check_names(testbed, args)
        seed_everything(options.seed)
        hparams = {
            **testbed.hparams_registry.default_hparams("ERM", options.ood),
            "data_augmentation": False,
        }
        try:
            environments = list(make_dataset(testbed, args, hparams))
        except ConfigError as error:
            raise ConfigError(str(error).replace("--data_dir", "--ood_data_dir", 1)) from error
        whole: ConcatDataset[Any] = ConcatDataset(environments)
        order = np.random.default_rng(options.seed).permutation(len(whole))[: options.ood_samples]
        loader = DataLoader(Subset(whole, order.tolist()), EVAL_BATCH_SIZE)
        self._other[shape] = [resized(x, shape) for x, _ in loader]
        return self._other[shape]


def balanced(loaders: Sequence[Iterable[Batch]], count: int, rng: np.random.Generator) -> list[Batch]:
    """Draw training samples, as many of each class as there are, in an order that mixes classes.

    Parameters
    ----------
    loaders : sequence of iterable of (Tensor, Tensor)
        The splits to draw from.
    count : int
        How many at most.
    rng : numpy.random.Generator

    Returns
    -------
    list of (Tensor, Tensor)
        In batches. A class with fewer samples than its share gives them all, and the others more.
    """
    labels = torch.cat([y for loader in loaders for _, y in loader]).tolist()
    seen: Counter[int] = Counter()
    ranks: dict[int, tuple[int, int]] = {}
    for index in rng.permutation(len(labels)).tolist():
        ranks[index] = (seen[labels[index]], len(ranks))
        seen[labels[index]] += 1
    # every class's first sample, then every class's second, ...
    chosen = sorted(ranks, key=lambda index: ranks[index])[:count]
    wanted = set(chosen)
    found: dict[int, Batch] = {}
    position = 0
    for loader in loaders:
        for x, y in loader:
            for i in range(len(x)):
                if position + i in wanted:
                    found[position + i] = x[i], y[i]
            position += len(x)
    pairs = [found[index] for index in chosen]
    return [
        (torch.stack([x for x, _ in some]), torch.stack([y for _, y in some]))
        for some in (pairs[i : i + EVAL_BATCH_SIZE] for i in range(0, len(pairs), EVAL_BATCH_SIZE))
    ]


@dataclass(frozen=True)
class _Member:
    """One fitted detector: how it scores a batch of images, given what `_read` read of them, and its settings."""

    score: Callable[[Tensor, Extract], Tensor]
    settings: dict[str, Any]


def _member(name: str, algorithm: nn.Module, fit: list[Batch], options: DetectOptions) -> _Member:
    if name == "msp":
        return _Member(lambda _, readings: MaxSoftmax.score(readings["logits"]), {})
    if name == "energy":
        return _Member(lambda _, readings: EnergyBased.score(readings["logits"]), {})
    if name == "vim":
        return _vim(algorithm, fit)
    detector = _OURS[name](algorithm)
    settings: dict[str, Any] = {}
    if options.search != "none":
        # half of each batch to fit, the other to make outliers of: no validation image is seen
        halves = [(x[::2], y[::2]) for x, y in fit], [(x[1::2], y[1::2]) for x, y in fit]
        settings["search_auroc"] = tune(detector, *halves, outliers=options.search, seed=options.seed).auroc
    detector.fit(fit)
    settings |= {key: getattr(detector, key) for key in detector.hyperparameter_space}
    if name == "nap":  # looks at another layer than the one that the others share
        return _Member(lambda x, _: detector.predict(x), settings)
    return _Member(lambda _, readings: detector.score(readings), settings)


def _vim(algorithm: nn.Module, fit: list[Batch]) -> _Member:
    device = next(algorithm.parameters()).device
    readings = [_read(algorithm, x.to(device), has_head=True) for x, _ in fit]
    features = torch.cat([one["features"] for one in readings])
    (name,) = (key.removeprefix("activation ") for key in readings[0] if key.startswith("activation "))
    head = algorithm.get_submodule(name.removesuffix(INPUT))
    assert isinstance(head, nn.Linear)
    # the authors take 512 or 1,000 of the 768 or more features of large networks; a half is theirs in small
    size = min(features.shape) // 2
    bias = head.bias if head.bias is not None else head.weight.new_zeros(len(head.weight))
    detector = ViM(None, d=size, w=head.weight, b=bias).to(device)
    detector.fit_features(features, torch.cat([y for _, y in fit]))
    return _Member(lambda _, seen: detector.predict_features(seen["features"]), {"d": size})


def _has_head(algorithm: nn.Module, x: Tensor) -> bool:
    """Whether a linear layer gives the logits."""
    try:
        _read(algorithm, x[:1], has_head=True)
    except LayerError:
        return False
    return True


def _read(algorithm: nn.Module, x: Tensor, has_head: bool) -> Extract:
    """Logits of a batch; where a linear head gives them, its input, and what `NACUE` and `LINe` read there."""
    with untouched(algorithm), torch.no_grad():
        if not has_head:
            logits: Tensor = algorithm.predict(x)  # type: ignore[operator]
            return {"logits": logits}
        with Taps(algorithm) as taps:
            reading = taps.read(x)
    ((name, features),) = reading.activations.items()
    return {
        "logits": reading.logits,
        "features": features,
        f"activation {name}": features,
        f"gradient {name}": reading.gradients[name],
    }


def _images(loaders: Iterable[Iterable[Any]]) -> Iterator[Tensor]:
    for loader in loaders:
        for batch in loader:
            yield batch if isinstance(batch, Tensor) else batch[0]
