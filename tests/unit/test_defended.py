import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

from fsr_lab.core import losses
from fsr_lab.core.defense import FeatureDefense
from fsr_lab.core.objective import CrossEntropy, KLFromClean
from fsr_lab.core.route import Route
from fsr_lab.core.types import DefenseOutput, Forward
from fsr_lab.defense.fsr import FSR
from fsr_lab.model.defended import DefendedModel, attach
from fsr_lab.model.tiny_cnn import TinyCNN


class Scaled(FeatureDefense):
    """Scales its features, raises their mean when attacked, and knows the label it was given."""

    def __init__(self, shape, num_classes, *, factor=2.0):
        super().__init__()
        self.shape, self.num_classes, self.factor = shape, num_classes, factor
        self.seen = []

    def forward(self, features, targets=None, *, route=None, want_aux=True):
        if self.seen is not None:
            self.seen.append((targets, route, want_aux))
        return DefenseOutput(self.factor * features, {"mean": features.mean((1, 2, 3))} if want_aux else {})

    def auxiliary_loss(self, adv, y, point, *, clean, criterion):
        extra = {} if clean is None else {"clean": clean.aux[point]["mean"].mean()}
        return {"mean": adv.aux[point]["mean"].mean()} | criterion(adv.logits, None, y) | extra

    def attack_terms(self, adv_aux, y, clean_aux, loss):
        return adv_aux["mean"] - (0 if clean_aux is None else clean_aux["mean"])


def net():
    return TinyCNN(num_classes=4)


def defended(defenses):
    return attach(net(), defenses, (3, 8, 8), 4).eval()


def criterion(adv, clean, y):
    return {"ce": functional.cross_entropy(adv, y)}


def test_builders_learn_shape_and_classes():
    model = defended({"block1": Scaled, "block2:in": Scaled, "avgpool:in": Scaled})
    shapes = {point: tuple(defense.shape) for point, defense in model.defenses.items()}
    assert shapes == {"block1": (8, 4, 4), "block2:in": (8, 4, 4), "avgpool:in": (16, 2, 2)}
    assert {defense.num_classes for defense in model.defenses.values()} == {4}


def test_no_defence_is_the_backbone_itself(batch):
    x, y = batch
    model = defended({})
    assert torch.equal(model(x), model.backbone(x))
    assert model.forward_with_aux(x, y).aux == {}
    assert model.auxiliary_losses(model.forward_with_aux(x, y), y, criterion=criterion) == {}
    assert model.attack_terms(model.forward_with_aux(x, y), y, clean=None, loss=CrossEntropy()) is None
    assert not model.has_attack_terms
    with pytest.raises(ValueError, match="does not take images of shape"):
        attach(net(), {"block1": FSR}, (1, 8, 8), 4)


def test_features_are_replaced_where_the_point_says(batch):
    x, _ = batch
    model = defended({"block1": Scaled})
    plain = model.backbone
    block1, rest = plain.block1[0](x).relu(), lambda f: plain.fc(plain.avgpool(plain.block2(f)).flatten(1))
    torch.testing.assert_close(model(x), rest(2 * block1))


def test_auxiliary_tensors_come_in_order_of_depth(batch):
    model = defended({"avgpool:in": Scaled, "block2": Scaled, "block1.conv": Scaled})
    out = model.forward_with_aux(*batch)
    assert isinstance(out, Forward)
    assert list(out.aux) == ["block1.conv", "block2", "avgpool:in"]
    assert all(named["mean"].shape == (8,) for named in out.aux.values())


def test_labels_and_wishes_travel_on_the_tape(batch):
    x, y = batch
    model = defended({"block1": Scaled})
    (defense,) = model.defenses.values()
    model(x)
    model.forward_with_aux(x, y)
    model.forward_with_aux(x)
    way = Route(tau=1.0)
    defense.routes = frozenset({"tau", "f_tilde"})
    model.routed({"block1": way})(x)
    model.routed({"block1": way}).forward_with_aux(x, y)
    model(x)
    nothing, told = (None, None, False), (y, None, True)
    assert defense.seen == [nothing, told, (None, None, True), (None, way, False), (y, way, True), nothing]


