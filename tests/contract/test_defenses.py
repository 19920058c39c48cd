"""What every defence of conf/defense keeps; `none` has no module, and is the bare backbone of every comparison.

A defence that declares `eval_noise` is compared under equal draws: `drawn` seeds before each call.
"""

import copy
import inspect
import io
import pickle
import threading

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.nn import functional

from fsr_lab.core.crafting import Policy, crafting
from fsr_lab.core.objective import CrossEntropy
from fsr_lab.core.types import FeatureShape
from fsr_lab.engine.build import build_model
from fsr_lab.model import tape
from fsr_lab.model.defended import attach

SHAPE = FeatureShape(6, 4, 4)


def drawn(call, *args, **options):
    """Return a call's result under the draws of one seed."""
    torch.manual_seed(7)
    return call(*args, **options)


def make_deterministic(model):
    """Put a model into eval mode, and a defence that is random there into the mode in which it is not."""
    model.eval()
    for defense in model.defenses.values():
        assert not (defense.eval_noise and defense.training_noise), "random in both modes"
        defense.train(defense.eval_noise)


@pytest.fixture
def build(module_name, compose_config, toy):
    """Return what the YAML's partial builds."""
    return instantiate(compose_config(*toy, f"defense={module_name}").defense.module, _convert_="all")


@pytest.fixture
def model(defense_name, compose_config, toy):
    """Return a tiny network with BatchNorm, defended at its tap, in training mode."""
    return build_model(compose_config(*toy, f"defense={defense_name}"))


def test_features_keep_their_shape_and_type(build):
    defense = build(shape=SHAPE, num_classes=4)
    for training in (True, False):
        for height, width in ((4, 4), (7, 3)):
            for count in (2, 3):
                features = torch.randn(count, 6, height, width)
                output = defense.train(training)(features, torch.zeros(count, dtype=torch.int64))
                assert output.features.shape == features.shape
                assert output.features.dtype == features.dtype
                assert all(len(value) == count for value in output.aux.values())


def test_eval_mode_is_deterministic_unless_declared(build):
    defense = build(shape=SHAPE, num_classes=4).eval()
    features = torch.randn(2, 6, 4, 4)
    before = torch.get_rng_state()
    twice = [defense(features).features for _ in range(2)]
    assert torch.equal(*twice) != defense.eval_noise
    assert torch.equal(torch.get_rng_state(), before) != defense.eval_noise


def test_training_mode_draws_noise_where_declared(build):
    defense = build(shape=SHAPE, num_classes=4).train()
    y = torch.zeros(2, dtype=torch.int64)
    features = torch.randn(2, 6, 4, 4)
    assert torch.equal(defense(features, y).features, defense(features, y).features) != defense.training_noise


@pytest.mark.parametrize("training", [True, False])
def test_auxiliary_tensors_nobody_wants_are_not_made(training, build):
    defense = build(shape=SHAPE, num_classes=4).train(training)
    features, y = torch.randn(2, 6, 4, 4), torch.tensor([3, 1])
    wanted, unwanted = (drawn(defense, features, y, want_aux=want_aux) for want_aux in (True, False))
    assert unwanted.aux == {}
    assert torch.equal(unwanted.features, wanted.features)


def test_labels_are_read_in_training_alone(build):
    defense = build(shape=SHAPE, num_classes=4).eval()
    features = torch.randn(8, 6, 4, 4)
    unlabelled = drawn(defense, features)
    for y in torch.zeros(8, dtype=torch.int64), torch.arange(8) % 4:
        labelled = drawn(defense, features, y)
        assert torch.equal(labelled.features, unlabelled.features)
        assert labelled.aux.keys() == unlabelled.aux.keys()
        assert all(torch.equal(labelled.aux[key], value) for key, value in unlabelled.aux.items())


@pytest.mark.parametrize("training", [True, False])
def test_works_without_autograd(training, build):
    defense = build(shape=SHAPE, num_classes=4).train(training)
    features, y = torch.randn(4, 6, 4, 4), torch.arange(4)
    wanted = drawn(defense, features, y)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            found = drawn(defense, features, y)
        assert torch.equal(found.features, wanted.features)
        assert all(torch.equal(found.aux[key], value) for key, value in wanted.aux.items())


