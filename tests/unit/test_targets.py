"""Targets: which wrong class is chosen, and that steps lead there."""

import pytest
import torch
from torch.nn import functional

from fsr_lab.attack.pgd import PGD
from fsr_lab.core.objective import TargetedCrossEntropy, TargetedMargin
from fsr_lab.core.targets import AnyWrong, Given, Ranked, Towards
from fsr_lab.core.threat import Threat

Z = torch.tensor([[3.0, 0.0, 2.0, 1.0], [0.0, 1.0, 2.0, 3.0], [5.0, 5.0, 5.0, 5.0]])
Y = torch.tensor([0, 2, 1])


def towards(target, loss=None, **options):
    objective = Towards(loss=loss or TargetedCrossEntropy(), target=target)
    given = {"threat": Threat(norm="linf", eps=0.1), "steps": 4, "relative_step": 0.25, "random_start": False}
    return PGD(**given | options, objective=objective)


@pytest.mark.parametrize(
    ("rank", "classes"),
    [(1, [2, 3, 0]), (2, [3, 1, 2]), (3, [1, 0, 3]), (-1, [1, 0, 3]), (-3, [2, 3, 0])],
)
def test_ranks_leave_out_the_true_class_wherever_it_lies(rank, classes):
    assert Ranked(rank=rank)(Z, Y).tolist() == classes


def test_a_given_class_is_everyones_but_its_own_samples():
    assert Given(label=2)(Z, Y).tolist() == [2, 3, 2]  # the second is of class 2, and likeliest class 3 else
    assert Given(label=0)(Z, Y).tolist() == [2, 0, 0]


def test_a_random_class_is_any_wrong_one_alike():
    y = torch.arange(4).repeat(3000)
    target = AnyWrong()(torch.zeros(12000, 4), y)
    counts = torch.stack([target[y == label].bincount(minlength=4) for label in range(4)])
    assert (counts.diagonal() == 0).all()
    others = counts[~torch.eye(4, dtype=torch.bool)]
    assert (others - 1000).abs().max() < 130  # five standard deviations of 26
    torch.manual_seed(1)
    again = AnyWrong()(torch.zeros(12000, 4), y)
    torch.manual_seed(1)
    assert torch.equal(AnyWrong()(torch.zeros(12000, 4), y), again)
    assert not torch.equal(target, again)


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_steps_descend_the_targets_cross_entropy(norm, classifier, batch):
    model, x, y = classifier.eval().double(), batch[0].double(), batch[1]
    target = torch.tensor([1, 2, 3, 0] * 2)  # what Ranked gives is tested above; here it is by hand

    class ByHand(Ranked):
        def __call__(self, clean_logits, y):
            return target

    x_adv = x.clone()
    for _ in range(4):
        image = x_adv.clone().requires_grad_()
        functional.cross_entropy(model(image), target, reduction="sum").backward()
        if norm == "linf":
            x_adv = x_adv - 0.025 * image.grad.sign()
            x_adv = torch.maximum(torch.minimum(x_adv, x + 0.1), x - 0.1).clamp(0, 1)
        else:
            length = image.grad.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
            x_adv = (x_adv - 0.025 * image.grad / length).clamp(0, 1)  # four quarters of eps stay in the ball
    found = towards(ByHand(rank=1), threat=Threat(norm=norm, eps=0.1))(model, x, y)
    torch.testing.assert_close(found, x_adv, atol=1e-12, rtol=0)


@pytest.mark.parametrize("loss", [TargetedCrossEntropy(), TargetedMargin()])
def test_the_target_is_what_the_model_comes_to_say(loss, linear, batch):
    x, y = batch
    for target in (Ranked(rank=1), Ranked(rank=-1), Given(label=3)):
        aim = target(linear(x), y)
        found = towards(target, loss, steps=20, relative_step=0.1, threat=Threat(norm="linf", eps=0.5))(linear, x, y)
        assert (linear(found).argmax(1) == aim).all()


def test_the_target_is_chosen_once_on_the_clean_images(linear, batch):
    calls = []

    class Seen(Ranked):
        def __call__(self, clean_logits, y):
            calls.append(clean_logits)
            return super().__call__(clean_logits, y)

    towards(Seen(rank=1), random_start=True)(linear, *batch)
    assert len(calls) == 1
    assert torch.equal(calls[0], linear(batch[0]))


def test_only_a_drawn_target_is_random():
    assert [towards(target).is_random for target in (Ranked(rank=1), Given(label=0), AnyWrong())] == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("target", [Ranked(rank=4), Ranked(rank=-4), Given(label=4)])
def test_classes_that_there_are_not_are_refused(target, linear, batch):
    with pytest.raises(ValueError, match=r"^expected a (rank among the network's 3 wrong|label below 4)"):
        towards(target)(linear, *batch)


def test_a_rank_of_nought_and_a_negative_label_are_refused():
    with pytest.raises(ValueError, match="rank from 1, the most likely"):
        Ranked(rank=0)
    with pytest.raises(ValueError, match="label to be a whole number of at least 0"):
        Given(label=-1)
