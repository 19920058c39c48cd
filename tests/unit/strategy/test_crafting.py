"""What strategies craft, and what of it reaches the losses."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn import functional

from fsr_lab.attack.pgd import PGD
from fsr_lab.core.defense import FeatureDefense
from fsr_lab.core.objective import KLFromClean, OnLogits, TargetedCrossEntropy
from fsr_lab.core.targets import Ranked, Towards
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Crafted, DefenseOutput, Progress
from fsr_lab.defense.fsr import FSR
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN
from fsr_lab.strategy.alp import ALP
from fsr_lab.strategy.at import AT
from fsr_lab.strategy.base import aimed_at
from fsr_lab.strategy.cat import CAT
from fsr_lab.strategy.fat import FAT
from fsr_lab.strategy.mart import MART
from fsr_lab.strategy.s2o import S2O
from fsr_lab.strategy.trades import TRADES

LINF = Threat(norm="linf", eps=0.1)
ATTACK = PGD(threat=LINF, steps=4, relative_step=0.25, random_start=False)
FIRST, LAST = Progress(0, 10, 0), Progress(9, 10, 0)


class Probed(FeatureDefense):
    """Counts its passes, adds labels' need and an attack term: what CAS and CIFS ask of the house."""

    def __init__(self, shape, num_classes):
        super().__init__()
        self.probe = nn.Linear(shape.channels, num_classes)
        self.passes = []

    def forward(self, features, targets=None, *, route=None, want_aux=True):
        self.passes.append((self.training, targets is not None, want_aux))
        aux = {"logits": self.probe(features.mean((2, 3)))} if want_aux else {}
        return DefenseOutput(features, aux)

    def auxiliary_loss(self, adv, y, point, *, clean, criterion):
        clean = None if clean is None else clean.aux[point]["logits"]
        return {f"aux_{name}": 2 * value for name, value in criterion(adv.aux[point]["logits"], clean, y).items()}

    def attack_terms(self, adv_aux, y, clean_aux, loss):
        return 2 * loss(adv_aux["logits"], y, None if clean_aux is None else clean_aux["logits"])


def network(defense=FSR):
    return attach(TinyCNN(num_classes=4, batch_norm=True), {"block2": defense}, (3, 8, 8), 4).train()


def forwards_of(model):
    """Count the backbone's passes, and how large their batches are."""
    sizes = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
    return sizes


@pytest.mark.parametrize(
    ("strategy", "sizes"),
    [
        (AT(attack=ATTACK), [8] * 4 + [8]),
        (TRADES(attack=ATTACK), [8] * 4 + [8, 8]),
        (TRADES(attack=replace(ATTACK, objective=OnLogits(KLFromClean()))), [8] + [8] * 4 + [8, 8]),
        (MART(attack=ATTACK), [8] * 4 + [8, 8]),
        (TRADES(attack=ATTACK, concat=True), [8] * 4 + [16]),
        (ALP(attack=ATTACK), [8] * 4 + [16]),
        (S2O(base=AT(attack=ATTACK)), [8] * 4 + [8, 8]),
        (S2O(base=ALP(attack=ATTACK)), [8] * 4 + [16]),
    ],
    ids=["at", "trades-ce", "trades-kl", "mart", "trades-concat", "alp", "s2o", "s2o-alp"],
)  # fmt: skip
def test_no_forward_is_made_twice(strategy, sizes, batch):
    model = network()
    seen = forwards_of(model)
    out = strategy(model, *batch, LAST)
    assert seen == sizes
    assert out.logits.shape == (8, 4)


def test_natural_comes_first_and_moves_batch_norm_first(batch):
    x, y = batch
    model = network()
    x_adv = (x + 0.1).clamp(0, 1)
    seen = []
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    TRADES(attack=ATTACK).losses(model, Crafted(x, x_adv, y))
    assert torch.equal(seen[0], x)
    assert torch.equal(seen[1], x_adv)


def test_concat_is_one_batch_norm_batch(batch):
    x, y = batch
    x_adv = (x + 0.2).clamp(0, 1)
    model = attach(TinyCNN(num_classes=4, batch_norm=True), {}, (3, 8, 8), 4).train()
    clean, adv = TRADES(attack=ATTACK, concat=True).forwards(model, Crafted(x, x_adv, y))
    both = model(torch.cat([x, x_adv]))
    torch.testing.assert_close(torch.cat([clean.logits, adv.logits]), both, atol=1e-5, rtol=1e-5)
    apart = TRADES(attack=ATTACK).forwards(model, Crafted(x, x_adv, y))
    assert (apart[0].logits - clean.logits).abs().max() > 1e-3


