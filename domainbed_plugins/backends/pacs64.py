"""PACS at 64 pixels in DomainBed, with a ResNet-10 from random weights: a study of photographs without a GPU.

Everything is stock DomainBed's but the size of the images, the network, and the ranges of a few hyper-parameters.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import nn

from nacme.errors import ConfigError

if TYPE_CHECKING:
    from types import ModuleType

    from domainbed_plugins.interface import Testbed

NAME = "PACS64"
SIZE = (64, 64)
#: Outputs of the network's four stages; a ResNet-18's halved.
CHANNELS = (32, 64, 128, 256)
#: Whose hyper-parameters are drawn: DomainBed's other data sets that train from random weights.
DRAWN_AS = "RotatedMNIST"


def make_data_set(datasets: ModuleType) -> type[Any]:
    """Build the data set on DomainBed's ``PACS``.

    Parameters
    ----------
    datasets : module
        ``domainbed.datasets``.

    Returns
    -------
    type
        ``PACS64``: the folders, environments and transforms of ``PACS``, with images of 64 by 64 pixels.
    """

    class PACS64(datasets.PACS):  # type: ignore[misc, name-defined]
        """PACS at 64 pixels."""

        def __init__(self, root: str, test_envs: Sequence[int], hparams: Mapping[str, Any]) -> None:
            super().__init__(root, test_envs, hparams)
            for env in self.datasets:
                sized = [step for step in env.transform.transforms if hasattr(step, "size")]
                if not sized:
                    raise ConfigError(
                        f"{NAME}: this clone's PACS does not resize its images by a transform; use DomainBed's own"
                    )
                for step in sized:
                    step.size = SIZE
            self.input_shape = (3, *SIZE)

    return PACS64


def make_network(networks: ModuleType, input_shape: Sequence[int], hparams: Mapping[str, Any]) -> nn.Module:
    """Build a ResNet-10 with random weights: a basic block in each of four stages, half as wide as a ResNet-18.

    Parameters
    ----------
    networks : module
        ``domainbed.networks``.
    input_shape : sequence of int
        ``(channels, 64, 64)``.
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
        raise ConfigError(f"{NAME} needs timm ({error}); pip install 'nacme[domainbed]'") from error
    except TypeError as error:  # ResNets of other widths came with 1.0.8
        raise ConfigError(
            f"{NAME}: timm {timm.__version__} is too old ({error}); pip install 'timm>=1.0.8'"
        ) from error
    # not its own constructor, which downloads a pretrained network; the class itself, which URM insists on
    featurizer: Any = networks.ResNet.__new__(networks.ResNet)
    nn.Module.__init__(featurizer)
    featurizer.network = body
    featurizer.n_outputs = CHANNELS[-1]
    featurizer.hparams = {**hparams, "freeze_bn": False}
    featurizer.dropout = nn.Dropout(hparams["resnet_dropout"])
    featurizer.activation = nn.Identity()
    made: nn.Module = featurizer
    return made


def register(testbed: Testbed) -> None:
    """Add ``PACS64``, its network and its hyper-parameters to DomainBed. Registering again changes nothing.

    Parameters
    ----------
    testbed : Testbed
        From `domainbed_plugins.backends.find`. One without ``PACS``, as the embedded testbed, stays as it is.

    Notes
    -----
    Hyper-parameters are drawn as for DomainBed's small images, since weights are random here as there: a learning
    rate of 1e-3, or 10^U(-4.5, -2.5), and a batch size of 64, or 2^U(3, 9).
    """
    datasets, registry = testbed.datasets, testbed.hparams_registry
    if hasattr(datasets, NAME) or not hasattr(datasets, "PACS"):
        return
    networks = importlib.import_module(f"{datasets.__package__}.networks")
    setattr(datasets, NAME, make_data_set(datasets))
    datasets.DATASETS.append(NAME)
    stock_featurizer = networks.Featurizer
    stock_default, stock_random = registry.default_hparams, registry.random_hparams

    def featurizer(input_shape: Sequence[int], hparams: Mapping[str, Any]) -> nn.Module:
        if tuple(input_shape[1:3]) == SIZE:
            return make_network(networks, input_shape, hparams)
        stock: nn.Module = stock_featurizer(input_shape, hparams)
        return stock

    def default_hparams(algorithm: str, dataset: str) -> dict[str, Any]:
        return dict(stock_default(algorithm, DRAWN_AS if dataset == NAME else dataset))

    def random_hparams(algorithm: str, dataset: str, seed: int) -> dict[str, Any]:
        return dict(stock_random(algorithm, DRAWN_AS if dataset == NAME else dataset, seed))

    networks.Featurizer = featurizer  # type: ignore[attr-defined]
    registry.default_hparams = default_hparams  # type: ignore[attr-defined]
    registry.random_hparams = random_hparams  # type: ignore[attr-defined]
