"""Losses on what defences file: by hand on CAS and FSR, and what is said where nobody files it."""

import math

import pytest
import torch

from fsr_lab.attack.on_aux import OnAux, TowardsAux
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.watched import Watched
from fsr_lab.core.objective import CrossEntropy, KLFromClean, Margin, TargetedMargin
from fsr_lab.core.targets import AnyWrong, Given, Ranked
from fsr_lab.core.threat import Threat
from fsr_lab.defense.cas import CAS
from fsr_lab.defense.fsr import FSR
from fsr_lab.evaluation.counting import Counted
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN


@pytest.fixture
def model():
    return attach(TinyCNN(num_classes=4), {"block1": CAS, "block2": FSR, "avgpool:in": CAS}, (3, 8, 8), 4).eval()


def cross_entropy(logits, label):
    return math.log(sum(math.exp(z) for z in logits)) - logits[label]


def test_the_loss_is_the_mean_over_the_points_that_file_the_key(model, batch):
    x, y = batch
    out = model.forward_with_aux(x)
    found = OnAux(key="p_probe", loss=CrossEntropy())(model, x, y, {})
    for index in range(8):
        each = [
            cross_entropy(out.aux[point]["p_probe"][index].tolist(), y[index]) for point in ("block1", "avgpool:in")
        ]
        assert found[index].item() == pytest.approx(sum(each) / 2, rel=1e-5)
    found = OnAux(key="p_plus", loss=Margin(kappa=50.0))(model, x, y, {})
    for index, logits in enumerate(out.aux["block2"]["p_plus"].tolist()):
        true = logits.pop(y[index])
        assert found[index].item() == pytest.approx(-(true - max(logits) + 50), rel=1e-5)


def test_the_wrong_class_is_the_likeliest_one_by_the_networks_own_logits(model, batch):
    x, y = batch
    out = model.forward_with_aux(x)
    found = OnAux(key="p_minus", loss=CrossEntropy(), of="wrong")(model, x, y, {})
    for index, logits in enumerate(out.logits.tolist()):
        wrong = max((k for k in range(4) if k != y[index]), key=lambda k: logits[k])
        wanted = cross_entropy(out.aux["block2"]["p_minus"][index].tolist(), wrong)
        assert found[index].item() == pytest.approx(wanted, rel=1e-5)


def test_a_loss_that_compares_compares_each_point_with_its_own_clean_logits(model, batch):
    x, y = batch
    objective = OnAux(key="p_probe", loss=KLFromClean())
    prepared = objective.prepare(model, x, y)
    found = objective(model, 1 - x, y, prepared)
    clean, adv = model.forward_with_aux(x).aux, model.forward_with_aux(1 - x).aux
    each = []
    for point in ("block1", "avgpool:in"):
        p, q = clean[point]["p_probe"].double().softmax(1), adv[point]["p_probe"].double().softmax(1)
        each.append((p * (p / q).log()).sum(1))
    torch.testing.assert_close(found.double(), sum(each) / 2, atol=1e-6, rtol=1e-4)
    rows = objective(model, (1 - x)[2:5], y[2:5], {name: value[2:5] for name, value in prepared.items()})
    torch.testing.assert_close(rows, found[2:5])
    assert OnAux(key="p_probe", loss=CrossEntropy()).prepare(model, x, y) == {}


def test_a_target_is_chosen_by_the_networks_own_clean_logits(model, batch):
    x, y = batch
    objective = TowardsAux(key="p_probe", loss=TargetedMargin(), target=Ranked(rank=-1))
    prepared = objective.prepare(model, x, y)
    found, clean, adv = objective(model, 1 - x, y, prepared), model(x), model.forward_with_aux(1 - x).aux
    for index, logits in enumerate(clean.tolist()):
        target = min((k for k in range(4) if k != y[index]), key=lambda k: logits[k])
        assert prepared["target"][index] == target
        each = [adv[point]["p_probe"][index] for point in ("block1", "avgpool:in")]
        wanted = sum(z[target] - z[y[index]] for z in each).item() / 2
        assert found[index].item() == pytest.approx(wanted, rel=1e-4, abs=1e-6)
    other = objective.aimed(Given(label=2))
    assert other == TowardsAux(key="p_probe", loss=TargetedMargin(), target=Given(label=2))
    assert not other.is_random
    assert objective.aimed(AnyWrong()).is_random


BARE = "files no auxiliary tensor"
OTHER = "no defence of the network files 'p_tilda'"


@pytest.mark.parametrize("wrap", [lambda model: model, Counted, Watched, lambda model: Counted(Watched(model))])
@pytest.mark.parametrize("make", [
    lambda key: OnAux(key=key, loss=CrossEntropy()),
    lambda key: TowardsAux(key=key, loss=TargetedMargin(), target=Ranked(rank=1)),
])  # fmt: skip
def test_what_nobody_files_is_told_and_refused(make, wrap, model, batch):
    x, y = batch
    plain = wrap(TinyCNN(num_classes=4))
    target = {"target": y}
    assert make("p_probe").lacks(wrap(model), x) is None
    assert make("p_probe").lacks(plain, x) == f"the network {BARE}, and so no 'p_probe'"
    assert make("p_tilda").lacks(wrap(model), x) == OTHER
    with pytest.raises(ValueError, match=rf"{OTHER}; it files \['f_minus', 'f_plus', .*'p_probe'"):
        make("p_tilda")(wrap(model), x, y, target)
    with pytest.raises(ValueError, match=rf"the network {BARE}s: this objective needs feature defences \(attach\)"):
        make("p_probe")(plain, x, y, target)


def test_an_attack_says_so_too(batch):
    attack = PGD(
        threat=Threat(norm="linf", eps=0.1), steps=1, relative_step=1.0, random_start=False,
        objective=OnAux(key="p_plus", loss=CrossEntropy()),
    )  # fmt: skip
    for plain in (TinyCNN(num_classes=4), lambda x: x.mean((2, 3)), Counted(TinyCNN(num_classes=4))):
        assert attack.lacks(plain, batch[0]) == "the network files no auxiliary tensor, and so no 'p_plus'"
        with pytest.raises(ValueError, match="this objective needs feature defences"):
            attack(plain, *batch)


def test_looking_what_is_filed_costs_one_image_and_leaves_no_graph(model, batch):
    counted = Counted(model)
    OnAux(key="p_probe", loss=CrossEntropy()).lacks(counted, batch[0].requires_grad_())
    assert counted.forwards == 1


def test_an_unknown_kind_of_class_is_refused():
    with pytest.raises(ValueError, match=r"no class named 'wrng'; close names: \['wrong'"):
        OnAux(key="p_plus", loss=CrossEntropy(), of="wrng")
