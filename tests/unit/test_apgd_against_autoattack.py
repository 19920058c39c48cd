"""Auto-PGD beside AutoAttack's own code (pyautoattack), in float64: who is fooled, and iterate for iterate.

Who is fooled is compared exactly, sample by sample. Points are compared up to what the reference itself leaves to
rounding errors:

- Past the decision boundary a DLR loss is steep where logits come close to each other, and constant where the true
  class is the third, so that its gradient there is a rounding error. The 1e-12 that the reference adds to the lengths
  it divides by, or the last bit of a loss, may then grow to anything. Whoever is there is fooled and stays so: with
  these losses a sample's iterates are compared up to the first misclassified one. With cross-entropy all are.
- Near a maximum the losses of two iterates are equal but for rounding, and a checkpoint goes back to either, or counts
  a rise or none. Where a loss is flat to 1e-16 the iterates lie some 1e-7 apart, hence the TOLERANCE for L2. Linf goes
  from corner to corner.
"""

import copy
import logging
from itertools import product

import pytest
import torch
from torch import nn

from fsr_lab.attack.apgd import APGD
from fsr_lab.core.objective import DLR, CrossEntropy, OnLogits, TargetedDLR
from fsr_lab.core.targets import Ranked, Towards
from fsr_lab.core.threat import Threat

autopgd = pytest.importorskip("pyautoattack.autopgd_base")

THREATS = {"linf": Threat(norm="linf", eps=8 / 255), "l2": Threat(norm="l2", eps=0.3)}
TOLERANCE = {"linf": 1e-9, "l2": 1e-6}
LOSSES = {"ce": CrossEntropy(), "dlr": DLR()}
TARGETED = Towards(loss=TargetedDLR(), target=Ranked(rank=1))
ATTACKS = {
    "ce": ({}, "APGDAttack", {"loss": "ce"}),
    "ce twice": ({"restarts": 2}, "APGDAttack", {"loss": "ce", "n_restarts": 2}),
    "dlr": ({"objective": OnLogits(DLR())}, "APGDAttack", {"loss": "dlr"}),
    "t": ({"objective": TARGETED, "targets": 9}, "APGDAttack_targeted", {}),
}


