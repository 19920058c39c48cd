"""Auto-PGD beside AutoAttack's own code (pyautoattack), in float64, iterate for iterate; and what is ours alone."""

import copy
import logging
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from fsr_lab.attack.apgd import APGD
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.step_schedule import Pace, checkpoints
from fsr_lab.core import losses
from fsr_lab.core.crafting import Policy
from fsr_lab.core.objective import DLR, CrossEntropy, KLFromClean, TargetedDLR, TargetedMargin
from fsr_lab.core.threat import Threat

THREATS = {"linf": Threat(norm="linf", eps=8 / 255), "l2": Threat(norm="l2", eps=0.3)}
LOSSES = {"ce": CrossEntropy(), "dlr": DLR()}
# signs are equal or not; lengths differ by the 1e-12 that the reference adds to them, and where the losses of two
# iterates are equal but for rounding, a checkpoint may go back to either: they lie some 1e-7 apart
TOLERANCE = {"linf": 1e-9, "l2": 1e-6}


class Recorder:
    """A model that keeps what it is asked, and counts how often with a gradient."""

    def __init__(self, model):
        self.model, self.asked, self.gradients = model, [], 0

    def __call__(self, x):
        self.asked.append(x.detach().clone())  # the reference writes into its iterates afterwards
        self.gradients += x.requires_grad
        return self.model(x)

    @property
    def samples(self):
        return sum(len(x) for x in self.asked)