def test_losses_of_one_class_are_meant_and_of_two_are_added(batch):
    x, y = batch
    model = defended({"block1": Scaled, "block2": Scaled, "avgpool:in": FSR})
    adv, clean = model.forward_with_aux(x, y), model.forward_with_aux(1 - x, y)
    found = model.auxiliary_losses(adv, y, clean=clean, criterion=criterion)
    fsr = model.defenses["avgpool:in"].auxiliary_loss(adv, y, "avgpool:in", clean=clean, criterion=criterion)
    wanted = {f"avgpool:in/{name}": value for name, value in fsr.items()}
    for point in ("block1", "block2"):
        wanted[f"{point}/mean"] = adv.aux[point]["mean"].mean() / 2
        wanted[f"{point}/clean"] = clean.aux[point]["mean"].mean() / 2
        wanted[f"{point}/ce"] = functional.cross_entropy(adv.logits, y) / 2
    assert found.keys() == wanted.keys()
    assert "avgpool:in/sep" in found
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)


def test_attack_terms_are_meant_over_sites(batch):
    x, y = batch
    model = defended({"block1": Scaled, "block2": Scaled, "avgpool:in": FSR})
    assert model.has_attack_terms
    adv, clean = model.forward_with_aux(x), model.forward_with_aux(1 - x)
    means = [(adv.aux[point]["mean"], clean.aux[point]["mean"]) for point in ("block1", "block2")]
    found = model.attack_terms(adv, y, clean=None, loss=CrossEntropy())
    torch.testing.assert_close(found, sum(a for a, _ in means) / 2)
    found = model.attack_terms(adv, y, clean=clean, loss=KLFromClean())
    torch.testing.assert_close(found, sum(a - c for a, c in means) / 2)


def test_a_silent_defence_adds_nothing_to_an_attack(batch):
    x, y = batch
    model = defended({"block1": FSR})
    assert not model.has_attack_terms
    assert model.attack_terms(model.forward_with_aux(x), y, clean=None, loss=CrossEntropy()) is None


def test_a_route_at_an_undefended_point_is_refused():
    model = defended({"block1": FSR, "block2": FSR})
    with pytest.raises(ValueError, match=r"no defended point named 'blok1'; close names: \['block1', 'block2'\]"):
        model.routed({"blok1": Route()})


def test_a_route_that_a_defence_does_not_know_is_refused():
    model = defended({"block1": Scaled})
    with pytest.raises(ValueError, match=r"Scaled at 'block1' has no route \['f_tilde', 'tau'\]; it knows \[\]"):
        model.routed({"block1": Route(tau=1.0)})


def test_a_routed_view_shares_the_weights_and_changes_nothing_else(batch):
    x, y = batch
    model = defended({"block1": FSR, "block2": FSR})
    before = model(x)
    view = model.routed({"block1": Route(part="f"), "block2": Route(part="f")})
    plain = copy.deepcopy(model.backbone)
    for module in plain.modules():
        module._forward_hooks.clear()
    assert torch.equal(view(x), plain(x))
    assert torch.equal(model(x), before)
    assert {id(parameter) for parameter in view.parameters()} == {id(parameter) for parameter in model.parameters()}
    out = view.forward_with_aux(x, y)
    assert torch.equal(out.logits, view(x))
    assert list(out.aux) == ["block1", "block2"]
    half = model.routed({"block2": Route(part="f")})
    assert not torch.equal(half(x), view(x))
    assert not torch.equal(half(x), before)


def test_the_state_dict_names_points_without_dots(batch):
    model = defended({"block1.conv": FSR})
    keys = list(model.state_dict())
    assert [key.partition(".")[0] for key in keys] == ["backbone"] * 6 + ["taps"] * (len(keys) - 6)
    assert "taps.block1/conv.defense.aux_head.weight" in keys
    other = defended({"block1.conv": FSR})
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(batch[0]), model(batch[0]))


