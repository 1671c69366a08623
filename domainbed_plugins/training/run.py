"""Setting up a run as DomainBed does: its arguments, splits and output directory; then training it.

Source: ``domainbed/scripts/train.py``.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL
import torch
import torchvision

import nacme
from domainbed_plugins.backends import networks
from domainbed_plugins.backends.arguments import check_hparams, check_names, make_hparams
from domainbed_plugins.data.generators import seed_everything
from domainbed_plugins.data.splits import make_splits
from domainbed_plugins.interface import Testbed
from domainbed_plugins.recording.options import as_begun, begun_layers
from domainbed_plugins.runs import files as run_files
from domainbed_plugins.runs import paths
from domainbed_plugins.runs.keep import check_keep
from domainbed_plugins.runs.lock import locked
from domainbed_plugins.training import head
from domainbed_plugins.training.averages import check_average
from domainbed_plugins.training.loop import Training
from domainbed_plugins.training.options import TrainOptions, check_finished, check_same
from nacme.errors import ConfigError, NacmeError
from nacme.system import files


def train(testbed: Testbed, args: Mapping[str, Any], options: TrainOptions | None = None) -> None:
    """Train one run into its output directory; one that was interrupted goes on where its state was saved.

    Parameters
    ----------
    testbed : Testbed
    args : mapping
        DomainBed's arguments, by flag name.
    options : TrainOptions, optional

    Raises
    ------
    ConfigError
        For arguments that cannot work; nothing has been written then.
    BusyError
        If another process is training the run.
    InterruptedRun
        After SIGTERM or SIGUSR1.
    """
    args, options = dict(args), options or TrainOptions()
    options.load_criteria()
    check_names(testbed, args)
    check_keep(options.keep, skip_model_save=args["skip_model_save"])
    n_steps = args["steps"] or testbed.datasets.get_dataset_class(args["dataset"]).N_STEPS
    check_average(options.average, options.average_from, options.average_decay, n_steps)
    args["save_model_every_checkpoint"] = args["save_model_every_checkpoint"] or bool(options.keep)
    hparams = make_hparams(testbed, args)
    networks.check(hparams, testbed.name)
    head.check(hparams)
    output = Path(args["output_dir"])
    if (output / paths.DONE).exists():
        check_finished(output, args, options)
        print(f"{output} is done; nothing to train", file=sys.stderr)
        return
    if not run_files.has_records(output):
        check_hparams(testbed, args)
    _open_output(output)
    with locked(output) as lock:
        if (output / paths.DONE).exists():  # by whoever held the lock
            return
        try:
            with _teed(testbed, output):
                _begin(testbed, args, hparams, options, output).run(lock)
        except OSError as error:
            if not run_files.is_disk_full(error):
                raise
            raise NacmeError(
                f"{output}: {error.strerror}; free space, then start the run again: it continues"
            ) from error


def _begin(
    testbed: Testbed, args: dict[str, Any], hparams: dict[str, Any], options: TrainOptions, output: Path
) -> Training:
    """Make a run ready for its first step, or for the one after its saved state."""
    state = run_files.load_state(output)
    if state:
        settings = state["settings"] = _settings_begun(output, state)
        options = as_begun(options, json.loads(settings["nac"])["layers"])
    _check_resumable(output, state, args, options)
    (output / paths.FAILED).unlink(missing_ok=True)
    files.clean(output)
    _describe(testbed, args, hparams)
    seed_everything(args["seed"])
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False
    splits = make_splits(testbed, args, hparams)
    training = Training(testbed, args, hparams, splits, options, output, state)
    if state:
        run_files.rewind_records(output, state["records"], [state["line"]] if state["line"] is not None else [])
        if options.average:
            averages = state["averages"]
            run_files.rewind_records(output, averages["records"], averages["lines"], paths.AVERAGES)
        print(f"Resumed before step {training.step} of {training.n_steps}")
    return training


def _open_output(output: Path) -> None:
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name in (paths.OUT, paths.ERR):  # through no link
            os.close(files.open_regular(output / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT))
    except OSError as error:
        raise ConfigError(f"--output_dir {output} cannot be written: {error.strerror}; choose another") from error


def _settings_begun(output: Path, state: Mapping[str, Any]) -> dict[str, str]:
    """Read the settings of an interrupted run, with what its layers are called today."""
    settings = dict(state["settings"])
    nac = json.loads(settings["nac"])
    record = json.loads(state["line"]) if state["line"] else run_files.first_record(output)
    first = record.get("nac") or {}
    nac["layers"] = begun_layers(nac["layers"], first.get("layers", ()))
    settings["nac"] = json.dumps(nac, sort_keys=True)
    return settings


def _check_resumable(
    output: Path, state: Mapping[str, Any] | None, args: Mapping[str, Any], options: TrainOptions
) -> None:
    """Refuse to go on with a run that was begun otherwise, or by another program."""
    if state:
        check_same(output, state, args, options)
    elif run_files.has_records(output):
        raise ConfigError(
            f"{output} holds records but no state to go on from, as a run that DomainBed started; "
            "delete it to start anew, or choose another --output_dir"
        )


@contextlib.contextmanager
def _teed(testbed: Testbed, output: Path) -> Iterator[None]:
    """Copy standard output and error into ``out.txt`` and ``err.txt``."""
    with contextlib.ExitStack() as stack:
        # DomainBed's tee writes to the standard output of its birth, and so would the one for errors
        streams = {
            "out": (sys.stdout, contextlib.redirect_stdout),
            "err": (sys.stderr, contextlib.redirect_stderr),
        }
        for name, (stream, redirect) in streams.items():
            tee = testbed.misc.Tee(output / f"{name}.txt")
            tee.stdout = stream
            stack.callback(_close, tee.file)
            stack.enter_context(redirect(tee))
        yield


def _describe(testbed: Testbed, args: Mapping[str, Any], hparams: Mapping[str, Any]) -> None:
    versions = {
        "Python": platform.python_version(),
        "PyTorch": torch.__version__,
        "Torchvision": torchvision.__version__,
        "CUDA": torch.version.cuda,
        "CUDNN": torch.backends.cudnn.version(),  # type: ignore[no-untyped-call]
        "NumPy": np.__version__,
        "PIL": PIL.__version__,
        "nacme": nacme.__version__,
        "Testbed": testbed,
    }
    for title, entries in (("Environment", versions), ("Args", args), ("HParams", hparams)):
        print(f"{title}:")
        for key, value in entries.items() if title == "Environment" else sorted(entries.items()):
            print(f"\t{key}: {value}")


def _close(file: IO[str]) -> None:
    # what a full disk did not take is lost, and told already
    with contextlib.suppress(OSError):
        file.close()
