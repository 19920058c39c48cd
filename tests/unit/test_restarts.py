"""Restarts: who leaves, what is drawn, and whose image is kept, run by run and by hand."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from fsr_lab.attack.input_diversity import InputDiversity
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.restarts import Restarts
from fsr_lab.attack.worst_case import worst_case
from fsr_lab.core.crafting import Policy
from fsr_lab.core.threat import Threat

PGD5 = PGD(threat=Threat(norm="linf", eps=0.05), steps=5, relative_step=0.25, random_start=True)


@pytest.fixture
def images(bumpy):
    """Sixteen images of class 0, all of them right."""
    x, y = torch.rand(16, 3, 8, 8, dtype=torch.float64), torch.zeros(16, dtype=torch.int64)
    assert torch.equal(bumpy(x).argmax(1), y)
    return x, y


def margins(model, x, y):
    logits = model(x)
    others = [torch.cat([row[:label], row[label + 1 :]]).max() for row, label in zip(logits, y, strict=True)]
    return [(row[label] - other).item() for row, label, other in zip(logits, y, others, strict=True)]


@pytest.mark.parametrize(
    "attack",
    [
        PGD5,
        replace(PGD5, threat=Threat(norm="l2", eps=0.5)),
        replace(PGD5, keep="best", momentum=1.0),
        replace(PGD5, random_start=False, diversity=InputDiversity(rate=0.7, probability=0.5, interpolation="nearest")),
    ],
    ids=["linf", "l2", "best", "diverse"],
)
def test_each_run_is_the_attack_on_those_left_drawn_where_the_last_one_stopped(attack, bumpy, images):
    x, y = images
    torch.manual_seed(5)
    found = Restarts(attack=attack, restarts=4)(bumpy, x, y)
    torch.manual_seed(5)
    wanted, smallest, left, sizes = [None] * 16, [float("inf")] * 16, list(range(16)), []
    for _ in range(4):
        sizes.append(len(left))
        x_adv = attack(bumpy, x[left], y[left])
        for row, (index, margin) in enumerate(zip(left, margins(bumpy, x_adv, y[left]), strict=True)):
            if margin < smallest[index]:
                wanted[index], smallest[index] = x_adv[row], margin
        left = [index for index in left if smallest[index] > 0]
    assert torch.equal(found, torch.stack(wanted))
    assert 16 == sizes[0] > sizes[-1] > 0


def test_it_never_fools_fewer_than_one_run_and_more_in_the_end(bumpy, images):
    x, y = images
    counts = []
    for seed in range(10):
        fooled = []
        for attack in (PGD5, *(Restarts(attack=PGD5, restarts=restarts) for restarts in (1, 2, 6))):
            torch.manual_seed(seed)
            fooled.append(bumpy(attack(bumpy, x, y)).argmax(1) != y)
        alone, once, twice, often = fooled
        assert torch.equal(alone, once)
        assert (alone <= twice).all()
        assert (twice <= often).all()
        counts.append((alone.sum().item(), often.sum().item()))
    assert all(one <= six for one, six in counts)
    assert sum(one < six for one, six in counts) > 5


def test_whoever_is_fooled_leaves_and_nobody_left_ends_it():
    x, seen = torch.rand(16, 3, 8, 8), []

    def run(model, x, y):
        seen.append(len(x))
        return x + torch.linspace(-1, 1, len(x), dtype=x.dtype).reshape(-1, 1, 1, 1) * 0.2

    def wrong(model, x, y):
        seen.append(len(x))
        return -x

    def sign(x):
        """Right, which is class 0, above nought only."""
        value = x.mean((1, 2, 3)) - 0.4
        return torch.stack([value, -value], dim=1)

    zero = torch.zeros(16, dtype=torch.int64)
    found = worst_case([run, run, wrong, run], sign, x, zero)
    fooled = run(None, x, zero).mean((1, 2, 3)) <= 0.4
    assert seen[:2] == [16, 16 - fooled.sum().item()]
    assert 0 < fooled.sum() < 16
    assert len(seen) == 4  # `wrong` left nobody to the last one; the fourth entry is this test's own call
    assert (sign(found)[:, 0] <= 0).all()


def test_of_equal_images_the_first_is_kept_and_the_smallest_margin_wins():
    x, y = torch.full((1, 1, 1, 1), 0.5), torch.tensor([0])
    attacks = [lambda model, x, y, shift=shift: x + shift for shift in (0.125, -0.125, -0.25, 0.0)]

    def hill(x):
        height = 1 - (x.flatten(1) - 0.5).abs()
        return torch.cat([height, torch.zeros_like(height)], dim=1)

    assert worst_case(attacks[:2], hill, x, y).item() == 0.625
    assert worst_case(attacks, hill, x, y).item() == 0.25


class WrongInHalves(nn.Module):
    """A network that bfloat16 turns round."""

    def __init__(self):
        super().__init__()
        self.asked = 0

    def forward(self, x):
        value = x.float().mean((1, 2, 3))
        logits = torch.stack([value + 2, -value], dim=1)
        is_half = torch.is_autocast_enabled("cpu")
        self.asked += is_half
        return logits.flip(1) if is_half else logits


def test_who_is_fooled_is_judged_in_float32(batch):
    model = WrongInHalves()
    attack = replace(PGD5, policy=Policy(dtype="bfloat16"))
    Restarts(attack=attack, restarts=3)(model, batch[0], torch.zeros(8, dtype=torch.int64))
    assert model.asked == 3 * 5  # in bfloat16 every sample would be fooled after the first run


def test_what_it_tells_of_itself_is_the_attacks():
    attack = Restarts(attack=PGD5, restarts=2)
    assert (attack.threat, attack.policy, attack.is_random, attack.exact_on_linear) == (
        PGD5.threat, PGD5.policy, True, True,
    )  # fmt: skip
    assert not Restarts(attack=replace(PGD5, random_start=False), restarts=1).is_random


def test_runs_that_cannot_differ_are_refused():
    attack = replace(PGD5, random_start=False)
    with pytest.raises(ValueError, match=r"^2 runs of an attack that draws nothing.*give attack.random_start=true$"):
        Restarts(attack=attack, restarts=2)
    with pytest.raises(ValueError, match="restarts to be a whole number of at least 1, got 0"):
        Restarts(attack=attack, restarts=0)