@pytest.mark.parametrize("training", [True, False])
def test_under_autocast_features_keep_their_type_and_auxiliary_tensors_are_float32(training, build):
    defense = build(shape=SHAPE, num_classes=4).train(training)
    features, y = torch.randn(4, 6, 4, 4).bfloat16(), torch.arange(4)
    with torch.autocast("cpu", torch.bfloat16):
        output = defense(features, y)
    assert output.features.dtype == torch.bfloat16
    assert output.features.isfinite().all()
    assert {value.dtype for value in output.aux.values()} <= {torch.float32}
    assert all(value.isfinite().all() for value in output.aux.values())


@pytest.mark.parametrize("training", [True, False])
def test_float64_is_kept(training, build):
    defense = build(shape=SHAPE, num_classes=4).double().train(training)
    output = defense(torch.randn(4, 6, 4, 4, dtype=torch.float64), torch.arange(4))
    assert {value.dtype for value in (output.features, *output.aux.values())} == {torch.float64}


def test_every_crafting_policy_works(model, batch):
    x = batch[0]
    for _ in range(3):
        model.train()(x)  # BatchNorm statistics to fold
    wanted = drawn(model.eval(), x)
    for dtype, tolerance in (("float32", 1e-5), ("bfloat16", 0.1)):
        with crafting(model, Policy(dtype=dtype, channels_last=True, fold=True), example=x) as attacked:
            found = drawn(attacked, x)
        torch.testing.assert_close(found.float(), wanted, atol=tolerance, rtol=tolerance)
    assert torch.equal(drawn(model, x), wanted)


def test_aux_never_leaks_into_forward(model, batch):
    for training in (True, False):
        logits = model.train(training)(batch[0])
        assert type(logits) is Tensor
        assert logits.shape == (8, 4)
        out = model.forward_with_aux(*batch)
        assert type(out.logits) is Tensor
        assert out.logits.shape == (8, 4)
        assert list(out.aux) == list(model.defenses)


def test_both_forwards_give_the_same_logits(model, batch):
    model.eval()
    assert torch.equal(drawn(model, batch[0]), drawn(model.forward_with_aux, *batch).logits)


def by_deepcopy(model):
    return copy.deepcopy(model)


def by_pickle(model):
    return pickle.loads(pickle.dumps(model))


def by_torch_save(model):
    stream = io.BytesIO()
    torch.save(model, stream)
    stream.seek(0)
    return torch.load(stream, weights_only=False)


@pytest.mark.parametrize("duplicate", [by_deepcopy, by_pickle, by_torch_save])
def test_a_copy_runs_its_own_defence(duplicate, model, batch):
    x = batch[0]
    model.eval()
    wanted = drawn(model, x)
    other = duplicate(model)
    assert torch.equal(drawn(other, x), wanted)
    assert torch.equal(drawn(other.forward_with_aux, x).logits, wanted)
    runs = {"original": 0, "copy": 0}
    for name, owner in (("original", model), ("copy", other)):
        for defense in owner.defenses.values():

            def count(module, inputs, name=name):
                runs[name] += 1

            defense.register_forward_pre_hook(count)
    other(x)
    assert runs == {"original": 0, "copy": len(other.defenses)}
    changed = list(other.taps.parameters())
    for parameter in changed:
        nn.init.normal_(parameter)
    assert torch.equal(drawn(model, x), wanted)
    assert torch.equal(drawn(other, x), wanted) == (not changed)


