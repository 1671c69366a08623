"""Featurizers by name, in DomainBed's place for them: the hyper-parameter ``featurizer``.

``resnet10`` starts from random weights, ``efficientnet_lite0`` from those of a registry package, ``timm:NAME``
from a local file. Nothing is downloaded. The name stands among a run's hyper-parameters, and the weights in its
checkpoints, so that a checkpoint alone rebuilds its network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from domainbed_plugins.backends import weights
from nacme.errors import ConfigError, nearest

if TYPE_CHECKING:
    from types import ModuleType

SCRATCH = "resnet10"
PACKAGED = "efficientnet_lite0"
TIMM = "timm:"
#: What timm calls the network whose weights are in a package.
PACKAGED_AS = "tf_efficientnet_lite0"
#: Outputs of the ResNet-10's four stages; a ResNet-18's halved.
CHANNELS = (32, 64, 128, 256)
#: What DomainBed normalizes images by.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Hyper-parameters that are read here.
HPARAMS = ("featurizer", "featurizer_weights", "channels_last")

_weights_are_replaced = False


@contextlib.contextmanager
def without_weights() -> Iterator[None]:
    """Build networks whose weights are going to be replaced: no package and no file is read for them."""
    global _weights_are_replaced
    before, _weights_are_replaced = _weights_are_replaced, True
    try:
        yield
    finally:
        _weights_are_replaced = before


def check(hparams: Mapping[str, Any], testbed: str) -> None:
    """Refuse a network that cannot be built, before data are read.

    Parameters
    ----------
    hparams : mapping
    testbed : str
        Its name.

    Raises
    ------
    ConfigError
        For an unknown name, a missing package, or weights that do not go with the name or are not there.
    """
    asked = [name for name in HPARAMS if hparams.get(name)]
    if not asked:
        return
    if testbed == "embedded":
        raise ConfigError(
            f"--{asked[0]} is for DomainBed's data sets; the embedded ones have a network of their own"
        )
    name, file = hparams.get("featurizer"), hparams.get("featurizer_weights")
    is_timm = isinstance(name, str) and name.startswith(TIMM)
    if name is not None and not is_timm and name not in (SCRATCH, PACKAGED):
        raise ConfigError(f"--featurizer {name!r} is unknown; known: {SCRATCH!r}, {PACKAGED!r}, '{TIMM}NAME'")
    if is_timm and not file:
        raise ConfigError(
            f"--featurizer {name} needs --featurizer_weights FILE (.safetensors or .pth): nothing is downloaded"
        )
    if file and not is_timm:
        raise ConfigError("--featurizer_weights goes with --featurizer timm:NAME alone")
    if is_timm:
        _check_timm(_architecture(str(name)))
        if not Path(str(file)).is_file():
            raise ConfigError(f"--featurizer_weights {file} is no file")
    elif name == PACKAGED:
        _check_timm(PACKAGED_AS)
        weights.packaged_file()


def make_resnet10(networks: ModuleType, input_shape: Sequence[int], hparams: Mapping[str, Any]) -> nn.Module:
    """Build a ResNet-10 with random weights: a basic block in each of four stages, half as wide as a ResNet-18.

    Parameters
    ----------
    networks : module
        ``domainbed.networks``.
    input_shape : sequence of int
        ``(channels, height, width)``.
    hparams : mapping
        ``resnet_dropout`` acts on the features, as in stock DomainBed. ``freeze_bn`` is ignored: batch
        normalization that never saw data does not normalize.

    Returns
    -------
    nn.Module
        DomainBed's ``ResNet``, whose ``network`` is timm's; 256 outputs. The stages are ``network.layer1`` to
        ``network.layer4``.

    Raises
    ------
    ConfigError
        If timm is missing, or older than 1.0.8.
    """
    try:
        import timm
        from timm.models.resnet import BasicBlock, ResNet

        block: Any = BasicBlock  # timm's annotation asks for an instance
        # a deep stem gives 32 channels; the plain one always 64, and evaluation would take half as long again
        body = ResNet(
            block,
            (1, 1, 1, 1),
            num_classes=0,
            in_chans=input_shape[0],
            channels=CHANNELS,
            stem_type="deep",
            stem_width=CHANNELS[0] // 2,
        )
    except ImportError as error:
        raise ConfigError(f"{SCRATCH} needs timm ({error}); pip install 'nacme[domainbed]'") from error
    except TypeError as error:  # ResNets of other widths came with 1.0.8
        raise ConfigError(
            f"{SCRATCH}: timm {timm.__version__} is too old ({error}); pip install 'timm>=1.0.8'"
        ) from error
    return _as_resnet(networks, body, CHANNELS[-1], {**hparams, "freeze_bn": False})


def make_pretrained(networks: ModuleType, input_shape: Sequence[int], hparams: Mapping[str, Any]) -> nn.Module:
    """Build a network of timm with the weights that `hparams` name.

    Parameters
    ----------
    networks : module
        ``domainbed.networks``.
    input_shape : sequence of int
        ``(channels, height, width)``. Other than three channels read the first layer's filters in turn, as in
        DomainBed.
    hparams : mapping
        ``featurizer``, ``featurizer_weights``, and DomainBed's ``freeze_bn`` and ``resnet_dropout``, which acts on
        the features.

    Returns
    -------
    nn.Module
        DomainBed's ``ResNet``, whose ``network`` is a `Renormalized`, whose ``body`` is timm's network without its
        classifier. What it puts out, pooled features, feeds DomainBed's classifier.

    Raises
    ------
    ConfigError
        See `check`; and if the weights are another network's, or the network does not take images of this size.

    Notes
    -----
    Building it draws no number from torch's generator, since every weight is replaced.
    """
    name, path = hparams["featurizer"], hparams.get("featurizer_weights")
    architecture = _architecture(name)
    _check_timm(architecture)
    with torch.random.fork_rng(devices=[]):
        body = _make_body(architecture, input_shape[0])
    config = getattr(body, "pretrained_cfg", None) or {}
    if not _weights_are_replaced:
        path = weights.packaged_file() if name == PACKAGED else Path(path or "")
        stored = weights.read(path)
        if name == PACKAGED:
            # its own architecture's names, in the order of timm's; the classifier is last
            stored = dict(zip([*body.state_dict(), "classifier.weight", "classifier.bias"], stored.values()))
        weights.fit(body, stored, path, name)
    network = Renormalized(body, config.get("mean") or MEAN, config.get("std") or STD, input_shape[0])
    return _as_resnet(networks, network, _num_features(network, input_shape, name), hparams)


class Renormalized(nn.Module):
    """A network behind the change from DomainBed's normalization of images to its own.

    DomainBed normalizes every image by ImageNet's mean and standard deviation. Networks that were trained on
    images normalized otherwise (EfficientNet-Lite: 0.5 and 0.5) lose accuracy on those.

    Parameters
    ----------
    body : nn.Module
    mean, std : sequence of float, length 3
        What `body` wants images of the range 0 to 1 to be normalized by.
    channels : int
        Those beyond three are taken for red, green and blue in turn.

    Attributes
    ----------
    body : nn.Module
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, body: nn.Module, mean: Sequence[float], std: Sequence[float], channels: int = 3) -> None:
        super().__init__()
        self.body = body
        colours = [i % 3 for i in range(channels)]
        scale = [STD[i] / std[i] for i in colours]
        shift = [(MEAN[i] - mean[i]) / std[i] for i in colours]
        # no part of a checkpoint: the name of the network decides them
        self.register_buffer("scale", torch.tensor(scale).reshape(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", torch.tensor(shift).reshape(1, -1, 1, 1), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[B, channels, H, W]``, normalized as DomainBed does, to the body's features ``[B, N]``."""
        features: Tensor = self.body(x * self.scale + self.shift)
        return features


def count(name: str, input_shape: Sequence[int]) -> tuple[float, int]:
    """Count what a pretrained network costs, without weights.

    Parameters
    ----------
    name : str
        Of the featurizer.
    input_shape : sequence of int

    Returns
    -------
    tuple of float and int
        Arithmetic of one image's forward pass, a multiplication and an addition counted as two; and parameters.
    """
    from torch.utils.flop_counter import FlopCounterMode

    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        body = _make_body(_architecture(name), input_shape[0])
        body.eval()(torch.zeros(1, *input_shape))
    return float(counter.get_total_flops()), sum(parameter.numel() for parameter in body.parameters())


def register(networks: ModuleType, default: Any) -> None:
    """Let DomainBed make featurizers by name.

    Parameters
    ----------
    networks : module
        ``domainbed.networks``.
    default : callable
        Gives the name for an input shape and hyper-parameters that hold none, or None: DomainBed's choice.
    """
    stock_featurizer = networks.Featurizer

    def featurizer(input_shape: Sequence[int], hparams: Mapping[str, Any]) -> nn.Module:
        made: nn.Module
        name = hparams.get("featurizer") or default(input_shape)
        if name is None:
            made = stock_featurizer(input_shape, hparams)
        elif name == SCRATCH:
            made = make_resnet10(networks, input_shape, hparams)
        else:
            made = make_pretrained(networks, input_shape, hparams)
        if hparams.get("channels_last"):
            # weights laid out so make convolutions lay out what they put out so, too
            made = made.to(memory_format=torch.channels_last)
        return made

    networks.Featurizer = featurizer  # type: ignore[attr-defined]


def _as_resnet(networks: ModuleType, network: nn.Module, width: int, hparams: Mapping[str, Any]) -> nn.Module:
    """Put a network into DomainBed's ``ResNet``, whose dropout and frozen batch normalization it then has."""
    # not its own constructor, which downloads a pretrained network; the class itself, which URM insists on
    featurizer: Any = networks.ResNet.__new__(networks.ResNet)
    nn.Module.__init__(featurizer)
    featurizer.network = network
    featurizer.n_outputs = width
    featurizer.hparams = dict(hparams)
    featurizer.dropout = nn.Dropout(hparams["resnet_dropout"])
    featurizer.activation = nn.Identity()
    if hparams["freeze_bn"]:
        featurizer.freeze_bn()
    made: nn.Module = featurizer
    return made


def _architecture(name: str) -> str:
    return PACKAGED_AS if name == PACKAGED else name.removeprefix(TIMM)


def _check_timm(architecture: str) -> None:
    try:
        import timm
    except ImportError as error:
        raise ConfigError(f"pretrained networks need timm ({error}); {weights.INSTALL}") from error
    if not timm.is_model(architecture):
        raise ConfigError(
            f"--featurizer {TIMM}{architecture}: timm {timm.__version__} has no such network; "
            f"{nearest(architecture, timm.list_models())}"
        )


def _make_body(architecture: str, channels: int) -> nn.Module:
    import timm

    options: dict[str, Any] = {"pretrained": False, "num_classes": 0, "in_chans": channels}
    body: nn.Module = timm.create_model(architecture, **options)
    if getattr(body, "dynamic_img_size", None) is False:
        # a vision transformer: its position embeddings keep the shape that is stored, and are resized as it runs
        body = timm.create_model(architecture, **options, dynamic_img_size=True)
    return body


def _num_features(network: nn.Module, input_shape: Sequence[int], name: str) -> int:
    """Run one image through, for what timm says of a network's width is not always true of what it puts out."""
    try:
        with torch.no_grad():
            features = network.eval()(torch.zeros(1, *input_shape))
    except (RuntimeError, AssertionError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(f"--featurizer {name} does not take images of {list(input_shape)}: {reason}") from error
    network.train()
    if features.dim() != 2:
        raise ConfigError(f"--featurizer {name} gives {list(features.shape)}, not one vector for each image")
    return int(features.shape[1])
