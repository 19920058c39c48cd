"""Family: whom each member meets, which networks it concerns, and what it tells of itself."""

from dataclasses import replace

import pytest
import torch

from fsr_lab.attack.along_route import AlongRoute
from fsr_lab.attack.family import Family
from fsr_lab.attack.on_aux import OnAux
from fsr_lab.attack.pgd import PGD
from fsr_lab.attack.restarts import Restarts
from fsr_lab.attack.through import Through
from fsr_lab.attack.worst_case import worst_case
from fsr_lab.core.crafting import Policy
from fsr_lab.core.objective import CrossEntropy, Margin, OnLogits
from fsr_lab.core.route import Route
from fsr_lab.core.threat import Threat
from fsr_lab.defense.fsr import FSR
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN

LINF = Threat(norm="linf", eps=0.03)
PGD5 = PGD(threat=LINF, steps=5, relative_step=0.25, random_start=True)
STILL = replace(PGD5, random_start=False)
CW = replace(STILL, objective=OnLogits(Margin()))
AUX = replace(STILL, objective=OnAux(key="p_tilde", loss=CrossEntropy()))
ROUTE = replace(
    STILL, objective=Through(view=AlongRoute(route=Route(part="f_plus")), objective=OnLogits(CrossEntropy()))
)


@pytest.fixture
def fsr():
    return attach(TinyCNN(num_classes=4, batch_norm=True), {"block2": FSR}, (3, 8, 8), 4)


def test_it_is_the_worst_case_of_its_members(trained):
    model, x, y = trained
    found = []
    for attack in (
        Family(attacks={"one": PGD5, "two": CW}),
        lambda *args: worst_case([PGD5, CW], *args),
    ):
        torch.manual_seed(1)
        found.append(attack(model, x, y))
    assert torch.equal(*found)


def test_only_members_that_concern_a_network_are_run(trained, fsr, batch):
    model, x, y = trained
    family = Family(attacks={"aux": AUX, "plain": CW, "route": Restarts(attack=ROUTE, restarts=1)})
    members, reasons = family.concerning(model, x)
    assert members == {"plain": CW}
    assert reasons == {
        "aux": "the network files no auxiliary tensor, and so no 'p_tilde'",
        "route": "no defence of the network knows the route f_plus",
    }
    assert torch.equal(family(model, x, y), worst_case([CW], model, x, y))
    assert family.lacks(model, x) is None
    assert family.concerning(fsr, batch[0]) == (family.attacks, {})


def test_a_network_that_none_concerns_is_told_why(trained):
    model, x, y = trained
    family = Family(attacks={"aux": AUX, "route": ROUTE})
    lack = family.lacks(model, x)
    assert lack.startswith("aux: the network files no auxiliary tensor")
    assert lack.endswith("; route: no defence of the network knows the route f_plus")
    with pytest.raises(ValueError, match=r"no attack of this family concerns the network: \{'aux': .*'route': "):
        family(model, x, y)


def test_asking_leaves_a_network_in_training_as_it_is(fsr, batch):
    before = {name: value.clone() for name, value in fsr.train().state_dict().items()}
    Family(attacks={"aux": AUX}).concerning(fsr, batch[0])
    assert fsr.training
    assert all(torch.equal(value, before[name]) for name, value in fsr.state_dict().items())


def test_what_it_tells_of_itself():
    family = Family(attacks={"one": PGD5, "two": CW})
    assert (family.threat, family.policy, family.is_random, family.exact_on_linear) == (LINF, Policy(), True, False)
    assert not Family(attacks={"two": CW}).is_random
    assert repr(family) == f"Family(attacks={{'one': {PGD5!r}, 'two': {CW!r}}})"
    assert family == replace(family)
    assert hash(family) == hash(replace(family)) == hash(Family(attacks={"two": CW, "one": PGD5}))
    assert family != Family(attacks={"one": PGD5})


def test_members_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="at least one attack"):
        Family(attacks={})
    with pytest.raises(ValueError, match="attacks of one threat"):
        Family(attacks={"one": CW, "two": replace(CW, threat=Threat(norm="l2", eps=0.03))})