@pytest.mark.parametrize("make", [attach, DefendedModel], ids=["attach", "constructor"])
@pytest.mark.parametrize("point", ["block1", "block1:in", "block1.relu:instead"])
def test_a_tapped_backbone_is_refused(make, point):
    backbone = defended({point: FSR}).backbone
    with pytest.raises(RuntimeError, match="this TinyCNN carries the defences of another model already"):
        make(backbone, {"block2": FSR} if make is attach else {}, *([(3, 8, 8), 4] if make is attach else []))


def test_a_copy_of_the_backbone_may_be_defended():
    backbone = net()
    model = attach(copy.deepcopy(backbone), {"block1": FSR}, (3, 8, 8), 4)
    other = attach(backbone, {"block1": FSR}, (3, 8, 8), 4)
    assert not {id(p) for p in model.parameters()} & {id(p) for p in other.parameters()}


def test_an_unknown_layer_is_refused_with_its_neighbours():
    with pytest.raises(ValueError, match=r"no layer named 'blok2' in TinyCNN; close names: \['block2'"):
        attach(net(), {"blok2": FSR}, (3, 8, 8), 4)


def test_two_points_at_one_module_work_together(batch):
    model = defended({"block1:in": Scaled, "block1": Scaled})
    plain = copy.deepcopy(model.backbone)
    for module in plain.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    x = batch[0]
    wanted = plain.fc(plain.avgpool(plain.block2(2 * plain.block1(2 * x))).flatten(1))
    torch.testing.assert_close(model(x), wanted)


def test_a_defence_that_defines_nothing_says_what_it_must():
    class Empty(FeatureDefense):
        pass

    with pytest.raises(TypeError, match=r"Empty must define forward\(features, targets, \*, route, want_aux\)"):
        Empty()(torch.rand(1, 1, 1, 1))


def test_gradients_reach_backbone_and_defence_through_one_pass(batch):
    x, y = batch
    model = attach(net(), {"block1": FSR}, (3, 8, 8), 4).train()
    out = model.forward_with_aux(x, y)
    total = losses.cross_entropy(out.logits, y).mean()
    total = total + sum(model.auxiliary_losses(out, y, criterion=criterion).values())
    total.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_a_module_with_more_than_one_input_keeps_the_others(batch):
    class Join(nn.Module):
        def forward(self, left, right):
            return left - right

    class TwoPaths(nn.Module):
        def __init__(self):
            super().__init__()
            self.join = Join()

        def forward(self, x):
            return self.join(x, 0.5 * x).flatten(1)

    x = batch[0]
    model = attach(TwoPaths(), {"join:in": Scaled}, (3, 8, 8), 192)
    torch.testing.assert_close(model(x), (2 * x - 0.5 * x).flatten(1))


@pytest.mark.parametrize("call", ["forward", "forward_with_aux"])
def test_a_defended_network_does_not_run_the_graph_of_one_compiled_before_it(call, batch):
    torch.compiler.reset()  # what other tests compiled counts towards a limit

    def logits(model):
        found = getattr(model, call)(batch[0])
        return found if call == "forward" else found.logits

    sites = {}, {"block2": FSR}, {"block1": FSR}, {"block1": FSR, "block2": FSR}, {"block2": Scaled}, {}
    values = []
    for defenses in sites:
        torch.manual_seed(0)
        model = defended(defenses)
        for defense in model.defenses.values():
            defense.seen = None  # not appended to in a graph
        for parameter in model.taps.parameters():
            nn.init.normal_(parameter, std=0.2)
        wanted = logits(model)
        torch.testing.assert_close(torch.compile(logits, fullgraph=True, backend="aot_eager")(model), wanted)
        values.append(wanted)
    assert torch.equal(values[0], values[-1])
    assert all(not torch.allclose(values[0], value, atol=1e-3) for value in values[1:-1])
