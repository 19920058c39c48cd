"""Folding is exact or it does not happen."""

import pytest
import torch
from torch import nn

from fsr_lab.core.crafting import REFERENCE, Policy, crafting
from fsr_lab.core.folding import foldable_pairs, folded
from fsr_lab.defense.fsr import FSR
from fsr_lab.model.defended import attach
from fsr_lab.model.resnet import resnet18
from fsr_lab.model.tiny_cnn import TinyCNN

X = torch.linspace(0, 1, 2 * 3 * 8 * 8).reshape(2, 3, 8, 8)


def stir(net):
    """Give every BatchNorm of a network statistics and weights that are not its initial ones."""
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
            nn.init.uniform_(module.running_mean, -1, 1)
            nn.init.uniform_(module.running_var, 0.2, 3)
            if module.affine:
                nn.init.uniform_(module.weight, -2, 2)
                nn.init.uniform_(module.bias, -1, 1)
    return net.eval()


class Net(nn.Module):
    """conv -> norm -> ReLU -> mean, with a way for what happens between the two to be something else."""

    def __init__(self, between=None, *, bias=False, affine=True, track=True, channels=4):
        super().__init__()
        self.conv = nn.Conv2d(3, channels, 3, bias=bias)
        self.norm = nn.BatchNorm2d(channels, affine=affine, track_running_stats=track)
        self.between = between

    def forward(self, x):
        if self.between is not None:
            return self.between(self, x)
        return self.norm(self.conv(x)).relu().mean((2, 3))


def difference(net, x=X):
    """Return how far the folded network is from the network itself."""
    logits = []
    for policy in (REFERENCE, Policy(fold=True)):
        with crafting(net, policy, example=x) as attacked, torch.no_grad():
            logits.append(attacked(x))
    return (logits[0] - logits[1]).abs().max().item()


def names(net, x=X):
    modules = {module: name for name, module in net.named_modules()}
    return [(modules[conv], modules[norm]) for conv, norm in foldable_pairs(net.eval(), x)]


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("affine", [False, True])
def test_a_plain_pair_is_folded_exactly(bias, affine):
    net = stir(Net(bias=bias, affine=affine)).double()
    assert names(net, X.double()) == [("conv", "norm")]
    weight, shift = folded(net.conv, net.norm)
    found = nn.functional.conv2d(X.double(), weight, shift)
    torch.testing.assert_close(found, net.norm(net.conv(X.double())), atol=1e-12, rtol=0)
    assert not weight.requires_grad
    assert not shift.requires_grad


def read_twice(net, x):
    features = net.conv(x)
    return (net.norm(features) + features).mean((2, 3))


def a_slice_read(net, x):
    features = net.conv(x)
    return net.norm(features).mean((2, 3)) + features[:, :, 0, 0]


def conv_run_twice(net, x):
    return (net.norm(net.conv(x)) + net.conv(x)).mean((2, 3))


def norm_run_twice(net, x):
    return (net.norm(net.conv(x)) + net.norm(x.mean(1, keepdim=True).expand(-1, 4, -1, -1)[..., 2:, 2:])).mean((2, 3))


def changed_in_place(net, x):
    return net.norm(net.conv(x).relu_()).mean((2, 3))


def changed_before(net, x):
    return net.norm(2 * net.conv(x)).mean((2, 3))


def returned_too(net, x):
    features = net.conv(x)
    return torch.stack([net.norm(features).mean((2, 3)), features.mean((2, 3))])


def returned_itself(net, x):
    return torch.stack([features := net.conv(x), net.norm(features)])


def never_normed(net, x):
    return net.conv(x).mean((2, 3))


@pytest.mark.parametrize(
    "between",
    [
        read_twice, a_slice_read, conv_run_twice, norm_run_twice, changed_in_place, changed_before, returned_too,
        returned_itself, never_normed,
    ],
)  # fmt: skip
def test_what_would_not_be_exact_is_left_alone(between):
    net = stir(Net(between))
    assert names(net) == []
    assert difference(net) == 0


def test_an_output_that_is_also_returned_is_left_alone():
    class Both(Net):
        def forward(self, x):
            features = self.conv(x)
            return self.norm(features).mean((2, 3)), features

    assert names(stir(Both())) == []


def test_batch_statistics_and_subclasses_are_left_alone():
    class MyConv(nn.Conv2d):
        pass

    assert names(Net(track=False)) == []
    net = stir(Net())
    net.conv = MyConv(3, 4, 3)
    assert names(net) == []


@pytest.mark.parametrize("which", ["conv", "norm"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_hooked_pair_is_left_alone_whenever_the_hook_came(which, when):
    net = stir(Net())
    seen = []
    if when == "after":
        assert names(net) == [("conv", "norm")]
    handle = getattr(net, which).register_forward_hook(lambda module, inputs, output: seen.append(output.clone()))
    assert names(net) == []
    assert difference(net) == 0
    assert torch.equal(seen[-1], seen[-2])
    handle.remove()
    if when == "after":
        assert names(net) == [("conv", "norm")]


@pytest.mark.parametrize("point", ["block1.conv", "block1.norm", "block1.norm:in"])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_tapped_pair_is_left_alone_whenever_the_tap_came(point, when):
    net = stir(TinyCNN(num_classes=4, batch_norm=True))
    if when == "after":
        assert ("block1.conv", "block1.norm") in names(net)
    model = stir(attach(net, {point: FSR}, (3, 8, 8), 4))
    assert ("backbone.block1.conv", "backbone.block1.norm") not in names(model)
    assert ("backbone.block2.conv", "backbone.block2.norm") in names(model)
    assert difference(model) < 1e-5


def test_all_of_a_resnet_and_of_fsr_is_folded():
    model = stir(attach(resnet18(width=4), {"layer4": FSR}, (3, 8, 8), 10)).double()
    pairs = names(model, X.double())
    assert len(pairs) == 20 + 4  # with the shortcuts; both nets of FSR end in a convolution without BatchNorm
    with crafting(model, Policy(fold=True), example=X.double()) as attacked:
        assert sum("forward" in vars(module) for module in model.modules()) == len(pairs)
        found = attacked(X.double())
    torch.testing.assert_close(found, model(X.double()), atol=1e-10, rtol=1e-10)


def test_finding_pairs_changes_nothing():
    net = stir(Net())
    state = torch.get_rng_state()
    values = [value.clone() for value in (*net.parameters(), *net.buffers())]
    foldable_pairs(net, X)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip((*net.parameters(), *net.buffers()), values, strict=True))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_a_network_that_moved_on_is_folded_with_its_present_statistics():
    net = stir(Net())
    difference(net)
    stir(net)
    with torch.no_grad():
        net.conv.weight.mul_(3)
    assert difference(net) < 1e-5


def test_a_network_whose_norm_was_exchanged_is_not_folded_with_the_old_one():
    net = stir(Net())
    difference(net)
    net.norm = stir(nn.BatchNorm2d(4))
    assert difference(net) < 1e-5
    net.norm = nn.Identity()
    assert difference(net) == 0


def test_tied_weights_are_folded_one_by_one():
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Conv2d(3, 3, 3), nn.BatchNorm2d(3), nn.Flatten())
    net[2].weight = net[0].weight
    stir(net)
    assert len(names(net)) == 2
    assert difference(net) < 1e-4
    assert net[2].weight is net[0].weight