@pytest.fixture(scope="module")
def trained():
    """A network of six classes after a little adversarial training, and 48 new images, in float64.

    Some images are misclassified, some can be fooled, and some cannot.
    """
    with torch.random.fork_rng():
        torch.manual_seed(0)
        templates = torch.randn(6, 3, 8, 8)
        net = nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(256, 6),
        )  # fmt: skip

        def drawn(count):
            y = torch.randint(6, (count,))
            return (0.5 + 0.07 * templates[y] + 0.15 * torch.randn(count, 3, 8, 8)).clamp(0, 1), y

        attack = PGD(threat=THREATS["linf"], steps=3, relative_step=0.5, random_start=True)
        optimizer = torch.optim.Adam(net.parameters(), lr=1e-2)
        for _ in range(90):
            x, y = drawn(64)
            loss = functional.cross_entropy(net(attack(net, x, y)), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        x, y = drawn(48)
    return net.double(), x.double(), y


@pytest.fixture
def untrained(classifier, batch):
    """A fixed network of four classes with BatchNorm, and images under the labels it gives them, in float64."""
    net = classifier.eval().double()
    with torch.no_grad():
        net[8].weight.mul_(50)
        x = batch[0].double()
        return net, x, net(x).argmax(1)


@pytest.fixture(params=["untrained", "trained"])
def case(request):
    return request.getfixturevalue(request.param)


@pytest.fixture
def reference(monkeypatch):
    """Return the function that runs the published code in float64: (attack class, model, threat, **options)."""
    autopgd = pytest.importorskip("pyautoattack.autopgd_base")
    # it casts images to float32 and counts in the default type: in float64 the two can be compared step by step
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    torch.set_default_dtype(torch.float64)

    def build(name, model, threat, **options):
        norm = {"linf": "Linf", "l2": "L2"}[threat.norm]
        logger = logging.getLogger("reference")  # or it warns, which is an error here
        return getattr(autopgd, name)(model, norm=norm, eps=threat.eps, logger=logger, **options)

    yield build
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def shared_draws(monkeypatch):
    """Let every draw give all samples the same noise, a new one each time; returns the function that starts anew."""
    count = [0]

    def patched(original):
        def draw(like):
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


def wrong(model, x_adv, y):
    with torch.no_grad():
        return model(x_adv).argmax(1) != y


# The rule for the step


def test_checkpoints_of_a_hundred_steps():
    assert checkpoints(100) == {22: 22, 41: 19, 57: 16, 70: 13, 80: 10, 87: 7, 93: 6, 99: 6}


def test_checkpoints_of_few_steps():
    assert checkpoints(5) == {1: 1, 2: 1, 3: 1, 4: 1, 5: 1}


def followed(start, *windows):
    """Return whether each window of losses ends in a halving, of a first step of 8, and the step at the end."""
    pace = Pace.start(torch.tensor([start]), size=8.0)
    halved = []
    for window in windows:
        for loss in window:
            pace = pace.after(torch.tensor([loss]))
        pace = pace.reviewed(len(window), 0.75)
        halved.append(pace.halved.item())
    return halved, pace.size.item()


@pytest.mark.parametrize(
    ("start", "windows", "halved"),
    [
        (1.0, [(2.0, 3.0, 4.0, 5.0)], [False]),  # four rises of four
        (1.0, [(2.0, 3.0, 4.0, 3.5)], [True]),  # three of four is no more than rho
        (1.0, [(2.0, 3.0, 4.0, 5.0), (6.0, 4.0)], [False, True]),
        (1.0, [(2.0, 3.0, 4.0, 5.0), (6.0, 4.0), (7.0, 8.0)], [False, True, False]),
        # ever rising, but the best loss is the start's: halved for that at the second checkpoint, not at the first,
        # and not at the one after a halving
        (9.0, [(1.0, 2.0), (3.0, 4.0)], [False, True]),
        (9.0, [(1.0, 2.0), (3.0, 4.0), (5.0, 6.0), (7.0, 8.0)], [False, True, False, True]),
        # the released code compares the first iterate with 0, not with the start
        (-9.0, [(-4.0, -3.0, -2.0, -1.0)], [True]),
        (9.0, [(4.0, 5.0, 6.0, 7.0)], [False]),
    ],
)
def test_the_step_is_halved_where_progress_stops(start, windows, halved):
    assert followed(start, *windows) == (halved, 8.0 / 2 ** sum(halved))


def test_samples_are_paced_apart():
    pace = Pace.start(torch.tensor([1.0, 1.0]), size=2.0)
    for loss in ([2.0, 2.0], [3.0, 1.0]):
        pace = pace.after(torch.tensor(loss))
    pace = pace.reviewed(2, 0.75)
    assert pace.size.tolist() == [2.0, 1.0]
    assert pace.best.tolist() == [3.0, 2.0]
    assert pace.rows(torch.tensor([1])).size.tolist() == [1.0]


# Beside the reference


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", THREATS)
def test_a_run_is_the_references_iterate_for_iterate(norm, loss, case, reference):
    model, x, y = case
    right = ~wrong(model, x, y)
    x, y = x[right], y[right]
    theirs = Recorder(model)
    attack = reference("APGDAttack", theirs, THREATS[norm], loss=loss)
    attack.init_hyperparam(x)
    torch.manual_seed(3)
    with torch.no_grad():
        x_best, accurate, _, x_fooled = attack.attack_single_run(x, y)
    ours = Recorder(model)
    torch.manual_seed(3)
    found = APGD(threat=THREATS[norm], loss=LOSSES[loss])(ours, x, y)
    tells = torch.ones_like(accurate)
    for mine, other in zip(ours.asked[1:], theirs.asked, strict=True):
        torch.testing.assert_close(mine[tells], other[tells], atol=TOLERANCE[norm], rtol=0)
        image = other.requires_grad_()
        (gradient,) = torch.autograd.grad(LOSSES[loss](model(image), y).sum(), image)
        # DLR is constant where the true class is the third: from there on a sample follows rounding errors
        tells = tells & (gradient.flatten(1).norm(dim=1) > 1e-6)
    assert (accurate & ~tells).sum() == 0
    assert loss == "dlr" or tells.all()
    wanted = torch.where(accurate[:, None, None, None], x_best, x_fooled)
    torch.testing.assert_close(found[tells], wanted[tells], atol=TOLERANCE[norm], rtol=0)
    assert torch.equal(wrong(model, found, y), ~accurate)
    assert len(ours.asked) == 1 + 101  # the clean images, the start and a hundred iterates
    assert len(theirs.asked) == 101
    assert (ours.gradients, theirs.gradients) == (100, 101)


@pytest.mark.parametrize("norm", THREATS)
def test_a_targeted_attack_is_the_references_run_for_run(norm, case, reference, shared_draws):
    model, x, y = case
    num_classes = model(x[:1]).shape[1]
    theirs = Recorder(model)
    attack = reference("APGDAttack_targeted", theirs, THREATS[norm], n_target_classes=num_classes - 1, n_iter=40)
    with torch.no_grad():
        wanted = attack.perturb(x, y)
    shared_draws()
    ours = Recorder(model)
    found = APGD(threat=THREATS[norm], loss=TargetedDLR(), targets=9, steps=40)(ours, x, y)
    # theirs: clean images, then for each target those left, and a run; ours: clean images, then a run, and its points
    runs = range(1, len(theirs.asked), 42)
    for at in runs:
        torch.testing.assert_close(
            ours.asked[at : at + 41], theirs.asked[at + 1 : at + 42], atol=TOLERANCE[norm], rtol=0
        )
    assert len(ours.asked) == len(theirs.asked) == 1 + 42 * len(runs)
    assert len(runs) == num_classes - 1
    assert theirs.gradients - ours.gradients == len(runs)
    fooled = wrong(model, wanted, y)
    assert torch.equal(wrong(model, found, y), fooled)
    torch.testing.assert_close(found[fooled], wanted[fooled], atol=TOLERANCE[norm], rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("norm", THREATS)
def test_in_float32_and_with_an_early_exit_the_reference_fools_the_same(norm, loss, trained):
    autopgd = pytest.importorskip("pyautoattack.autopgd_base")
    model, x, y = copy.deepcopy(trained[0]).float(), trained[1].float(), trained[2]
    right = ~wrong(model, x, y)
    x, y = x[right], y[right]
    attack = autopgd.APGDAttack(
        model, norm={"linf": "Linf", "l2": "L2"}[norm], eps=THREATS[norm].eps, seed=5, loss=loss,
        logger=logging.getLogger("reference"),
    )  # fmt: skip
    fooled = wrong(model, attack.perturb(x, y), y)
    torch.manual_seed(5)
    found = APGD(threat=THREATS[norm], loss=LOSSES[loss], early_exit=True)(model, x, y)
    assert 0 < fooled.sum() < len(y)
    assert torch.equal(wrong(model, found, y), fooled)


def test_averaged_gradients_are_the_references(reference, untrained):
    model, x, y = untrained

    class Shaken(Recorder):
        """Other weights in every forward, the same ones in every run."""

        def __call__(self, image):
            noise = torch.randn(4, generator=torch.Generator().manual_seed(len(self.asked)), dtype=torch.float64)
            return super().__call__(image) * (1 + noise)

    theirs, ours = Shaken(model), Shaken(model)
    attack = reference("APGDAttack", theirs, THREATS["linf"], eot_iter=3, n_iter=20)
    attack.init_hyperparam(x)
    theirs.asked.append(x)  # ours begins with the clean images
    torch.manual_seed(3)
    with torch.no_grad():
        attack.attack_single_run(x, y)
    torch.manual_seed(3)
    APGD(threat=THREATS["linf"], eot=3, steps=20)(ours, x, ours.model(x).argmax(1))
    shared = 1 + 3 * 20 + 1  # the last iterate's gradient moves nobody: we look at it once
    torch.testing.assert_close(ours.asked[:shared], theirs.asked[:shared], atol=1e-9, rtol=0)
    assert (ours.gradients, theirs.gradients) == (3 * 20, 3 * 21)


def test_the_trained_case_holds_all_three_kinds(trained):
    model, x, y = trained
    clean = wrong(model, x, y)
    found = wrong(model, APGD(threat=THREATS["linf"])(model, x, y), y)
    assert 0 < clean.sum() < found.sum() < len(y)


# What is ours


@pytest.mark.parametrize("norm", THREATS)
def test_a_linear_models_worst_point_is_found(norm, batch):
    x = 0.3 + 0.4 * batch[0]  # out of reach of the bounds 0 and 1
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2))
    y = model(x).argmax(1)
    weight = model[1].weight.detach().reshape(2, 3, 8, 8)
    direction = weight[1 - y] - weight[y]
    length = direction.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    threat = Threat(norm=norm, eps={"linf": 0.02, "l2": 0.2}[norm])
    worst = x + threat.eps * (direction.sign() if norm == "linf" else direction / length)
    torch.testing.assert_close(APGD(threat=threat)(model, x, y), worst, atol=1e-4, rtol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_of_a_sample_not_fooled_the_highest_loss_seen_is_returned(loss, trained):
    model, x, y = trained
    spy = Recorder(model)
    right = ~wrong(model, x, y)
    x, y = x[right], y[right]
    found = APGD(threat=THREATS["linf"], loss=LOSSES[loss], steps=30)(spy, x, y)
    with torch.no_grad():
        seen = torch.stack([LOSSES[loss](model(at), y) for at in spy.asked[1:]])
        value = LOSSES[loss](model(found), y)
    kept = ~wrong(model, found, y)
    assert kept.sum() > 5
    torch.testing.assert_close(value[kept], seen.amax(0)[kept], atol=1e-12, rtol=0)
    assert (seen[0][kept] < value[kept]).all()


def test_whom_one_target_fools_the_next_one_skips(trained):
    model, x, y = trained
    spy = Recorder(model)
    APGD(threat=THREATS["linf"], loss=TargetedDLR(), targets=3, steps=10)(spy, x, y)
    left = [~wrong(model, x, y)]
    # after each run its points are judged: the twelfth forward of each
    for run in range(3):
        points = spy.asked[12 * (run + 1)]
        assert len(points) == len(spy.asked[12 * run + 1]) == left[-1].sum()
        now = left[-1].clone()
        now[left[-1]] = ~wrong(model, points, y[left[-1]])
        left.append(now)
    assert len(spy.asked) == 1 + 3 * 12
    assert left[0].sum() > left[1].sum() > left[3].sum() > 0


def test_of_several_runs_the_smallest_margin_is_kept(trained):
    model, x, y = trained
    spy = Recorder(model)
    found = APGD(threat=THREATS["linf"], restarts=3, steps=5)(spy, x, y)
    kept = ~wrong(model, found, y)
    asked = spy.asked[7::7]
    assert len(asked) == 3
    # those that are right to the end were in every run
    alive, margins = ~wrong(model, x, y), []
    for points in asked:
        margin = torch.full((len(y),), torch.nan, dtype=torch.float64)
        margin[alive] = losses.margin(model(points), y[alive]).detach()
        margins.append(margin)
        alive = alive & ~(margin <= 0)
    assert torch.equal(alive, kept)
    margin = losses.margin(model(found), y).detach()
    torch.testing.assert_close(margin[kept], torch.stack(margins).amin(0)[kept], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "options", [{}, {"loss": DLR()}, {"loss": TargetedDLR(), "targets": 9}, {"restarts": 2}], ids=str
)
@pytest.mark.parametrize("norm", THREATS)
def test_an_early_exit_saves_passes_and_changes_no_outcome(norm, options, trained):
    model, x, y = trained
    attack = APGD(threat=THREATS[norm], steps=35, **options)
    found, spent = [], []
    for way in (attack, replace(attack, early_exit=True)):
        torch.manual_seed(2)
        spy = Recorder(model)
        found.append(way(spy, x, y))
        spent.append(spy.samples)
    fooled = wrong(model, found[0], y)
    assert torch.equal(wrong(model, found[1], y), fooled)
    torch.testing.assert_close(found[1][~fooled], found[0][~fooled], atol=TOLERANCE[norm], rtol=0)
    assert spent[1] < 0.95 * spent[0]


def test_an_early_exit_ends_a_run_of_which_nobody_is_left(linear, batch):
    x = batch[0]
    y = linear(x).argmax(1)
    spy = Recorder(linear)
    attack = APGD(threat=Threat(norm="linf", eps=0.5), early_exit=True)
    assert wrong(linear, attack(spy, x, y), y).all()
    assert len(spy.asked) == 1 + 11


def test_who_is_left_changes_no_draw(trained):
    model, x, y = trained
    attack = APGD(threat=THREATS["linf"], steps=5)
    found = []
    for first in (model(x[:1]).argmax(1), model(x[:1]).argmin(1)):
        torch.manual_seed(4)
        found.append(attack(model, x, torch.cat([first, y[1:]])))
    torch.testing.assert_close(found[0][1:], found[1][1:], atol=1e-9, rtol=0)
    assert not torch.equal(found[0][0], x[0])
    assert torch.equal(found[1][0], x[0])  # wrong from the beginning: left as it is


class Deceived:
    """Two rivals of class 0: the likelier one, 1, is out of reach, and 2 is not; in bfloat16 all seems lost at once."""

    def __call__(self, x):
        level = x.flatten(1).mean(1)
        zero = torch.zeros_like(level)
        if torch.is_autocast_enabled("cpu"):
            zero = zero - 100
        return torch.stack([1 + zero, 0 * level + 0.5, 10 * level - 5, 0 * level - 9], dim=1)


@pytest.mark.parametrize("early_exit", [False, True])
def test_a_sample_that_bfloat16_alone_gets_wrong_is_not_lost(early_exit):
    x, y = torch.full((3, 3, 4, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    policy = Policy(dtype="bfloat16")
    attack = APGD(
        threat=Threat(norm="linf", eps=0.2), loss=TargetedMargin(), targets=3, steps=20, policy=policy,
        early_exit=early_exit,
    )  # fmt: skip
    model = Deceived()
    assert wrong(model, attack(model, x, y), y).all()


def test_a_sample_that_bfloat16_alone_gets_wrong_stays_to_the_end():
    x, y = torch.full((3, 3, 4, 4), 0.5), torch.zeros(3, dtype=torch.int64)
    attack = APGD(
        threat=Threat(norm="linf", eps=0.02), loss=TargetedMargin(), targets=1, steps=40, early_exit=True,
        policy=Policy(dtype="bfloat16"),
    )  # fmt: skip
    spy = Recorder(Deceived())
    attack(spy, x, y)
    assert spy.gradients == 40


@pytest.mark.parametrize("options", [{}, {"loss": TargetedDLR(), "targets": 9}], ids=str)
def test_bfloat16_fools_as_many(options, trained):
    model, x, y = copy.deepcopy(trained[0]).float(), trained[1].float(), trained[2]
    attack = APGD(threat=THREATS["linf"], early_exit=True, **options)
    fast = replace(attack, policy=Policy(dtype="bfloat16", channels_last=True))
    fooled = [wrong(model, way(model, x, y), y).sum().item() for way in (attack, fast)]
    assert fooled[1] >= fooled[0] - 1


class Noisy(nn.Module):
    """A linear model whose weights are drawn anew in every noisy forward."""

    training_noise = True

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 192))
        self.asked = []

    def forward(self, x):
        self.asked.append(x.detach())
        weight = self.weight + torch.randn(4, 192) if self.training else self.weight
        return x.flatten(1) @ weight.T


def test_eot_averages_gradients_over_noisy_forwards():
    model, x = Noisy(), 0.3 + 0.4 * torch.rand(5, 3, 8, 8)
    y = model.eval()(x).argmax(1)
    attack = APGD(threat=THREATS["l2"], eot=6, steps=2, random_start=False)
    model.asked.clear()
    torch.manual_seed(9)
    attack(model, x, y)
    asked = model.asked[: 1 + 6 + 6 + 1]
    assert len(asked) == 14
    assert len(model.asked) <= 15  # whom a draw fooled, the deployed model judges
    torch.manual_seed(9)
    image = x.clone().requires_grad_()
    total = sum(
        functional.cross_entropy(image.flatten(1) @ (model.weight.detach() + torch.randn(4, 192)).T, y, reduction="sum")
        for _ in range(6)
    )
    (gradient,) = torch.autograd.grad(total, image)
    wanted = x + 0.3 * gradient / gradient.flatten(1).norm(dim=1).reshape(-1, 1, 1, 1)
    assert all(torch.equal(at, x) for at in asked[:7])
    assert all(torch.equal(at, asked[7]) for at in asked[8:13])
    torch.testing.assert_close(asked[7], wanted, atol=1e-5, rtol=0)


def test_noise_is_repeated_by_a_seed():
    model, x = Noisy().eval(), 0.3 + 0.4 * torch.rand(5, 3, 8, 8)
    y = model(x).argmax(1)
    attack = APGD(threat=THREATS["linf"], eot=3, steps=5, random_start=False)
    found = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        found.append(attack(model, x, y))
    assert attack.is_random
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_targets_end_with_the_classes(untrained):
    model, x, y = untrained
    spy = Recorder(model)
    APGD(threat=Threat(norm="linf", eps=1e-6), loss=TargetedDLR(), targets=9, steps=2)(spy, x, y)
    assert len(spy.asked) == 1 + 3 * 4


def test_three_classes_are_too_few_for_the_targeted_dlr(batch):
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    y = model(batch[0]).argmax(1)
    with pytest.raises(ValueError, match="at least 4 classes for targeted dlr, got 3; take the loss TargetedMargin"):
        APGD(threat=THREATS["linf"], loss=TargetedDLR(), targets=9)(model, batch[0], y)
    APGD(threat=THREATS["linf"], loss=TargetedMargin(), targets=9, steps=2)(model, batch[0], y)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "expected steps to be a whole number of at least 1, got 0"),
        ({"restarts": 0}, "expected restarts"),
        ({"targets": -1}, "expected targets"),
        ({"eot": 0}, "expected eot"),
        ({"rho": -1}, "of at least 0"),
        ({"targets": 9}, r"CrossEntropy\(\) aims at no class: set targets=0"),
        ({"loss": TargetedDLR()}, r"TargetedDLR\(\) needs classes to aim at: set targets"),
        ({"loss": KLFromClean()}, "no loss that compares with clean logits"),
        ({"eot": 2, "early_exit": True}, "early_exit would let a sample go for one lucky draw"),
    ],
)
def test_values_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        APGD(threat=THREATS["linf"], **options)
