import pytest
import torch
from torch import nn

from fsr_lab.core.types import FeatureShape
from fsr_lab.model.layout import Layout
from fsr_lab.model.points import Point, feature_info, feature_points, find_module, inspect_points, parse_point
from fsr_lab.model.resnet import resnet18


class Net(nn.Module):
    """What goes wrong at points: a shared module, one that is skipped, one that gives no feature map."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, stride=2)
        self.relu = nn.ReLU()
        self.pair = nn.Module()
        self.pair.forward = lambda x: (x, x)
        self.unused = nn.Conv2d(6, 6, 3)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        features, _ = self.pair(self.relu(self.relu(self.conv(x))))
        return self.fc(features.mean((2, 3)))


@pytest.mark.parametrize(
    ("text", "point"),
    [
        ("layer4", Point("layer4", "out")),
        ("layer4.1:in", Point("layer4.1", "in")),
        ("relu:instead", Point("relu", "instead")),
    ],
)
def test_a_point_is_a_module_and_a_place(text, point):
    assert parse_point(text) == point


@pytest.mark.parametrize("text", ["layer4:inn", "layer4:out", "layer4:", "layer4:in:in"])
def test_an_unknown_place_is_refused(text):
    with pytest.raises(ValueError, match=r"no place named .*, in point") as caught:
        parse_point(text)
    assert repr(text) in str(caught.value)


def test_a_layer_that_does_not_exist_gets_its_neighbours():
    net = resnet18(width=2)
    assert find_module(net, "layer4.1:in") is net.layer4[1]
    with pytest.raises(ValueError, match=r"^no layer named 'layr4' in ResNet; close names: \['layer4', ") as caught:
        find_module(net, "layr4")
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="no layer named '' in ResNet"):
        find_module(net, "")


def test_shapes_are_those_of_a_forward():
    points = ["conv1", "layer1", "layer2.0.relu1", "layer3:in", "layer4", "avgpool:in", "avgpool", "avgpool:instead"]
    found = inspect_points(resnet18(width=4), points, (3, 32, 32))
    assert found == {
        "conv1": (4, 32, 32),
        "layer1": (4, 32, 32),
        "layer2.0.relu1": (8, 16, 16),
        "layer3:in": (8, 16, 16),
        "layer4": (32, 4, 4),
        "avgpool:in": (32, 4, 4),
        "avgpool": (32, 1, 1),
        "avgpool:instead": (32, 4, 4),  # what stands instead of a module gets that module's input
    }
    assert all(isinstance(shape, FeatureShape) for shape in found.values())


def test_looking_changes_nothing_and_computes_nothing():
    net = resnet18(width=4).train()
    ran = []
    net.conv1.register_forward_hook(lambda module, inputs, output: ran.append(output.device.type))
    hooks = [len(module._forward_hooks) for module in net.modules()]
    values = [value.clone() for value in (*net.parameters(), *net.buffers())]
    state = torch.get_rng_state()
    inspect_points(net, ["layer4"], (3, 8, 8))
    assert ran == ["meta"]
    assert [len(module._forward_hooks) for module in net.modules()] == hooks
    assert all(torch.equal(a, b) for a, b in zip((*net.parameters(), *net.buffers()), values, strict=True))
    assert {value.device.type for value in (*net.parameters(), *net.buffers())} == {"cpu"}
    assert all(module.training for module in net.modules())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ("relu", "expected the module at 'relu' to run once per forward, got 2 runs; tap a module that runs once"),
        ("unused", "'unused' to run once per forward, got 0 runs; .*, or the input of the next one: NAME:in"),
        ("fc", r"expected 'fc' to give a \(C, H, W\) activation, got \(4,\); tap an earlier layer"),
        ("fc:in", r"expected 'fc:in' to give a \(C, H, W\) activation, got \(6,\)"),
        ("pair", r"expected 'pair' to give a \(C, H, W\) activation, got tuple"),
    ],
)
def test_a_point_that_carries_no_feature_map_is_refused(point, message):
    with pytest.raises(ValueError, match=message) as caught:
        inspect_points(Net(), [point], (3, 8, 8))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 2, 2)])
def test_images_that_the_network_cannot_take_are_named(shape):
    with pytest.raises(ValueError, match=r"; set image_shape, and the model's in_channels, to the data's") as caught:
        inspect_points(Net(), ["conv"], shape)
    assert str(caught.value).startswith(f"Net does not take images of shape {shape}: ")
    assert "\n" not in str(caught.value)


def test_tied_weights_are_no_obstacle():
    net = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1))
    net[1].weight = net[0].weight
    assert inspect_points(net, ["1"], (3, 5, 7)) == {"1": (3, 5, 7)}


def test_a_layer_without_neighbours_gets_the_networks_parts():
    with pytest.raises(
        ValueError, match=r"no layer named 'qqq' in Net; its parts are: \['conv', 'relu', 'pair', "
    ) as caught:
        find_module(Net(), "qqq")
    assert "F.relu" not in str(caught.value)


@pytest.mark.parametrize("name", ["conv.relu", "act", "block.relu3"])
def test_an_activation_without_a_module_is_tapped_at_the_next_input(name):
    with pytest.raises(ValueError, match=r"no layer named .* calls the function, F\.relu, tap .*: NAME:in$") as caught:
        find_module(Net(), name)
    assert "\n" not in str(caught.value)


def test_a_shared_module_in_a_block_gets_the_blocks_name():
    net = nn.Sequential()
    net.add_module("block", Net())
    with pytest.raises(
        ValueError, match=r"such as the block around it, 'block', or the input of the next one: NAME:in"
    ):
        inspect_points(net, ["block.relu"], (3, 8, 8))


class ChannelsLast(nn.Module):
    """Gives (H, W, C) from `last`, (C, H, W) from `first` and (L, C) from `tokens`."""

    def __init__(self, channels=6):
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1, stride=2)
        self.last, self.tokens = nn.Identity(), nn.Identity()
        self.fc = nn.Linear(channels, 4)

    def forward(self, x):
        features = self.last(self.first(x).permute(0, 2, 3, 1))
        return self.fc(self.tokens(features.flatten(1, 2)).mean(1))


# squares of other sides than the channels; of the same; and images that are no squares
@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 12, 12), (3, 12, 8), (3, 8, 12)])
def test_channels_that_are_elsewhere_are_noticed(shape):
    net = ChannelsLast()
    _, h, w = shape
    assert inspect_points(net, ["first"], shape) == {"first": (6, h // 2, w // 2)}
    found = inspect_points(net, ["last", "last:in"], shape, layout=Layout("nhwc"))
    assert found == dict.fromkeys(("last", "last:in"), (6, h // 2, w // 2))
    with pytest.raises(ValueError, match=r"laid out as nchw, got \(.*, 6\) with the channels last; set layout=nhwc"):
        inspect_points(net, ["last"], shape)
    with pytest.raises(ValueError, match=r"laid out as nhwc, got \(6, .*\) with the channels first; set layout=nchw"):
        inspect_points(net, ["last", "first"], shape, layout=Layout("nhwc"))


def test_a_network_of_one_image_size_is_judged_by_its_square():
    class Fixed(ChannelsLast):
        def forward(self, x):
            torch._assert(x.shape[2] == 8, "images are 8 high")
            return super().forward(x)

    assert inspect_points(Fixed(), ["first"], (3, 8, 8)) == {"first": (6, 4, 4)}
    with pytest.raises(ValueError, match="with the channels last"):
        inspect_points(Fixed(), ["last"], (3, 8, 8))
    with pytest.raises(ValueError, match=r"^Fixed does not take images of shape \(3, 9, 9\): images are 8 high; "):
        inspect_points(Fixed(), ["first"], (3, 9, 9))


def test_tokens_need_their_layout():
    with pytest.raises(ValueError, match=r"\(C, H, W\) activation, got \(16, 6\); set layout=nlc for tokens, or tap"):
        inspect_points(ChannelsLast(), ["tokens"], (3, 8, 8))
    assert inspect_points(ChannelsLast(), ["tokens"], (3, 8, 8), layout=Layout("nlc")) == {"tokens": (6, 4, 4)}
    with pytest.raises(ValueError, match="expected 'tokens' to give a grid of tokens, got 24 tokens, which make no"):
        inspect_points(ChannelsLast(), ["tokens"], (3, 12, 8), layout=Layout("nlc"))
    with pytest.raises(ValueError, match=r"expected 'last' to give a \(L, C\) activation, got \(4, 4, 6\)"):
        inspect_points(ChannelsLast(), ["last"], (3, 8, 8), layout=Layout("nlc"))


def test_what_a_network_declares_of_its_channels_is_held_against_them():
    net = ChannelsLast(channels=4)  # 4 x 4 x 4: neither shape nor image tells
    net.feature_info = [{"module": "first", "num_chs": 4}, {"module": "last", "num_chs": 5, "reduction": 2}]
    assert inspect_points(net, ["first"], (3, 8, 8)) == {"first": (4, 4, 4)}
    with pytest.raises(
        ValueError, match=r"expected 'last' to give 5 channels, as ChannelsLast declares, got \(4, 4, 4\)"
    ):
        inspect_points(net, ["last"], (3, 8, 8), layout=Layout("nhwc"))
    assert [info["module"] for info in feature_info(net)] == ["first", "last"]
    assert feature_info(Net()) == []


def test_layers_worth_defending_are_named():
    assert feature_points(resnet18(width=2), (3, 32, 32)) == [
        "layer3.1", "layer3", "layer4.0", "layer4.1", "layer4", "avgpool",
    ]  # fmt: skip
    assert feature_points(Net(), (3, 8, 8)) == ["conv"]  # not the one that runs twice
    assert feature_points(Net(), (1, 8, 8)) == []
