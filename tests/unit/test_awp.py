"""AWP against the released code's way of doing it: a proxy network that is copied, stepped and compared."""

import copy
from functools import partial

import pytest
import torch
from lightning import LightningModule, Trainer
from torch import nn
from torch.nn import functional

from fsr_lab.attack.pgd import PGD
from fsr_lab.core.threat import Threat
from fsr_lab.core.types import Modifier, Progress
from fsr_lab.defense.fsr import FSR
from fsr_lab.engine.module import RobustClassifier
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN
from fsr_lab.modifier import awp as awp_file
from fsr_lab.modifier.awp import AWP
from fsr_lab.strategy.at import AT

START = Progress(epoch=0, max_epochs=2, step=0)


class Loader(list):
    """Batches; a bare list would be several loaders to Lightning."""


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def weights_of(state):
    return {name: value for name, value in state.items() if "running" not in name and "tracked" not in name}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


@pytest.fixture
def net(classifier):
    return classifier.double().train()


@pytest.fixture
def loss_of(batch):
    """Return the function from a network to the function that computes its loss."""
    x, y = batch
    return lambda model: lambda: functional.cross_entropy(model(x.to(next(model.parameters()).dtype)), y)


def directions(model, loss_of):
    """METHOD 3.9, steps 2 and 3: {name: v} of a proxy's one ascent step, by plain SGD at 0.01."""
    proxy = copy.deepcopy(model).train()
    optimizer = torch.optim.SGD(proxy.parameters(), lr=0.01)
    optimizer.zero_grad()
    (-loss_of(proxy)()).backward()
    optimizer.step()
    found = {}
    for (name, w), (_, stepped) in zip(model.named_parameters(), proxy.named_parameters(), strict=True):
        if w.ndim >= 2 and "weight" in name:
            difference = (stepped - w).detach()
            found[name] = (w.detach().norm() / (difference.norm() + 1e-20)) * difference
    return found


def test_weights_move_as_a_stepped_proxy_says(net, loss_of):
    before, moves = state(net), directions(net, loss_of)
    AWP(gamma=0.07).before_loss(net, loss_of(net), START)
    assert sorted(moves) == ["0.weight", "3.weight", "8.weight"]  # two convolutions and the linear layer
    for name, value in net.state_dict().items():
        if name in moves:
            assert torch.allclose(value, before[name] + 0.07 * moves[name], rtol=0, atol=1e-12), name
            length = (value - before[name]).norm() / before[name].norm()
            assert length.item() == pytest.approx(0.07)
        else:
            assert torch.equal(value, before[name]), name


def test_the_move_raises_the_loss(net, loss_of):
    loss = loss_of(net)
    before = loss().item()
    AWP(gamma=0.01).before_loss(net, loss, START)
    assert loss().item() > before + 1e-4


def test_the_ascent_leaves_gradients_and_statistics_alone(net, loss_of):
    net[0].weight.grad = torch.full_like(net[0].weight, 3.0)
    buffers = {name: value.clone() for name, value in net.named_buffers()}
    AWP().before_loss(net, loss_of(net), START)
    assert_same(dict(net.named_buffers()), buffers)
    assert (net[0].weight.grad == 3).all()
    assert net[3].weight.grad is None
    loss_of(net)()
    assert not torch.equal(net[1].running_mean, buffers["1.running_mean"])  # which a forward would have moved


def test_steps_are_those_of_the_released_loop(net, loss_of):
    """METHOD 3.9, steps 4 to 6, three times over: momentum and decay act on the perturbed weights."""
    ours, theirs = net, copy.deepcopy(net)
    options = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}
    optimizers = [torch.optim.SGD(model.parameters(), **options) for model in (ours, theirs)]
    awp = AWP(gamma=0.05)
    for _ in range(3):
        awp.before_loss(ours, loss_of(ours), START)
        optimizers[0].zero_grad()
        loss_of(ours)().backward()
        optimizers[0].step()
        awp.after_optimizer_step(ours)

        moves = directions(theirs, loss_of)
        weights = dict(theirs.named_parameters())
        with torch.no_grad():
            for name, move in moves.items():
                weights[name] += 0.05 * move
        optimizers[1].zero_grad()
        loss_of(theirs)().backward()
        optimizers[1].step()
        with torch.no_grad():
            for name, move in moves.items():
                weights[name] -= 0.05 * move
    for (name, one), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.allclose(one.double(), other.double(), rtol=0, atol=1e-10), name


