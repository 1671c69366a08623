"""NAP: the channels of an in-distribution sample peak before global pooling, those of an outlier are diffuse."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from pytorch_ood.api import DetectorInfo, FeatureMapsDetector, Paper, Task
from torch import Tensor, nn

from nacme.errors import ConfigError, LayerError, nearest
from nacme.ood.base import Extract, NetworkDetector
from nacme.ood.functional import nap_attention_score, nap_ratio, peak_and_mean, with_energy
from nacme.taps import INPUT, untouched


class NAP(NetworkDetector, FeatureMapsDetector):  # type: ignore[misc]
    """Neural activation prior. Needs no fitting.

    Parameters
    ----------
    model : nn.Module, optional
        None if only feature maps are passed (`predict_feature_maps`).
    layer : str, optional
        Dotted module path; ``:input`` behind it taps what goes into the module. None: the last feature map
        ``[B, N, H, W]`` of more than one position. For a transformer, name the attention of its last block: an
        ``nn.MultiheadAttention``, or a module that gives weights ``[B, heads, T, T]`` with ``attention=True``.
    attention : bool
        Whether the layer gives attention weights. Set by itself for ``nn.MultiheadAttention``.
    energy_weight : float
        ``w`` in [0, 1] of the energy in the geometric mean of the two scores. 0 is NAP alone.
    eps : float
        Added to each channel's mean.
    power : float
        Of the ratio of maximum to mean.

    Notes
    -----
    See `nacme.ood.functional.nap_score` for the formula, and for what is sure about it: the square is, the size of
    ``eps`` is less so.

    Source: Wan et al. (arXiv 2402.18162).
    """

    info: ClassVar[DetectorInfo] = DetectorInfo(
        paper=Paper(
            title="Out-of-Distribution Detection using Neural Activation Prior",
            venue="arXiv",
            year=2024,
            url="https://arxiv.org/abs/2402.18162",
        ),
        tasks={Task.CLASSIFICATION},
    )
    requires_fit = False
    hyperparameter_space: ClassVar[dict[str, list[Any]]] = {
        "energy_weight": [0.0, 0.25, 0.5, 0.75],
        "eps": [1e-6, 0.1, 1.0],
    }

    def __init__(
        self,
        model: nn.Module | None = None,
        layer: str | None = None,
        attention: bool = False,
        energy_weight: float = 0.0,
        eps: float = 1.0,
        power: float = 2.0,
    ) -> None:
        self.model = model
        self.layer = layer
        self.attention = attention
        self.energy_weight = energy_weight
        self.eps = eps
        self.power = power

    def extract(self, x: Tensor) -> Extract:
        """Read logits and each channel's maximum and mean; see `NetworkDetector.extract`."""
        model = self._network()
        predict = getattr(model, "predict", model)
        with torch.no_grad(), untouched(model):
            if self.layer is None:
                self.layer = _last_map(model, predict, x)
            with _listen(model, self.layer) as heard:
                logits = predict(x)
        if not heard:
            raise LayerError(f"layer {self.layer!r} does not run when the model predicts; name one that does")
        value, is_attention = heard[-1]
        if is_attention or self.attention:
            return {"logits": logits, "attention": nap_attention_score(value)}
        if not isinstance(value, Tensor) or value.dim() != 4 or value.shape[2:].numel() < 2:
            found = list(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise LayerError(
                f"layer {self.layer!r} gives {found}, and NAP needs a map [B, N, H, W] of more than one position: "
                "name the layer before global pooling, or the last attention of a transformer"
            )
        peak, mean = peak_and_mean(value)
        return {"logits": logits, "peak": peak, "mean": mean}

    def score(self, readings: Extract) -> Tensor:
        """Score readings; see `NetworkDetector.score`."""
        if "attention" in readings:
            prior = readings["attention"]
        else:
            prior = nap_ratio(readings["peak"], readings["mean"], self.eps, self.power)
        return -with_energy(prior, readings["logits"], self.energy_weight)

    def predict_feature_maps(self, feature_maps: Tensor) -> Tensor:
        """Score feature maps.

        Parameters
        ----------
        feature_maps : Tensor, shape [B, N, H, W]

        Returns
        -------
        Tensor, shape [B]
            Higher is more out-of-distribution.

        Raises
        ------
        ConfigError
            If ``energy_weight`` is above 0: maps alone have no energy.
        """
        if self.energy_weight:
            raise ConfigError(f"energy_weight={self.energy_weight} needs logits: call predict(x), or set it to 0")
        return -nap_ratio(*peak_and_mean(feature_maps), self.eps, self.power)


def _last_map(model: nn.Module, predict: Any, x: Tensor) -> str:
    """Name the last feature map of a forward pass: the output of a module, or the input of one.

    Inputs count because a functional ReLU may stand between the last layer and the pooling module; the image
    itself does not.
    """
    seen: list[str] = []

    def note(name: str, value: Any) -> None:
        if not isinstance(value, Tensor) or value.dim() != 4 or value.data_ptr() == x.data_ptr():
            return
        if value.shape[2:].numel() > 1:
            seen.append(name)

    handles = []
    for path, module in model.named_modules():
        if path:
            handles.append(
                module.register_forward_pre_hook(
                    lambda _, inputs, path=path: note(path + INPUT, inputs[0] if inputs else None)
                )
            )
            handles.append(module.register_forward_hook(lambda _, __, out, path=path: note(path, out)))
    try:
        predict(x[:1])
    finally:
        for handle in handles:
            handle.remove()
    if not seen:
        raise LayerError(
            "the model has no feature map [B, N, H, W] before its pooling, which NAP compares the peaks of: use "
            "NACUE or LINe, or name the last attention of a transformer as layer"
        )
    return seen[-1]


@contextmanager
def _listen(model: nn.Module, layer: str) -> Iterator[list[tuple[Any, bool]]]:
    """Collect what a layer gives during a forward pass, and whether it is attention weights."""
    path = layer.removesuffix(INPUT)
    modules = dict(model.named_modules())
    if path not in modules:
        raise LayerError(f"the model has no layer {path!r}; {nearest(path, filter(None, modules))}")
    module = modules[path]
    heard: list[tuple[Any, bool]] = []
    if isinstance(module, nn.MultiheadAttention):

        def ask(_: nn.Module, args: Any, kwargs: dict[str, Any]) -> Any:
            return args, {**kwargs, "need_weights": True, "average_attn_weights": False}

        handles = [
            module.register_forward_pre_hook(ask, with_kwargs=True),
            module.register_forward_hook(lambda _, __, output: heard.append((output[1], True))),
        ]
    elif layer.endswith(INPUT):
        handles = [module.register_forward_pre_hook(lambda _, inputs: heard.append((inputs[0], False)))]
    else:
        handles = [module.register_forward_hook(lambda _, __, output: heard.append((output, False)))]
    try:
        yield heard
    finally:
        for handle in handles:
            handle.remove()
