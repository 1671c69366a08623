"""Coverage among the metrics of Hugging Face's Trainer (``nacme[transformers]``)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from nacme.errors import NacmeError
from nacme.recorder import Recorder
from nacme.settings import CoverageSettings

try:
    from transformers.trainer_callback import TrainerCallback, TrainerControl, TrainerState
    from transformers.training_args import TrainingArguments
except ModuleNotFoundError as error:
    if (error.name or "").split(".")[0] not in ("transformers", "accelerate"):
        raise
    raise NacmeError("nacme.transformers needs transformers: pip install 'nacme[transformers]'") from None

#: Every evaluation has a metric of this name behind its prefix.
_MARK = "_runtime"


class Coverage(TrainerCallback):
    """Measure NAC-ME and other criteria at each evaluation, and put them among its metrics.

    ``TrainingArguments(metric_for_best_model="eval_nac_me", greater_is_better=True)`` then works as with any
    other metric. With several evaluation sets by name each is measured by itself: ``eval_NAME_nac_me``. One of a
    held-out domain must not choose.

    Parameters
    ----------
    settings : CoverageSettings, optional
        Hyper-parameters of NAC-ME. None: the authors'.
    layers : sequence of str, optional
        Dotted module paths. None: what feeds the linear layer that produces the logits.
    criteria : sequence of str, optional
        As for `nacme.Recorder`.

    Notes
    -----
    The metrics that an evaluation has already, such as ``eval_loss``, stay. A value that could not be computed is
    NaN. It takes one more pass over the evaluation set and draws none of the training's random numbers.
    Callbacks of loggers that come before this one in the trainer's list have written by then. To have them write
    coverage, too, list them behind it: ``report_to="none"``, ``callbacks=[Coverage(), TensorBoardCallback()]``.

    Examples
    --------
    >>> callbacks = [Coverage(CoverageSettings(alpha="auto", fill=0.02))]
    """

    def __init__(
        self,
        settings: CoverageSettings | None = None,
        *,
        layers: Sequence[str] | None = None,
        criteria: Sequence[str] | None = None,
    ) -> None:
        self._options: dict[str, Any] = {"settings": settings, "layers": layers, "criteria": criteria}
        self._recorders: dict[str, Recorder] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        """Forget the models of an earlier training."""
        self._recorders.clear()

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **given: Any,
    ) -> None:
        """Measure where the metrics of an evaluation are logged: they are what is chosen by, too."""
        logs: dict[str, float] = given["logs"]
        loader: Iterable[Any] | None = given.get("eval_dataloader")
        prefix = next((key.removesuffix(_MARK) for key in logs if key.endswith(_MARK)), "")
        if loader is None or not (prefix == "eval" or prefix.startswith("eval_")):
            return
        if prefix not in self._recorders:
            self._recorders[prefix] = Recorder(given["model"], {prefix: loader}, **self._options)
        recorder = self._recorders[prefix]
        # the trainer makes a loader anew for each evaluation
        recorder.model = given["model"]
        recorder.loaders = recorder.coverage_loaders = {prefix: loader}
        with torch.random.fork_rng(devices=[]):
            record = recorder.record(floats_only=True)
        found = {f"{prefix}_{name}": value for name, value in record.items()}
        found = {name: value for name, value in found.items() if name not in logs}
        logs.update(found)
        state.log_history[-1].update(found)
