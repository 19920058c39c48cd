import copy
import pickle

import pytest
import torch
from torch import nn

from fsr_lab.core.crafting import Policy, crafting
from fsr_lab.defense.fsr import FSR
from fsr_lab.model.defended import attach
from fsr_lab.model.normalize import Normalize
from fsr_lab.model.tiny_cnn import TinyCNN

MEAN, STD = [0.5, 0.25, 0.0], [0.5, 2.0, 1.0]


def normalised(net, mean=MEAN, std=STD):
    Normalize(mean, std).put_on(net)
    return net


def test_each_channel_has_its_own_mean_and_deviation():
    x = torch.tensor([1.0, 0.75, 0.3]).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    out = Normalize(MEAN, STD)(x)
    assert out.shape == x.shape
    torch.testing.assert_close(out[1, :, 3, 4], torch.tensor([1.0, 0.25, 0.3]))


def test_layers_and_weights_keep_their_names(batch):
    net = TinyCNN(num_classes=4)
    names = list(net.state_dict())
    plain = copy.deepcopy(net)
    model = attach(normalised(net), {"block2": FSR}, (3, 8, 8), 4).eval()
    assert [name.removeprefix("backbone.") for name in model.state_dict() if name.startswith("backbone.")] == names
    bare = attach(normalised(plain), {}, (3, 8, 8), 4)
    assert not torch.equal(bare(batch[0]), model(batch[0]))


def test_the_attacked_function_includes_it(batch):
    x = batch[0].requires_grad_()
    net = TinyCNN(num_classes=4).eval()
    plain = copy.deepcopy(net)
    inner = ((batch[0] - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)).detach().requires_grad_()
    (wanted,) = torch.autograd.grad(plain(inner).sum(), inner)
    model = attach(normalised(net), {}, (3, 8, 8), 4)
    with crafting(model, Policy(fold=True), example=x) as attacked:
        (found,) = torch.autograd.grad(attacked(x).sum(), x)
    torch.testing.assert_close(found, wanted / torch.tensor(STD).view(3, 1, 1))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_a_copy_normalises_by_its_own(duplicate, batch):
    net = normalised(TinyCNN(num_classes=4))
    other = duplicate(net)
    assert torch.equal(other(batch[0]), net(batch[0]))
    other.normalize.mean += 1
    assert not torch.equal(other(batch[0]), net(batch[0]))


@pytest.mark.parametrize(("mean", "std"), [([0.5], [0.5, 0.5]), ([], []), ([0.5], [0.0]), ([0.5, 0.5], [1.0, -1.0])])
def test_what_is_no_normalisation_is_refused(mean, std):
    with pytest.raises(ValueError, match="expected as many means as deviations, these above 0, got"):
        Normalize(mean, std)


def test_images_of_other_channels_are_named():
    with pytest.raises(
        ValueError, match=r"TinyCNN does not take images of shape \(1, 8, 8\): expected images of 3 channel"
    ):
        attach(normalised(TinyCNN(in_channels=1)), {}, (1, 8, 8), 10)


def test_a_sequential_is_refused():
    with pytest.raises(ValueError, match=r"a Sequential runs whatever is added .* in front of its layers"):
        Normalize([0.5], [0.5]).put_on(nn.Sequential(nn.Flatten(), nn.Linear(4, 2)))
