import pytest
import torch
from torch import nn

from fsr_lab.core.defense import FeatureDefense
from fsr_lab.core.types import DefenseOutput
from fsr_lab.model.defended import attach
from fsr_lab.model.layout import Layout, layout_of, recognise


@pytest.mark.parametrize("start", [0, 1, 5])
def test_a_token_stands_at_its_row_and_column(start):
    tokens = torch.randn(2, start + 9, 4)
    features = Layout("nlc", start).to_map(tokens)
    assert features.shape == (2, 4, 3, 3)
    for row in range(3):
        for column in range(3):
            assert torch.equal(features[:, :, row, column], tokens[:, start + 3 * row + column])


def test_channels_last_become_first():
    activation = torch.randn(2, 3, 5, 4)
    assert torch.equal(Layout("nhwc").to_map(activation)[:, 1, 2, 4], activation[:, 2, 4, 1])


@pytest.mark.parametrize(
    ("layout", "shape"),
    [
        (Layout(), (2, 4, 3, 5)),
        (Layout("nhwc"), (2, 3, 5, 4)),
        (Layout("nlc"), (2, 9, 4)),
        (Layout("nlc"), (2, 10, 4)),
        (Layout("nlc", 2), (2, 11, 4)),
    ],
)
def test_there_and_back_is_the_same_and_the_prefix_is_untouched(layout, shape):
    activation = torch.randn(shape)
    assert torch.equal(layout.restore(layout.to_map(activation), activation), activation)
    doubled = layout.restore(2 * layout.to_map(activation), activation)
    start = {10: 1, 11: 2}.get(shape[1], 0)
    assert torch.equal(doubled[:, start:], 2 * activation[:, start:])
    assert torch.equal(doubled[:, :start], activation[:, :start])
    assert doubled.is_contiguous()


@pytest.mark.parametrize(
    ("prefix", "length", "side"),
    [
        (None, 16, 4),
        (None, 17, 4),
        (5, 9, 2),  # nine tokens would also make a square, but the network says that five have no place
        (1, 16, 4),  # the class token joins later
    ],
)
def test_how_many_tokens_have_no_place(prefix, length, side):
    assert Layout("nlc", prefix).to_map(torch.zeros(1, length, 2)).shape == (1, 2, side, side)


@pytest.mark.parametrize(("prefix", "length"), [(None, 18), (None, 0), (1, 18), (5, 8), (20, 18)])
def test_tokens_of_no_square_are_refused(prefix, length):
    with pytest.raises(ValueError, match=rf"^{length} tokens, which make no square grid"):
        Layout("nlc", prefix).to_map(torch.zeros(1, length, 2))


def test_an_unknown_layout_gets_its_neighbours():
    with pytest.raises(ValueError, match=r"no layout named 'nhcw'; close names: \['n"):
        layout_of(nn.Identity(), "nhcw")


def test_the_network_says_how_many_tokens_have_no_place():
    net = nn.Identity()
    assert layout_of(net, "nlc") == ("nlc", None)
    net.num_prefix_tokens = 5
    assert layout_of(net, "nlc") == ("nlc", 5)


@pytest.mark.parametrize(
    ("shape", "taller", "is_square", "told"),
    [
        ((6, 4, 4), None, True, "nchw"),
        ((4, 4, 6), None, True, "nhwc"),
        ((4, 4, 6), (8, 4, 6), True, "nhwc"),
        ((4, 4, 4), None, True, None),
        ((4, 4, 4), (4, 8, 4), True, "nchw"),
        ((4, 4, 4), (8, 4, 4), True, "nhwc"),
        ((6, 4, 3), None, False, None),
        ((6, 4, 3), (6, 8, 3), False, "nchw"),
        ((6, 4, 3), (12, 4, 3), False, "nhwc"),
        ((4, 4, 6), (4, 8, 6), True, "nchw"),  # the growth says more than the shape
        ((5, 1, 2), (5, 1, 2), False, None),  # pooled: nothing grows
    ],
)
def test_where_the_channels_are(shape, taller, is_square, told):
    assert recognise(shape, taller, is_square=is_square) == told


class Doubled(FeatureDefense):
    def __init__(self, shape, num_classes):
        super().__init__()
        self.shape = shape

    def forward(self, features, targets=None, *, route=None, want_aux=True):
        assert features.shape[1:] == self.shape
        return DefenseOutput(2 * features, {"mean": features.mean((2, 3))} if want_aux else {})


class Tokens(nn.Module):
    """A class token before four patches."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 6, 4, stride=4)
        self.norm = nn.LayerNorm(6, elementwise_affine=False)
        self.fc = nn.Linear(6, 4)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        tokens = self.norm(torch.cat((torch.ones_like(tokens[:, :1]), tokens), 1))
        return self.fc(tokens[:, :3].sum(1))


@pytest.mark.parametrize("point", ["norm", "norm:in", "norm:instead"])
def test_a_defence_sees_maps_and_the_network_its_tokens(batch, point):
    x = batch[0]
    net = Tokens()
    tokens = net.patches(x).flatten(2).transpose(1, 2)
    tokens = torch.cat((torch.ones_like(tokens[:, :1]), tokens), 1)
    scale = torch.tensor([1.0, 2.0, 2.0, 2.0, 2.0]).view(1, 5, 1)
    passed = {"norm": scale * net.norm(tokens), "norm:in": net.norm(scale * tokens), "norm:instead": scale * tokens}
    wanted = net.fc(passed[point][:, :3].sum(1))
    seen = (net.norm(tokens) if point == "norm" else tokens)[:, 1:].mean(1)
    model = attach(net, {point: Doubled}, (3, 8, 8), 4, layout="nlc")
    torch.testing.assert_close(model(x), wanted)
    out = model.forward_with_aux(x)
    torch.testing.assert_close(out.logits, wanted)
    torch.testing.assert_close(out.aux[point]["mean"], seen)


@pytest.mark.parametrize("layout", ["nlc", "nhwc"])
def test_a_layout_compiles_to_one_graph(batch, layout):
    x = batch[0]
    net = Tokens() if layout == "nlc" else nn.Sequential(Permuted(), nn.Flatten())
    model = attach(net, {"norm" if layout == "nlc" else "0": Doubled}, (3, 8, 8), 4 if layout == "nlc" else 192, layout)
    wanted = model(x)
    # symbolic sizes: the number of tokens is one
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager", dynamic=layout == "nlc")
    torch.testing.assert_close(compiled(x), wanted)


class Permuted(nn.Module):
    def forward(self, x):
        return x.permute(0, 2, 3, 1)
