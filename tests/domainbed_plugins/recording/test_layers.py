"""The authors' layers: found in each of DomainBed's networks, and measured there by summing over positions."""

import json

import pytest
import torch
from torch import nn

from domainbed_plugins.recording.layers import authors_layers, resolve
from domainbed_plugins.runs.checkpoints import build_algorithm
from domainbed_plugins.train import main as train
from nacme import kl_gradients, measure

MNIST = {
    "ERM": "featurizer.bn3",
    "MTL": "featurizer.bn3",
    "SagNet": "network_f.bn3",
    "Fish": "network.net.0.bn3",
    "ADRMX": "featurizer_label.bn3",
    "ERMPlusPlus": "network_sma.0.bn3",
}
RESNET = {"vit": False, "freeze_bn": True, "resnet_dropout": 0.1, "lr": 1e-3, "weight_decay": 0.0}


def build(testbed, name, shape, **hparams):
    drawn = testbed.hparams_registry.default_hparams(name, "RotatedMNIST")
    return build_algorithm(testbed, name, shape, 5, 2, {**drawn, **hparams})


@pytest.mark.domainbed
@pytest.mark.parametrize("name", MNIST)
def test_the_network_that_predicts_is_measured(name, domainbed):
    algorithm = build(domainbed, name, (1, 28, 28))
    assert authors_layers(algorithm) == [MNIST[name]]
    read = []
    algorithm.get_submodule(MNIST[name]).register_forward_hook(lambda *_: read.append(1))
    algorithm.eval()
    algorithm.predict(torch.rand(2, 1, 28, 28))
    assert read == [1]


@pytest.mark.domainbed
def test_coverage_at_the_map_is_of_sums_over_positions(domainbed):
    torch.manual_seed(0)
    algorithm = build(domainbed, "ERM", (1, 28, 28))
    x, y = torch.rand(6, 1, 28, 28), torch.arange(6) % 5
    kept = []
    hook = algorithm.featurizer.bn3.register_forward_hook(lambda _, __, output: kept.append(output))
    logits = algorithm.eval().predict(x)
    hook.remove()
    (gradient,) = kl_gradients(logits, kept)
    states = torch.sigmoid(0.1 * kept[0].sum(dim=(2, 3)) * gradient.sum(dim=(2, 3)))
    occupied = [len(torch.unique(torch.bucketize(s, torch.linspace(0, 1, 50), right=True))) for s in states.T]
    found = measure(algorithm, [(x, y)], authors_layers(algorithm), fill=2, correct_only=False)
    assert found.occupied_bins == pytest.approx(sum(occupied) / len(occupied))
    # 196 positions: z * g of the vector behind the mean is as many times smaller
    below = measure(algorithm, [(x, y)], None, alpha=19.6, fill=2, correct_only=False)
    assert below.nac_me == pytest.approx(found.nac_me, abs=1e-3)


@pytest.mark.domainbed
@pytest.mark.slow
@pytest.mark.parametrize(
    ("augmix", "layer"), [(False, "featurizer.network.avgpool"), (True, "featurizer.network.global_pool")]
)
def test_resnets_are_measured_at_their_pooling(augmix, layer, domainbed):
    algorithm = build(domainbed, "ERM", (3, 224, 224), **RESNET, resnet18=not augmix, resnet50_augmix=augmix)
    assert authors_layers(algorithm) == [layer]
    data = [(torch.rand(3, 3, 224, 224), torch.tensor([0, 1, 2]))]
    assert measure(algorithm, data, [layer], fill=2, correct_only=False).nac_me == pytest.approx(
        measure(algorithm, data, None, fill=2, correct_only=False).nac_me
    )


class Transformer(nn.Module):
    """A featurizer with the names of a ViT's, as timm and DINOv2 have them."""

    def __init__(self):
        super().__init__()
        self.network = nn.Module()
        self.network.blocks = nn.ModuleList(nn.Module() for _ in range(12))
        self.network.blocks[11].norm2 = nn.LayerNorm(4)
        self.network.head = nn.Identity()


def test_other_networks_have_theirs_or_what_feeds_the_classifier():
    algorithm = nn.Module()
    algorithm.featurizer = Transformer()
    assert resolve("authors", algorithm) == ["featurizer.network.blocks.11.norm2"]
    algorithm.network_sma = nn.Sequential(Transformer())
    assert resolve(None, algorithm) == ["network_sma.0.network.blocks.11.norm2"]
    assert resolve("penultimate", algorithm) is None
    assert resolve(["featurizer"], algorithm) == ["featurizer"]
    algorithm = nn.Module()
    algorithm.featurizer = nn.Linear(3, 4)
    assert resolve("authors", algorithm) is None


DEBUG = ["--dataset", "Debug28", "--data_dir", "unused", "--steps", "4", "--checkpoint_freq", "3"]
DEBUG += ["--hparams", '{"batch_size": 8}', "--test_envs", "1", "--nac_fill", "2", "--n_workers", "0"]


@pytest.mark.domainbed
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("flags", "layers"),
    [
        ([], ["featurizer.bn3"]),
        (["--nac_layers", "authors"], ["featurizer.bn3"]),
        (["--nac_layers", "penultimate"], ["classifier:input"]),
        (["--nac_layers", "featurizer.bn1", "featurizer.bn2"], ["featurizer.bn1", "featurizer.bn2"]),
    ],
)
def test_the_flag(flags, layers, domainbed, tmp_path):
    train([*DEBUG, *flags, "--output_dir", str(tmp_path / "run")])
    records = [json.loads(line) for line in (tmp_path / "run" / "results.jsonl").read_text().splitlines()]
    assert [record["nac"]["layers"] for record in records] == [layers, layers]