@pytest.fixture
def untrained(classifier):
    """A fixed network of four classes with BatchNorm, and images under the labels it gives them."""
    net = classifier.eval().double()
    x = torch.rand(24, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        net[8].weight.mul_(50)
        net[8].bias.sub_(net(x).mean(0))  # or it sees one class in all noise, and no attack changes that
        return net, x, net(x).argmax(1)


def smooth(num_classes):
    """A fixed network without ReLU, and images under the labels it gives them."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 12), nn.Tanh(), nn.Linear(12, num_classes)).double()
    x = torch.rand(24, 3, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        return net, x, net(x).argmax(1)


@pytest.fixture
def network(request):
    """A network by its name, with images and labels."""
    few = {"two classes": 2, "three classes": 3}
    return smooth(few[request.param]) if request.param in few else request.getfixturevalue(request.param)


@pytest.fixture
def reference(monkeypatch):
    """Return the function that sets up the published code in float64: (attack class, model, threat, **options)."""
    # it casts images to float32 and counts in the default type: in float64 the two can be compared step by step
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)
    yield published
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def shared_draws(monkeypatch):
    """Let every draw give all samples the same noise, a new one each time; returns the function that starts anew.

    The reference draws starts for the samples left, Auto-PGD for all: this makes them the same.
    """
    count = [0]

    def patched(original):
        def draw(like, **_):
            shape = getattr(like, "shape", like)
            count[0] += 1
            generator = torch.Generator().manual_seed(count[0])
            return original(1, *shape[1:], generator=generator, dtype=torch.float64).expand(shape).clone()

        return draw

    for name in ("rand", "randn"):
        draw = patched(getattr(torch, name))
        monkeypatch.setattr(torch, name, draw)
        monkeypatch.setattr(torch, f"{name}_like", draw)
    return lambda: count.__setitem__(0, 0)


def published(name, model, threat, **options):
    norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
    logger = logging.getLogger("reference")  # or it warns, which is an error here
    return getattr(autopgd, name)(model, norm=norm, eps=threat.eps, logger=logger, **options)


def wrong(model, x_adv, y):
    with torch.no_grad():
        return model(x_adv).argmax(1) != y


def compare(ours, theirs, model, y, norm, *, to_the_end):
    """Compare the iterates of one run, of each sample all or those to the first misclassified one."""
    compared = torch.ones_like(y, dtype=torch.bool)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine[compared], other[compared], atol=TOLERANCE[norm], rtol=0)
        compared = compared & (to_the_end | ~wrong(model, other, y))


@pytest.mark.parametrize(
    ("network", "attack"),
    [
        ("two classes", "ce"),
        ("three classes", "ce"),
        ("three classes", "dlr"),
        *product(("untrained", "trained"), ("ce", "dlr", "t")),
        ("trained", "ce twice"),
    ],
    indirect=["network"],
)
@pytest.mark.parametrize("norm", THREATS)
def test_the_same_samples_are_fooled(norm, attack, network, reference, shared_draws):
    model, x, y = network
    options, name, theirs = ATTACKS[attack]
    if attack == "t":
        theirs = {"n_target_classes": model(x[:1]).shape[1] - 1}  # it breaks where there are fewer than it asks for
    with torch.no_grad():
        wanted = reference(name, model, THREATS[norm], **theirs).perturb(x, y)
    shared_draws()
    found = APGD(threat=THREATS[norm], early_exit=True, **options)(model, x, y)
    fooled = wrong(model, wanted, y)
    assert 0 < fooled.sum() < len(y)
    assert wrong(model, found, y).tolist() == fooled.tolist()


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("network", ["untrained", "trained"], indirect=True)
def test_a_run_is_the_references_iterate_for_iterate(norm, loss, network, reference, recorder):
    model, x, y = network
    right = ~wrong(model, x, y)
    x, y = x[right], y[right]
    theirs = recorder(model)
    attack = reference("APGDAttack", theirs, THREATS[norm], loss=loss)
    attack.init_hyperparam(x)
    torch.manual_seed(3)
    with torch.no_grad():
        x_best, accurate, _, x_fooled = attack.attack_single_run(x, y)
    ours = recorder(model)
    torch.manual_seed(3)
    found = APGD(threat=THREATS[norm], objective=OnLogits(LOSSES[loss]))(ours, x, y)
    compare(ours.asked[1:], theirs.asked, model, y, norm, to_the_end=loss == "ce")
    if loss == "ce":
        wanted = torch.where(accurate[:, None, None, None], x_best, x_fooled)
        torch.testing.assert_close(found, wanted, atol=TOLERANCE[norm], rtol=0)
    assert torch.equal(wrong(model, found, y), ~accurate)
    assert len(ours.asked) == 1 + 101  # the clean images, the start and a hundred iterates
    assert len(theirs.asked) == 101
    assert (ours.gradients, theirs.gradients) == (100, 101)


@pytest.mark.parametrize("norm", THREATS)
@pytest.mark.parametrize("network", ["untrained", "trained"], indirect=True)
def test_a_targeted_attack_is_the_references_run_for_run(norm, network, reference, shared_draws, recorder):
    model, x, y = network
    num_classes = model(x[:1]).shape[1]
    theirs = recorder(model)
    attack = reference("APGDAttack_targeted", theirs, THREATS[norm], n_target_classes=num_classes - 1, n_iter=40)
    with torch.no_grad():
        wanted = attack.perturb(x, y)
    shared_draws()
    ours = recorder(model)
    found = APGD(threat=THREATS[norm], objective=TARGETED, targets=9, steps=40)(ours, x, y)
    # theirs: clean images, then for each target those left, and a run; ours: clean images, then a run, and its points
    runs = range(1, len(theirs.asked), 42)
    left = ~wrong(model, x, y)
    for at in runs:
        points = theirs.asked[at + 1 : at + 42]
        assert torch.equal(theirs.asked[at], x[left])
        compare(ours.asked[at : at + 41], points, model, y[left], norm, to_the_end=False)
        left = left.index_put((left,), ~torch.stack([wrong(model, point, y[left]) for point in points]).any(0))
    assert torch.equal(left, ~wrong(model, wanted, y))
    assert torch.equal(left, ~wrong(model, found, y))
    assert len(ours.asked) == len(theirs.asked) == 1 + 42 * len(runs)
    assert len(runs) == num_classes - 1
    assert theirs.gradients - ours.gradients == len(runs)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", THREATS)
def test_the_published_code_as_it_is_fools_the_same_in_float32(norm, loss, trained):
    model, x, y = copy.deepcopy(trained[0]).float(), trained[1].float(), trained[2]
    right = ~wrong(model, x, y)
    x, y = x[right], y[right]
    attack = published("APGDAttack", model, THREATS[norm], seed=5, loss=loss)
    fooled = wrong(model, attack.perturb(x, y), y)
    torch.manual_seed(5)
    found = APGD(threat=THREATS[norm], objective=OnLogits(LOSSES[loss]), early_exit=True)(model, x, y)
    assert 0 < fooled.sum() < len(y)
    # a sample on the brink may fall to either side where sums of float32 are rounded in another order
    assert (wrong(model, found, y) != fooled).sum() <= 1


def test_averaged_gradients_are_the_references(untrained, reference, recorder):
    model, x, _ = untrained

    class Shaken(recorder):
        """Other logits in every forward, the same ones in every run."""

        def __call__(self, image):
            noise = torch.randn(4, generator=torch.Generator().manual_seed(len(self.asked)), dtype=torch.float64)
            return super().__call__(image) * (1 + noise)

    theirs, ours = Shaken(model), Shaken(model)
    y = Shaken(model)(x).argmax(1)  # right in the forward that ours begins with
    attack = reference("APGDAttack", theirs, THREATS["linf"], eot_iter=3, n_iter=20)
    attack.init_hyperparam(x)
    theirs.asked.append(x)  # ours begins with the clean images
    torch.manual_seed(3)
    with torch.no_grad():
        attack.attack_single_run(x, y)
    torch.manual_seed(3)
    APGD(threat=THREATS["linf"], eot=3, steps=20)(ours, x, y)
    shared = 1 + 3 * 20 + 1  # the last iterate's gradient moves nobody: we look at it once
    torch.testing.assert_close(ours.asked[:shared], theirs.asked[:shared], atol=1e-9, rtol=0)
    assert (ours.gradients, theirs.gradients) == (3 * 20, 3 * 21)
