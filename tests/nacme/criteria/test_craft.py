"""craft_acc: its transforms by what they must do to an image, and what its value may depend on."""

import math

import pytest
import torch
from torch import nn

from nacme import Recorder
from nacme.criteria import craft
from nacme.criteria.network import Collected
from nacme.criteria.registry import get_criterion
from nacme.errors import ConfigError


def generator():
    return torch.Generator().manual_seed(0)


@pytest.fixture
def images():
    return torch.rand(6, 3, 16, 16, generator=generator())


@pytest.mark.parametrize("transform", craft.TRANSFORMS)
def test_transforms_keep_shape_and_range_whatever_the_normalization(images, transform):
    plain = craft.in_own_range(images, transform, generator())
    assert plain.shape == images.shape
    assert not torch.allclose(plain, images, atol=0.01)
    assert plain.min() >= images.min()
    assert plain.max() <= images.max() + 1e-6
    normalized = craft.in_own_range(5 * images - 2, transform, generator())
    torch.testing.assert_close(normalized, 5 * plain - 2, atol=1e-3, rtol=0)
    assert torch.equal(craft.in_own_range(images, transform, generator()), plain)


def test_edges_of_what_is_flat_are_nothing_and_of_a_step_stand_at_the_step():
    step = torch.zeros(1, 1, 8, 8)
    step[..., 4:] = 1
    found = craft.edges(step, generator())[0, 0]
    assert found[:, 3:5].eq(1).all()
    assert found[:, :3].eq(0).all()
    assert found[:, 5:].eq(0).all()


def test_posterizing_leaves_four_levels(images):
    assert craft.posterized(images, generator()).unique().numel() == 4


def test_blurring_keeps_the_mean_of_the_middle_and_lessens_the_variance(images):
    found = craft.blurred(images, generator())
    assert found.var() < images.var() / 3
    assert found.mean() == pytest.approx(images.mean().item(), abs=0.02)


def test_noise_has_a_tenth_of_the_range(images):
    assert (craft.noisy(images, generator()) - images).std() == pytest.approx(0.1, rel=0.1)


def test_fourier_mix_keeps_the_phase_and_no_image_is_mixed_with_itself(images):
    found, spectrum = torch.fft.rfft2(craft.fourier_mixed(images, generator())), torch.fft.rfft2(images)
    real = spectrum[..., 1:7, 1:7]  # without the frequencies whose phase is 0 or pi by symmetry
    torch.testing.assert_close(found[..., 1:7, 1:7].angle(), real.angle(), atol=1e-3, rtol=0)
    ratio = found.abs() / spectrum.abs()
    assert all((each - 1).abs().median() > 0.05 for each in ratio)
    torch.testing.assert_close(craft.fourier_mixed(images[:1], generator()), images[:1], atol=1e-5, rtol=0)


class Bright(nn.Module):
    """Tells bright images from dark ones."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1, 2)
        with torch.no_grad():
            self.fc.weight.copy_(torch.tensor([[-1.0], [1.0]]))
            self.fc.bias.zero_()

    def forward(self, x):
        return self.fc(x.mean(dim=(1, 2, 3)).unsqueeze(1))


def loaders(batch=4, count=20):
    made = {}
    for env in range(2):
        labels = torch.arange(count) % 2
        x = torch.randn(count, 1, 8, 8, generator=generator().manual_seed(env)) + 4 * (2 * labels - 1).view(
            -1, 1, 1, 1
        )
        made[f"env{env}"] = list(zip(x.split(batch), labels.split(batch)))
    return made


def value(model, loaders, samples=200):
    return craft.craft_acc(Collected(model, {}, {}, {}, {}, loaders=loaders, craft_samples=samples))


def test_what_transforms_leave_alone_is_still_seen():
    # edges alone look alike in the dark and in the light; brightness survives the other four
    assert 0.8 <= value(Bright(), loaders()) <= 1


def test_value_does_not_depend_on_batches_and_draws_nothing_from_the_global_generator():
    torch.manual_seed(7)
    before = torch.get_rng_state()
    model = Bright()
    after = torch.get_rng_state()
    assert value(model, loaders(4)) == value(model, loaders(7)) == value(model, loaders(20))
    assert torch.equal(torch.get_rng_state(), after) or torch.equal(torch.get_rng_state(), before)


def test_only_as_many_images_are_read_as_are_asked_for():
    class Counting(list):
        read = 0

        def __iter__(self):
            for batch in list.__iter__(self):
                Counting.read += len(batch[0])
                yield batch

    each = {name: Counting(batches) for name, batches in loaders(4, 40).items()}
    value(Bright(), each, samples=16)
    assert Counting.read == 16


def test_undefined_for_inputs_that_are_no_images():
    flat = {"env0": [(torch.randn(4, 5), torch.zeros(4, dtype=torch.long))]}
    assert math.isnan(value(nn.Linear(5, 2), flat))
    model = Bright()
    with torch.no_grad():
        model.fc.bias.fill_(math.nan)
    assert math.isnan(value(model, loaders()))


def test_recorded_when_named_alone_and_its_cost_is_told():
    record = Recorder(Bright(), loaders(), criteria=["craft_acc"], craft_samples=10).record()
    assert record["craft_acc"] == value(Bright(), loaders(), samples=10)
    assert "craft_acc" not in Recorder(Bright(), loaders()).record()
    assert "--craft_samples" in get_criterion("craft_acc").cost
    with pytest.raises(ConfigError, match="craft_samples=0"):
        Recorder(Bright(), loaders(), craft_samples=0)
