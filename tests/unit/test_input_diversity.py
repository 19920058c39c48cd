"""DI: what is drawn, where the image comes to lie, and how often it passes as it is."""

from collections import Counter

import pytest
import torch

from fsr_lab.attack.input_diversity import InputDiversity
from fsr_lab.attack.pgd import PGD
from fsr_lab.core.threat import Threat


def diversity(**options):
    return InputDiversity(**({"rate": 0.9, "probability": 1.0, "interpolation": "nearest"} | options))


def placed(image):
    """Return where the values lie: (top, left, rows, columns) of an image that has no black pixel of its own."""
    rows, columns = (image[0] > 0).any(1).nonzero().flatten(), (image[0] > 0).any(0).nonzero().flatten()
    return rows[0].item(), columns[0].item(), len(rows), len(columns)


@pytest.mark.parametrize("interpolation", ["nearest", "bilinear"])
def test_sides_and_places_are_those_of_the_protocol(interpolation):
    x = torch.full((2, 3, 32, 32), 0.5)
    found = [diversity(interpolation=interpolation)(x) for _ in range(600)]
    assert all(image.shape == x.shape for image in found)
    drawn = [placed(image[0]) for image in found]
    assert {side for _, _, side, _ in drawn} == {28, 29, 30, 31}
    assert all(rows == columns for _, _, rows, columns in drawn)
    for side in (28, 29, 30, 31):
        for place in (0, 1):  # top, left: every offset but the last one
            assert {word[place] for word in drawn if word[2] == side} == set(range(32 - side))
    share = Counter(side for _, _, side, _ in drawn)
    assert all(100 < count < 200 for count in share.values())  # 150, give or take 10.6
    assert all(torch.equal(image[0], image[1]) for image in found)  # one draw for the batch


def test_the_values_are_the_nearest_pixels():
    x = torch.rand(1, 1, 20, 20) + 0.1
    for _ in range(20):
        image = diversity()(x)[0]
        top, left, rows, columns = placed(image)
        assert rows in (18, 19)
        taken = torch.arange(rows) * 20 // rows
        wanted = torch.zeros(20, 20)
        wanted[top : top + rows, left : left + columns] = x[0, 0][taken][:, taken]
        assert torch.equal(image[0], wanted)


@pytest.mark.parametrize(("probability", "least", "most"), [(0.0, 0, 0), (0.5, 420, 580), (1.0, 1000, 1000)])
def test_it_happens_as_often_as_it_should(probability, least, most):
    x = torch.rand(1, 1, 16, 16)
    changed = sum(not torch.equal(diversity(probability=probability)(x), x) for _ in range(1000))
    assert least <= changed <= most


def test_an_image_may_grow_as_in_the_papers_code():
    sides = set()
    for _ in range(100):
        image = diversity(rate="330/299")(torch.ones(1, 1, 50, 50))
        assert image.shape == (1, 1, 55, 55)
        sides.add(placed(image[0])[2])
    assert sides == {50, 51, 52, 53, 54}


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (5, 2), (40, 20)])
def test_any_shape_keeps_its_size_and_proportions(shape):
    x = torch.ones(1, 2, *shape)
    for _ in range(30):
        image = diversity()(x)
        assert image.shape == x.shape
        _, _, rows, columns = placed(image[0])
        assert columns == max(1, round(rows * shape[1] / shape[0]))
        assert rows >= max(1, int(0.9 * shape[0]))


def test_gradients_return_to_the_pixels_they_came_from():
    x = torch.rand(1, 1, 10, 10, requires_grad=True)
    (gradient,) = torch.autograd.grad(diversity(interpolation="nearest")(x).sum(), x)
    assert gradient.sum().item() == 81  # 9 x 9 pixels were shown
    assert set(gradient.flatten().tolist()) == {0.0, 1.0}


def test_pgd_shows_the_image_through_it(classifier, batch):
    options = {"threat": Threat(norm="linf", eps=8 / 255), "steps": 3, "relative_step": 0.25, "random_start": False}
    plain = PGD(**options)(classifier, *batch)
    assert torch.equal(PGD(**options, diversity=diversity(probability=0.0))(classifier, *batch), plain)
    attack = PGD(**options, diversity=diversity(rate=0.7))
    assert not torch.equal(attack(classifier, *batch), plain)
    assert attack.is_random
    assert not attack.exact_on_linear


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 0}, "rate above 0"),
        ({"probability": 1.5}, "at most 1, got 1.5"),
        ({"interpolation": "bicubic"}, "bicubic"),
    ],
)
def test_values_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        diversity(**options)