def test_forward_compiles_to_one_graph(model, batch):
    torch.compiler.reset()  # networks of other tests count towards its limit of graphs
    model.eval()
    wanted = drawn(model, batch[0])
    keys = list(model.state_dict())
    model.compile(fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(drawn(model, batch[0]), wanted, atol=1e-6, rtol=0)
    model.forward_with_aux(*batch)
    torch.testing.assert_close(drawn(model, batch[0]), wanted, atol=1e-6, rtol=0)
    assert list(model.state_dict()) == keys


@pytest.mark.slow
def test_forward_with_aux_compiles_to_one_graph(model, batch):
    torch.compiler.reset()  # networks of other tests count towards its limit of graphs
    model.eval()
    wanted = drawn(model.forward_with_aux, *batch)
    compiled = torch.compile(model.forward_with_aux, fullgraph=True, backend="aot_eager")
    for _ in range(2):
        found = drawn(compiled, *batch)
        torch.testing.assert_close(found.logits, wanted.logits, atol=1e-6, rtol=0)
        assert list(found.aux) == list(wanted.aux)
        for point, named in wanted.aux.items():
            assert list(found.aux[point]) == list(named)
            for key, value in named.items():
                torch.testing.assert_close(found.aux[point][key], value, atol=1e-5, rtol=1e-5)
        model(batch[0])


def test_threads_do_not_mix_up_their_auxiliary_tensors(model):
    make_deterministic(model)  # threads share one stream of draws
    images = torch.rand(4, 2, 3, 8, 8)
    wanted = [model.forward_with_aux(x) for x in images]
    start = threading.Barrier(4)
    agreed = []

    def work(index):
        start.wait()
        for _ in range(30):
            found = model.forward_with_aux(images[index])
            agreed.append(
                torch.equal(found.logits, wanted[index].logits)
                and all(
                    torch.equal(found.aux[point][key], value)
                    for point, named in wanted[index].aux.items()
                    for key, value in named.items()
                )
            )

    threads = [threading.Thread(target=work, args=(index,)) for index in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert agreed == [True] * 120


def test_an_exception_in_the_middle_closes_the_tape(model, batch):
    def fail(module, inputs):
        raise ArithmeticError("in the middle")

    handle = model.backbone.fc.register_forward_pre_hook(fail)
    with pytest.raises(ArithmeticError, match="in the middle"):
        model.forward_with_aux(*batch)
    assert tape.current() is None
    handle.remove()
    assert list(model.forward_with_aux(*batch).aux) == list(model.defenses)


def test_tapes_do_not_nest(model, batch):
    handle = model.backbone.fc.register_forward_pre_hook(lambda *_: model.forward_with_aux(*batch))
    with pytest.raises(RuntimeError, match="already running in this thread: a defence must not start another"):
        model.forward_with_aux(*batch)
    assert tape.current() is None
    handle.remove()
    model.forward_with_aux(*batch)


def test_yaml_and_constructor_have_the_same_defaults(module_name, compose_config, option_file):
    """A variant says which option it starts from, and what it writes over it; all else are the defaults."""
    cfg = compose_config("dataset=toy", f"defense={module_name}")
    node = OmegaConf.to_container(cfg.defense.module, resolve=False)
    assert node.pop("_partial_") is True
    parameters = inspect.signature(get_class(node.pop("_target_"))).parameters
    defaults = {name: p.default for name, p in parameters.items() if p.default is not inspect.Parameter.empty}
    own = OmegaConf.load(option_file("defense", module_name))
    is_variant = own.get("defaults", ["_self_"]) != ["_self_"]
    written = set(own.module) if is_variant else set()
    assert node.keys() == defaults.keys()
    assert {name for name, value in node.items() if value != defaults[name]} == written
    assert set(parameters) - set(defaults) == {"shape", "num_classes"}


def test_two_sites_give_the_mean_of_their_losses(module_name, compose_config, toy, batch):
    x, y = batch
    # what replaces a module replaces one whose shape it keeps
    replaces = compose_config("dataset=toy", f"defense={module_name}").defense.get("place") == "instead"
    at = "defense.at=${model.activations}" if replaces else "defense.at=[block1,block2]"
    model = build_model(compose_config(*toy, f"defense={module_name}", at))
    assert len(model.defenses) == 2
    adv = model.forward_with_aux(x, y)

    def criterion(adv, clean, y):
        return {"ce": functional.cross_entropy(adv, y)}

    found = model.auxiliary_losses(adv, y, criterion=criterion)
    wanted = {}
    for point, defense in model.defenses.items():
        for name, value in defense.auxiliary_loss(adv, y, point, clean=None, criterion=criterion).items():
            wanted[f"{point}/{name}"] = value / 2
    assert list(found) == list(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value)
    loss = CrossEntropy()
    terms = [defense.attack_terms(adv.aux[point], y, None, loss) for point, defense in model.defenses.items()]
    joint = model.attack_terms(adv, y, clean=None, loss=loss)
    assert model.has_attack_terms == (joint is not None)
    if joint is None:
        assert terms == [None, None]
    else:
        assert joint.shape == (8,)
        torch.testing.assert_close(joint, torch.stack(terms).mean(0))


def test_the_backbone_keeps_its_keys_and_takes_a_plain_checkpoint(model, compose_config, toy, batch):
    plain = build_model(compose_config(*toy, "defense=none", "seed=5")).backbone.eval()
    assert list(model.backbone.state_dict()) == list(plain.state_dict())
    assert not torch.equal(model.backbone.eval()(batch[0]), plain(batch[0]))
    model.backbone.load_state_dict(plain.state_dict())
    for name, value in plain.state_dict().items():
        assert torch.equal(model.state_dict()[f"backbone.{name}"], value)


def test_its_own_checkpoint_loads(model, defense_name, compose_config, toy, batch):
    other = build_model(compose_config(*toy, f"defense={defense_name}", "seed=5")).eval()
    other.load_state_dict(model.state_dict())
    assert torch.equal(drawn(other, batch[0]), drawn(model.eval(), batch[0]))


def test_a_tapped_backbone_is_refused(build):
    net = Chain()
    attach(net, {"relu": build}, (3, 8, 8), 4)
    for point in ("relu", "conv:in"):
        with pytest.raises(RuntimeError, match="carries the defences of another model already"):
            attach(net, {point: build}, (3, 8, 8), 4)


class Chain(nn.Module):
    """A convolution, an in-place ReLU and a head; says what entered the head."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 4))

    def forward(self, x):
        return self.head(self.relu(self.conv(x)))


@pytest.mark.parametrize(
    ("point", "before", "after"),
    [
        ("conv", lambda net, x: net.conv(x), lambda net, f: net.head(f.relu())),
        ("relu:in", lambda net, x: net.conv(x), lambda net, f: net.head(f.relu())),
        ("relu:instead", lambda net, x: net.conv(x), lambda net, f: net.head(f)),
        ("relu", lambda net, x: net.conv(x).relu(), lambda net, f: net.head(f)),
        ("head:in", lambda net, x: net.conv(x).relu(), lambda net, f: net.head(f)),
    ],
    ids=["conv", "relu:in", "relu:instead", "relu", "head:in"],
)
def test_every_place_at_a_module_works(point, before, after, build, batch):
    x, y = batch
    plain = Chain()
    model = attach(copy.deepcopy(plain), {point: build}, (3, 8, 8), 4).eval()
    (defense,) = model.defenses.values()
    # a fresh tensor, as the network's ReLU works in place
    output = drawn(defense, before(plain, x).clone())
    torch.testing.assert_close(drawn(model, x), after(plain, output.features), atol=1e-6, rtol=1e-6)
    model.train().forward_with_aux(x, y).logits.sum().backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.backbone.parameters())


@pytest.mark.parametrize("point", ["conv", "relu:in", "relu:instead", "relu", "head:in"])
def test_an_inplace_network_does_not_spoil_filed_tensors(point, build, batch):
    model = attach(Chain(), {point: build}, (3, 8, 8), 4).eval()
    (defense,) = model.defenses.values()
    given = []
    handle = defense.register_forward_hook(
        lambda module, inputs, output: given.append({key: value.clone() for key, value in output.aux.items()})
    )
    filed = model.forward_with_aux(*batch).aux[point]
    handle.remove()
    spoilt = [key for key, value in given[0].items() if not torch.equal(filed[key], value)]
    assert spoilt == []