def test_a_step_of_nothing_gives_the_weights_back_bit_for_bit(classifier, loss_of):
    net = classifier.train()  # in float32, where subtracting the move again would not do
    before, awp = weights_of(state(net)), AWP(gamma=0.3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0, momentum=0.9)
    awp.before_loss(net, loss_of(net), START)
    loss_of(net)().backward()
    optimizer.step()
    assert not torch.equal(net[3].weight, before["3.weight"])
    awp.after_optimizer_step(net)
    assert_same(weights_of(state(net)), before)
    assert awp.true_weights() == {}


def test_a_second_ascent_without_a_step_starts_from_the_true_weights(classifier, loss_of):
    net = classifier.train()
    before, awp = state(net), AWP(gamma=0.3)
    awp.before_loss(net, loss_of(net), START)
    once = state(net)
    awp.before_loss(net, loss_of(net), START)
    assert_same(state(net), once)
    awp.after_optimizer_step(net)
    assert_same(state(net), before)


def test_warm_up_leaves_everything_alone(net, loss_of):
    def refuse():
        raise AssertionError("no ascent was due")

    before, awp = state(net), AWP(gamma=0.1, warmup_epochs=2)
    awp.before_loss(net, refuse, Progress(epoch=1, max_epochs=4, step=9))
    AWP(gamma=0).before_loss(net, refuse, START)
    assert_same(state(net), before)
    awp.before_loss(net, loss_of(net), Progress(epoch=2, max_epochs=4, step=10))
    assert not torch.equal(net[0].weight, before["0.weight"])


@pytest.mark.parametrize("share_noise", [True, False])
def test_the_loss_sees_the_draws_of_the_ascent_where_they_are_shared(net, loss_of, share_noise):
    drawn = []

    def noisy():
        drawn.append(torch.rand(5))
        return loss_of(net)()

    AWP(share_noise=share_noise).before_loss(net, noisy, START)
    noisy()
    assert torch.equal(*drawn) == share_noise


def test_a_shared_weight_is_moved_once_and_known_by_both_names():
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    net[2].weight = net[0].weight
    before, x, awp = state(net), torch.rand(3, 4), AWP(gamma=0.2)
    awp.before_loss(net, lambda: net(x).square().mean(), START)
    moved = (net[0].weight - before["0.weight"]).norm() / before["0.weight"].norm()
    assert moved.item() == pytest.approx(0.2, rel=1e-5)
    assert_same(dict(awp.true_weights()), {name: before[name] for name in ("0.weight", "2.weight")})


def test_weights_that_the_loss_does_not_reach_stay(net, loss_of):
    net.add_module("idle", nn.Linear(3, 3).double())
    frozen = net[3].weight.requires_grad_(False).clone()
    idle, last = net.idle.weight.clone(), net[8].weight.clone()
    AWP().before_loss(net[:9], loss_of(net[:9]), START)
    x = torch.rand(2, 3).double()
    AWP().before_loss(net, lambda: net[:9](torch.rand(2, 3, 8, 8).double()).sum(), START)
    assert torch.equal(net.idle.weight, idle)
    assert torch.equal(net[3].weight, frozen)
    assert not torch.equal(net[8].weight, last)
    assert net.idle(x).isfinite().all()


def test_under_autocast_the_next_forward_sees_the_new_weights(classifier, loss_of, batch):
    net, awp = classifier.train(), AWP(gamma=0.5)
    with torch.autocast("cpu", torch.bfloat16):
        at_true = net(batch[0])
        awp.before_loss(net, loss_of(net), START)
        seen = net(batch[0])
        loss_of(net)().backward()  # through casts of its own graph
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(seen, net(batch[0]))
    assert not torch.equal(seen, at_true)
    awp.after_optimizer_step(net)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(at_true, net(batch[0]))


