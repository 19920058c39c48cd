"""Objectives on views: gradients come from the view, outcomes from the network, and what each pass costs."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from fsr_lab.attack.along_route import AlongRoute
from fsr_lab.attack.on_aux import OnAux
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.through import Through
from fsr_lab.attack.weighted_sum import WeightedSum
from fsr_lab.core.losses import margin
from fsr_lab.core.objective import CrossEntropy, KLFromClean, OnLogits, TargetedMargin
from fsr_lab.core.route import Route
from fsr_lab.core.targets import AnyWrong, Ranked, Towards
from fsr_lab.core.threat import Threat
from fsr_lab.defense.cas import CAS
from fsr_lab.defense.fsr import FSR
from fsr_lab.evaluation.counting import Counted
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

LINF = Threat(norm="linf", eps=8 / 255)
PLAIN = OnLogits(CrossEntropy())


def pgd(objective, **options):
    return PGD(**({"threat": LINF, "steps": 4, "relative_step": 0.4, "random_start": False} | options),
               objective=objective)  # fmt: skip


def along(objective=PLAIN, **options):
    return Through(view=AlongRoute(route=Route(**options)), objective=objective)


@dataclass(frozen=True)
class Darkened:
    """The view of a network on images half as bright; keeps what it was made of."""

    made_of: list = field(default_factory=list)
    is_random: bool = False
    keeps_values: bool = False

    def __call__(self, model):
        self.made_of.append(model)
        return lambda x: model(x / 2)

    def lacks(self, model, x):
        return None if self.made_of else "nothing yet"


@pytest.fixture
def model():
    return attach(TinyCNN(num_classes=4), {"block1": FSR, "block2": CAS}, (3, 8, 8), 4).eval()


def test_the_objective_is_that_of_the_view(linear, batch):
    x, y = batch
    objective = Through(view=Darkened(), objective=OnLogits(KLFromClean()))
    prepared = objective.prepare(linear, x, y)
    assert torch.equal(prepared["logits"], linear(x / 2))
    p, q = linear(x / 2).softmax(1), linear((1 - x) / 2).softmax(1)
    torch.testing.assert_close(objective(linear, 1 - x, y, prepared), (p * (p / q).log()).sum(1))
    assert objective.loss == KLFromClean()


def test_an_attack_climbs_the_view_from_step_to_step(model, batch):
    x, y = batch
    plain = TinyCNN(num_classes=4)
    plain.load_state_dict(model.backbone.state_dict())
    only_fsr = attach(TinyCNN(num_classes=4), {"block1": FSR}, (3, 8, 8), 4).eval()
    only_fsr.backbone.load_state_dict(plain.state_dict())
    found = pgd(along(part="f"))(only_fsr, x, y)
    assert torch.equal(found, pgd(PLAIN)(plain, x, y))  # without its defence it is the plain network
    assert not torch.equal(found, pgd(PLAIN)(only_fsr, x, y))


@pytest.mark.parametrize("keep", ["last", "best"])
@pytest.mark.parametrize("route", [{}, {"part": "f_tilde"}, {"backward_tau": 0.1}])
def test_a_neutral_route_gives_the_plain_attack(route, keep, batch):
    x, y = batch
    model = attach(TinyCNN(num_classes=4), {"block1": FSR, "block2": FSR}, (3, 8, 8), 4).eval()
    assert {defense.tau for defense in model.defenses.values()} == {0.1}
    neutral, plain = pgd(along(**route), keep=keep), pgd(PLAIN, keep=keep)
    assert torch.equal(neutral(model, x, y), plain(model, x, y))
    assert not torch.equal(pgd(along(part="f"), keep=keep)(model, x, y), plain(model, x, y))


def test_the_network_itself_says_which_iterate_is_best(model, batch):
    x, y = batch
    attack = pgd(along(part="f"), keep="best")
    found = attack(model, x, y)
    path = replace(attack, keep="last").iterates(model, x, y, at=(1, 2, 3, 4))
    margins = torch.stack([margin(model(each), y) for each in path.values()])
    assert len(set(margins.argmin(0).tolist())) > 1
    for index, step in enumerate(margins.argmin(0).tolist()):
        assert torch.equal(found[index], path[step + 1][index])


@pytest.mark.parametrize(
    ("route", "steps"),
    [({"backward_tau": 1.0}, 4 + 1), ({"mask_gradient": "stop"}, 4 + 1), ({"tau": 1.0}, 2 * 4), ({"part": "f"}, 2 * 4)],
)
def test_a_view_with_the_networks_values_costs_no_pass_more_than_the_plain_attack(route, steps, model, batch):
    x, y = batch
    counted, attack = Counted(model), pgd(along(**route), keep="best")
    found = attack(counted, x, y)
    assert counted.forwards == steps * 8
    assert counted.backwards == 4 * 8
    assert torch.equal(found, attack(model, x, y))


def test_one_pass_along_a_route_serves_all_that_read_it(model, batch):
    x, y = batch
    counted = Counted(model)
    heads = WeightedSum(
        objectives=[PLAIN, OnAux(key="p_plus", loss=CrossEntropy()), OnAux(key="p_probe", loss=CrossEntropy())],
        weights=[1, 2, 3],
    )
    objective = along(heads, backward_tau=1.0)
    assert objective.reads_aux
    assert not along().reads_aux
    pgd(objective)(counted, x, y)
    assert counted.forwards == counted.backwards == 4 * 8
    out = model.routed(dict.fromkeys(model.defenses, Route(backward_tau=1.0))).forward_with_aux(x)
    wanted = [CrossEntropy()(z, y) for z in (out.logits, out.aux["block1"]["p_plus"], out.aux["block2"]["p_probe"])]
    torch.testing.assert_close(objective(model, x, y, {}), wanted[0] + 2 * wanted[1] + 3 * wanted[2])


def test_an_attack_makes_its_view_once_and_anew_for_every_call(linear, batch):
    view = Darkened()
    attack = pgd(Through(view=view, objective=PLAIN), steps=5)
    for calls in (1, 2):
        attack(linear, *batch)
        assert len(view.made_of) == 2 * calls  # once to prepare, once for all steps
    assert all(network is linear for network in view.made_of)


def test_views_of_views_look_through_each_other(model, batch):
    x, y = batch
    dark = Through(view=Darkened(), objective=along(part="f_tilde"))
    with pytest.raises(ValueError, match="no defence of the network knows the route f_tilde"):
        dark(model, x, y, {})
    # the other way round: what is dark sees the route
    objective = along(Through(view=Darkened(), objective=PLAIN), backward_tau=1.0)
    image = x.clone().requires_grad_()
    view = model.routed(dict.fromkeys(model.defenses, Route(backward_tau=1.0)))
    (wanted,) = torch.autograd.grad(CrossEntropy()(view(image / 2), y).sum(), image)
    stepped = LINF.project(LINF.step(x, wanted, 0.4 * LINF.eps), x)
    assert torch.equal(pgd(objective, steps=1)(model, x, y), stepped)


def test_it_tells_what_the_view_misses_or_the_objective_on_it(model, batch):
    x = batch[0]
    probe, plus = OnAux(key="p_probe", loss=CrossEntropy()), OnAux(key="p_tilda", loss=CrossEntropy())
    assert along(probe, part="f").lacks(model, x) is None
    assert along(plus, part="f").lacks(model, x) == "no defence of the network files 'p_tilda'"
    assert along(plus, mask_gradient="relu").lacks(model, x) == "no defence of the network knows the route relu"
    assert Through(view=Darkened(), objective=PLAIN).lacks(model, x) == "nothing yet"
    assert along().lacks(Counted(TinyCNN()), x) == "no defence of the network knows the route f_tilde"


def test_it_leads_where_its_objective_leads():
    towards = Towards(loss=TargetedMargin(), target=Ranked(rank=1))
    assert along(towards).aimed(Ranked(rank=2)) == along(replace(towards, target=Ranked(rank=2)))
    assert along().aimed(Ranked(rank=2)) == along()


def test_it_is_random_where_a_part_of_it_is():
    drawn = Towards(loss=TargetedMargin(), target=AnyWrong())
    assert not along().is_random
    assert along(drawn).is_random
    assert Through(view=Darkened(is_random=True), objective=PLAIN).is_random
    assert pgd(Through(view=Darkened(is_random=True), objective=PLAIN)).is_random