@pytest.mark.parametrize("share", [True, False])
def test_share_noise_draws_alike_for_clean_and_adversarial_images(share, batch):
    x, y = batch
    model = network()
    strategy = TRADES(attack=ATTACK, share_noise=share)
    clean, adv = strategy.forwards(model, Crafted(x, x.clone(), y))
    assert torch.equal(clean.aux["block2"]["mask"], adv.aux["block2"]["mask"]) == share
    after = torch.rand(3)
    assert not torch.equal(after, torch.rand(3))  # the generator goes on


def test_crafting_runs_no_head_of_fsr_and_attacks_the_final_logits_alone(batch):
    model = network()
    heads = []
    model.defenses["block2"].aux_head.register_forward_hook(lambda *_: heads.append(model.training))
    strategy = AT(attack=ATTACK)
    strategy.craft(model, *batch, FIRST)
    assert heads == []
    assert aimed_at(ATTACK, model) is ATTACK
    strategy(model, *batch, FIRST)
    assert heads == [True] * 3


def test_crafting_raises_what_a_defence_adds_and_never_shows_it_the_labels(batch):
    x, y = batch
    model = network(Probed)
    crafted = AT(attack=ATTACK).craft(model, x, y, FIRST)
    passes = model.defenses["block2"].passes
    assert passes == [(False, False, True)] * 4
    # by hand: signed steps on cross-entropy of both logits
    twin = model.eval()
    x_adv = x
    for _ in range(4):
        image = x_adv.detach().requires_grad_()
        out = twin.forward_with_aux(image)
        value = functional.cross_entropy(out.logits, y, reduction="sum")
        value = value + 2 * functional.cross_entropy(out.aux["block2"]["logits"], y, reduction="sum")
        (gradient,) = torch.autograd.grad(value, image)
        x_adv = (image.detach() + 0.025 * gradient.sign()).clamp(x - 0.1, x + 0.1).clamp(0, 1)
    torch.testing.assert_close(crafted.x_adv, x_adv, atol=1e-6, rtol=0)
    assert not torch.allclose(crafted.x_adv, ATTACK(model, x, y))


def test_a_defence_gets_the_strategys_criterion_on_its_own_logits(batch):
    model = network(Probed)
    out = TRADES(attack=ATTACK, beta=3.0).losses(model, Crafted(batch[0], (batch[0] + 0.1).clamp(0, 1), batch[1]))
    assert list(out.losses) == ["ce", "kl", "block2/aux_ce", "block2/aux_kl"]


def test_an_attack_without_an_objective_cannot_serve_a_defence_that_adds_to_it(batch):
    class Blind:
        def __call__(self, model, x, y):
            return x

    with pytest.raises(ValueError, match="Blind has no objective to join it with; train with a PGD attack"):
        AT(attack=Blind())(network(Probed), *batch, FIRST)
    AT(attack=Blind())(network(), *batch, FIRST)


def test_a_targeted_attack_cannot_serve_a_defence_that_adds_to_it_either(batch):
    attack = replace(ATTACK, objective=Towards(loss=TargetedCrossEntropy(), target=Ranked(rank=1)))
    with pytest.raises(ValueError, match=r"no target as TargetedCrossEntropy\(\) has; train with an untargeted attack"):
        AT(attack=attack)(network(Probed), *batch, FIRST)
    AT(attack=attack)(network(), *batch, FIRST)


# friendly adversarial training -----------------------------------------------------------------------------------


def friendly(model, x, y, *, steps, patience, step):
    """One sample at a time, as its paper's Algorithm 1 says."""
    made = []
    for image, label in zip(x, y, strict=True):
        clean = image[None]
        left, x_adv = patience, clean.clone()
        for _ in range(steps):
            probe = x_adv.detach().requires_grad_()
            logits = model(probe)
            if logits.argmax(1).item() != label.item():
                if left == 0:
                    break
                left -= 1
            (gradient,) = torch.autograd.grad(functional.cross_entropy(logits, label[None]), probe)
            x_adv = (probe.detach() + step * gradient.sign()).clamp(clean - 0.1, clean + 0.1).clamp(0, 1)
        made.append(x_adv)
    return torch.cat(made)