def test_all_ranks_move_along_the_gradient_of_both(net, loss_of, monkeypatch):
    """Two ranks by hand: the other one's gradients are twice the reversed order of this one's."""
    weights = [net[0].weight, net[3].weight, net[8].weight]
    own = torch.autograd.grad(loss_of(net)(), weights)
    others = [2 * gradient.flip(0) for gradient in own]

    def add_the_other(flat):
        flat += torch.cat([gradient.reshape(-1) for gradient in others])

    for name, value in {"is_initialized": True, "get_world_size": 2}.items():
        monkeypatch.setattr(awp_file.dist, name, lambda value=value: value)
    monkeypatch.setattr(awp_file.dist, "all_reduce", add_the_other)
    before = [weight.detach().clone() for weight in weights]
    AWP(gamma=0.1).before_loss(net, loss_of(net), START)
    for weight, was, mine, other in zip(weights, before, own, others, strict=True):
        mean = (mine + other) / 2
        assert torch.allclose(weight, was + 0.1 * was.norm() / mean.norm() * mean, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    "wrong", [{"gamma": -0.01}, {"warmup_epochs": -1}, {"gamma": float("nan")}, {"warmup_epochs": 0.5}]
)
def test_negative_values_are_refused(wrong):
    ((name, value),) = wrong.items()
    with pytest.raises(ValueError, match=f"{name} .*of at least 0, got {value}"):
        AWP(**wrong)


# in the engine -------------------------------------------------------------------------------------------------------


@pytest.fixture
def module():
    """Return adversarial training with FSR under AWP, and no Trainer."""
    backbone = TinyCNN(num_classes=4, batch_norm=True)
    attack = PGD(threat=Threat(norm="linf", eps=8 / 255), steps=2, relative_step=0.5, random_start=True)
    return RobustClassifier(
        model=attach(backbone, {"block2": partial(FSR, width=4)}, (3, 8, 8), 4), strategy=AT(attack=attack),
        val_attack=attack, optimizer=partial(torch.optim.SGD, lr=0.1), scheduler=None,
        modifiers=[AWP(gamma=0.1)], num_classes=4, seed=0,
    ).train()  # fmt: skip


def saved(module):
    checkpoint = {"state_dict": dict(module.state_dict())}
    module.on_save_checkpoint(checkpoint)
    return {name: value.clone() for name, value in checkpoint["state_dict"].items()}


def test_it_is_a_modifier():
    assert isinstance(AWP(), Modifier)


def test_a_checkpoint_in_mid_step_holds_the_true_weights(module, batch):
    before = weights_of(state(module))
    optimizer = module.build_optimizer(module.model.parameters())
    module.training_output(*batch, START).losses["ce"].backward()
    moved = [name for name, value in module.state_dict().items() if not torch.equal(value, saved(module)[name])]
    weights = ["backbone.block1.conv", "backbone.block2.conv", "backbone.fc"]
    defense = "taps.block2.defense"
    weights += [f"{defense}.{net}.{layer}" for net in ("separation", "recalibration") for layer in (0, 3, 6)]
    assert sorted(moved) == sorted(f"model.{name}.weight" for name in [*weights, f"{defense}.aux_head"])
    assert_same(weights_of(saved(module)), before)
    optimizer.step()
    between = saved(module)
    module.modifiers[0].after_optimizer_step(module)
    assert_same(between, state(module))
    assert not torch.equal(between["model.backbone.fc.weight"], before["model.backbone.fc.weight"])


def test_an_exception_in_mid_step_ends_at_the_true_weights(module, batch, monkeypatch):
    def interrupted(self, *args, **kwargs):
        self.training_output(*batch, START)
        raise KeyboardInterrupt

    before = weights_of(state(module))
    monkeypatch.setattr(LightningModule, "optimizer_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        module.optimizer_step()
    assert_same(weights_of(state(module)), before)


def test_crafting_sees_the_true_weights(module, batch):
    seen = []
    attack = module.strategy.attack
    module.strategy.attack = lambda model, x, y: seen.append(state(model)) or attack(model, x, y)
    monitored = state(module.model)
    module.training_output(*batch, START)
    assert_same(seen[0], monitored)


@pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")  # of Lightning about itself
def test_validation_between_accumulated_batches_sees_the_true_weights(module, batch):
    seen = []
    attack = module.val_attack
    module.val_attack = lambda model, x, y: seen.append(weights_of(state(model))) or attack(model, x, y)
    before = weights_of(state(module.model))
    trainer = Trainer(
        max_epochs=1, accumulate_grad_batches=2, val_check_interval=1, accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, inference_mode=False,
        num_sanity_val_steps=0,
    )  # fmt: skip
    trainer.fit(module, Loader([batch] * 2), Loader([batch]))
    assert len(seen) == 2
    assert_same(seen[0], before)
    assert not torch.equal(seen[1]["backbone.fc.weight"], before["backbone.fc.weight"])
