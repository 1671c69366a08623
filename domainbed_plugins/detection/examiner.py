"""Running detectors on one checkpoint: its network, its data, and what each detector makes of them."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Subset

from domainbed_plugins.backends import find as backends
from domainbed_plugins.backends.arguments import check_names
from domainbed_plugins.data.decoded import ValidationData
from domainbed_plugins.data.generators import seed_everything
from domainbed_plugins.data.splits import EVAL_BATCH_SIZE, make_dataset
from domainbed_plugins.detection.fit_samples import Batch, balanced
from domainbed_plugins.detection.members import Member, finds_head, fitted, read
from domainbed_plugins.detection.options import COVARIATE, DETECTORS, Detection, DetectOptions
from domainbed_plugins.machine import default_workers, free_memory
from domainbed_plugins.runs.checkpoints import build_algorithm, load_checkpoint, load_weights
from domainbed_plugins.runs.saved import Job, check_step
from nacme.errors import ConfigError, LayerError, NacmeError, NacmeWarning
from nacme.inference.bootstrap import generator
from nacme.ood.evaluation import bootstrap_intervals, detection_metrics
from nacme.ood.outliers import resized
from nacme.ood.score_plots import INSIDE


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
        content = load_checkpoint(job.checkpoint)
        check_step(content, job.step, job.checkpoint)
        if self._opened is None or self._opened[0] != testbed.name:
            data = ValidationData(testbed, self._data_dir, free_memory() // 2, default_workers())
            self._opened = testbed.name, data
        data = self._opened[1]
        dataset = data.open(args, job.hparams)
        inside = [env for env in range(len(dataset)) if env not in args["test_envs"]]
        algorithm = build_algorithm(
            testbed, args["algorithm"], dataset.input_shape, dataset.num_classes, len(inside), job.hparams
        )
        load_weights(algorithm, content["model_dict"], job.checkpoint)
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
        has_head = finds_head(algorithm, fit[0][0].to(device))
        members: dict[str, Member] = {}
        refused: dict[str, str] = {}
        for name in self._options.detectors or DETECTORS:
            try:
                members[name] = fitted(name, algorithm, fit, self._options)
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
                readings = read(algorithm, x, has_head)
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


def _images(loaders: Iterable[Iterable[Any]]) -> Iterator[Tensor]:
    for loader in loaders:
        for batch in loader:
            yield batch if isinstance(batch, Tensor) else batch[0]