@pytest.fixture
def even(classifier):
    """A network in eval mode whose predictions differ between images, so that some fall early and some late."""
    torch.manual_seed(3)
    model = classifier.eval()
    x = torch.rand(24, 3, 8, 8)
    return model, x, model(x).argmax(1)


@pytest.mark.parametrize("patience", [0, 1, 2, 4])
def test_each_sample_freezes_on_its_own(patience, even):
    model, x, y = even
    y = torch.where(torch.arange(24) < 4, (y + 1) % 4, y)  # four are wrong from the start
    attack = replace(ATTACK, steps=8, relative_step=0.125, patience=patience)
    found = attack(model, x, y)
    torch.testing.assert_close(found, friendly(model, x, y, steps=8, patience=patience, step=0.0125), atol=1e-6, rtol=0)
    whole = replace(attack, patience=None)(model, x, y)
    moved = (found - x).abs().amax((1, 2, 3))
    assert torch.equal(moved[:4] == 0, torch.full((4,), patience == 0))
    assert (moved < (whole - x).abs().amax((1, 2, 3)) - 1e-6).any()


@pytest.mark.parametrize(("epoch", "patience"), [(0, 0), (49, 0), (50, 1), (89, 1), (90, 2), (119, 2)])
def test_patience_grows_with_the_epochs_counted_from_one(epoch, patience, batch, monkeypatch):
    asked = []
    call = PGD.__call__

    def spy(self, model, x, y):
        asked.append((self.patience, self.jitter, self.steps))
        return call(self, model, x, y)

    monkeypatch.setattr(PGD, "__call__", spy)
    FAT(base=AT(attack=ATTACK)).craft(network(), *batch, Progress(epoch, 120, 0))
    assert asked == [(patience, 0.001, 4)]


def test_jitter_moves_within_the_threat_set(even):
    model, x, y = even
    torch.manual_seed(0)
    plain, noisy = (replace(ATTACK, jitter=jitter)(model, x, y) for jitter in (0.0, 0.001))
    assert not torch.equal(plain, noisy)
    assert (noisy - x).abs().max() <= 0.1 + 1e-6
    assert 0 <= noisy.min() <= noisy.max() <= 1


def test_a_frozen_gaussian_start_lies_in_the_threat_set(even):
    model, _, _ = even
    x = torch.zeros(6, 3, 8, 8)
    y = (model(x).argmax(1) + 1) % 4
    x_adv = replace(ATTACK, patience=0, random_start=True, start_std=0.05)(model, x, y)
    assert x_adv.min() >= 0
    assert x_adv.max() > 0


# curricula -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epoch", "epochs", "strength"),
    [(0, 100, 0), (9, 100, 0), (10, 100, 1), (50, 100, 5), (91, 100, 10), (99, 100, 10)],
)
def test_strength_rises_in_equal_stretches(epoch, epochs, strength):
    assert CAT(base=AT(attack=ATTACK)).strength_at(Progress(epoch, epochs, 0)) == strength


@pytest.mark.parametrize(
    ("count", "strength", "mix", "parts", "attacked"),
    [
        (11, 0, True, {}, []),
        (11, 3, True, {1: 2, 2: 2, 3: 5}, range(2, 11)),
        (8, 3, True, {1: 2, 2: 2, 3: 2}, range(2, 8)),
        (3, 4, True, {4: 3}, range(3)),
        (8, 3, False, {3: 8}, range(8)),
    ],
)
def test_a_batch_is_cut_into_parts_of_growing_strength(count, strength, mix, parts, attacked, monkeypatch):
    made = {}
    call = PGD.__call__

    def spy(self, model, x, y):
        made[self.steps] = len(x)
        assert 2 / self.steps <= self.relative_step <= 2 / self.steps * 10 / self.steps
        return call(self, model, x, y)

    monkeypatch.setattr(PGD, "__call__", spy)
    x, y = torch.rand(count, 3, 8, 8), torch.arange(count) % 4
    crafted = CAT(base=AT(attack=ATTACK), strength=strength, mix=mix).craft(network(), x, y, FIRST)
    assert made == parts
    assert crafted.attacked.tolist() == list(attacked)
    still = [index for index in range(count) if torch.equal(crafted.x_adv[index], x[index])]
    assert still == [index for index in range(count) if index not in attacked]
    assert (crafted.x_adv - x).abs().max() <= 0.1 + 1e-6


def test_a_steps_size_is_drawn_anew_for_each_call(batch, monkeypatch):
    sizes = []
    call = PGD.__call__
    monkeypatch.setattr(
        PGD, "__call__", lambda self, m, x, y: (sizes.append(self.relative_step), call(self, m, x, y))[1]
    )
    strategy = CAT(base=AT(attack=ATTACK), strength=1, mix=False)
    for _ in range(3):
        strategy.craft(network(), *batch, FIRST)
    assert len(set(sizes)) == 3


def test_the_clean_part_is_no_business_of_the_defence(batch):
    x, y = batch
    model = network()
    strategy = CAT(base=TRADES(attack=ATTACK), strength=1)
    crafted = strategy.craft(model, x, y, FIRST)
    assert crafted.attacked.tolist() == [4, 5, 6, 7]
    torch.manual_seed(1)
    found = strategy.losses(model, crafted).losses
    torch.manual_seed(1)
    clean, adv = strategy.forwards(model, crafted)
    keep = slice(4, None)
    wanted = model.auxiliary_losses(adv.rows(keep), y[keep], clean=clean.rows(keep), criterion=strategy.criterion)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
    assert found["ce"].item() == pytest.approx(functional.cross_entropy(clean.logits, y).item())


def test_the_clean_part_may_be_made_its_business(batch):
    x, y = batch
    model = network()
    for strength in (0, 1):
        strategy = CAT(base=AT(attack=ATTACK), strength=strength, defend_clean=True)
        crafted = strategy.craft(model, x, y, FIRST)
        assert crafted.attacked is None
        assert torch.equal(crafted.x_adv[:4], x[:4])
        assert strategy.losses(model, crafted).losses["block2/sep"].item() > 0


def test_a_frozen_sample_stays_though_noise_may_call_it_right_later():
    x, y = torch.rand(6, 3, 8, 8), torch.zeros(6, dtype=torch.int64)
    calls = []

    def model(image):
        calls.append(0)
        sign = -1.0 if len(calls) == 1 else 1.0  # wrong at first, right ever after
        return torch.stack([sign * image.sum((1, 2, 3)), torch.zeros(len(image))], dim=1)

    assert torch.equal(replace(ATTACK, patience=0)(model, x, y), x)


def test_nothing_attacked_weighs_nothing_and_leaves_no_parameter_out_of_the_graph(batch):
    model = network()
    out = CAT(base=AT(attack=ATTACK), strength=0)(model, *batch, FIRST)
    assert {name: value.item() for name, value in out.losses.items() if "/" in name} == {
        "block2/sep": 0.0, "block2/rec": 0.0,
    }  # fmt: skip
    sum(out.losses.values()).backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert not any(parameter.grad.any() for parameter in model.defenses["block2"].aux_head.parameters())


# starts ----------------------------------------------------------------------------------------------------------


def test_a_gaussian_start_is_small_and_not_clipped(batch):
    x, y = torch.zeros(64, 3, 8, 8), torch.zeros(64, dtype=torch.int64)
    starts = []

    def model(image):
        starts.append(image.detach())
        return image.flatten(1)[:, :4]

    replace(ATTACK, random_start=True, start_std=0.001)(model, x, y)
    assert starts[0].std().item() == pytest.approx(0.001, rel=0.03)
    assert abs(starts[0].mean().item()) < 1e-4
    assert starts[0].min() < 0


def test_raising_the_kl_reaches_one_of_a_linear_models_two_corners(batch):
    x, y = batch[0].double(), batch[1] % 2
    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 2)).double()
    attack = PGD(
        threat=LINF, steps=10, relative_step=0.25, random_start=True, start_std=0.001, objective=OnLogits(KLFromClean())
    )
    assert not attack.exact_on_linear
    towards = (model[1].weight[1] - model[1].weight[0]).detach().reshape(3, 8, 8).sign()
    corners = [(x + side * 0.1 * towards).clamp(0, 1) for side in (1, -1)]
    x_adv = attack(model, x, y)
    for index in range(len(x)):
        distance = min((x_adv[index] - corner[index]).abs().max().item() for corner in corners)
        assert distance < 1e-9


def test_crafting_can_see_the_training_noise(batch):
    model = network()
    x, y = batch
    calm, noisy = ATTACK, replace(ATTACK, noise=True)
    assert torch.equal(calm(model, x, y), calm(model, x, y))
    assert not torch.equal(noisy(model, x, y), noisy(model, x, y))
