"""What every strategy of conf/strategy keeps, with the defences of the paper's comparison.

The golden curves are written anew, after a change that is meant to move them, by

    FSR_RECORD_GOLDEN=1 python -m pytest tests/contract/test_strategies.py -k golden
"""

import json
import os
from pathlib import Path

import pytest
import torch

from fsr_lab.core.types import Progress
from fsr_lab.engine.build import build_model, build_strategy

CONF = Path(__file__).parents[2] / "conf"
DEFENSES = ("none", "fsr", "fd", "cas", "cifs")
"""The paper's comparison; tests/contract/test_defenses.py has all defences, under AT."""
GOLDEN = Path(__file__).parents[1] / "golden" / "loss_curves.json"
START = Progress(epoch=9, max_epochs=10, step=0)  # curricula are near their end


@pytest.fixture(params=[name for name in DEFENSES if (CONF / "defense" / f"{name}.yaml").exists()])
def rival(request):
    return request.param


@pytest.fixture
def cfg(strategy_name, rival, compose_config, toy):
    return compose_config(*toy, f"strategy={strategy_name}", f"defense={rival}")


@pytest.fixture
def easy_batch():
    """Sixteen noisy images of four patterns: learnt within a few steps. Drawn uniformly, alike on every machine."""
    patterns = torch.rand(4, 3, 8, 8)
    y = torch.arange(16) % 4
    return (0.7 * patterns[y] + 0.3 * torch.rand(16, 3, 8, 8)), y


def train(model, strategy, batch, steps, *, lr=0.1):
    """Return the loss before each of some steps of plain SGD with momentum."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    curve = []
    model.train()
    for step in range(steps):
        torch.manual_seed(step)
        out = strategy(model, *batch, START._replace(step=step))
        loss = torch.stack(list(out.losses.values())).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        curve.append(loss.item())
    return curve


def test_losses_are_finite_named_scalars(cfg, easy_batch):
    model = build_model(cfg).train()
    x, y = easy_batch
    out = build_strategy(cfg)(model, x, y, START)
    assert out.losses
    for name, value in out.losses.items():
        assert isinstance(name, str)
        assert value.shape == ()
        assert value.isfinite()
        assert value.requires_grad
    assert out.logits.shape == (16, 4)
    assert out.x_adv.shape == x.shape
    assert not out.x_adv.requires_grad
    points = {name.partition("/")[0] for name in out.losses if "/" in name}
    assert points <= set(model.defenses)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_the_images_trained_on_lie_in_the_threat_set(cfg, easy_batch):
    x, y = easy_batch
    x_adv = build_strategy(cfg)(build_model(cfg).train(), x, y, START).x_adv
    assert (x_adv - x).abs().max() <= 8 / 255 + 1e-7
    assert 0 <= x_adv.min() <= x_adv.max() <= 1


def test_every_parameter_gets_a_gradient(cfg, easy_batch):
    model, strategy = build_model(cfg), build_strategy(cfg)
    train(model, strategy, easy_batch, 3)  # feature denoising opens its gate first: its BatchNorm starts at zero
    model.zero_grad()
    out = strategy(model, *easy_batch, START)
    torch.stack(list(out.losses.values())).sum().backward()
    idle = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert idle == []


def test_crafting_leaves_no_gradient_behind(cfg, easy_batch):
    model = build_model(cfg).train()
    out = build_strategy(cfg)(model, *easy_batch, START)
    assert out.logits.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())


def test_the_loss_falls(cfg, easy_batch):
    model = build_model(cfg)
    curve = train(model, build_strategy(cfg), easy_batch, 20)
    assert sum(curve[-3:]) < 0.7 * sum(curve[:3])


def test_crafting_sees_a_deterministic_network_in_eval_mode(cfg, easy_batch):
    model, strategy = build_model(cfg).train(), build_strategy(cfg)
    seen = []

    def spy(backbone, inputs):
        (x,) = inputs
        if x.requires_grad:  # the attack's own passes, and no other
            modes = {module.training for module in model.modules()}
            trainable = any(parameter.requires_grad for parameter in model.parameters())
            repeats = torch.equal(backbone.forward(x), backbone.forward(x))
            seen.append((modes, trainable, repeats or any(d.eval_noise for d in model.defenses.values())))

    model.backbone.register_forward_pre_hook(spy)
    strategy(model, *easy_batch, START)
    attack = getattr(strategy, "attack", None)
    assert len(seen) >= (0 if attack is None else attack.steps)
    assert bool(seen) == (attack is not None)
    assert all(entry == ({False}, False, True) for entry in seen)


def test_five_steps_follow_the_golden_curve(cfg, strategy_name, rival, easy_batch):
    # float64: in float32 a pixel whose gradient is nearly zero, as TRADES' are at its start, changes sign with the
    # number of threads
    x, y = easy_batch
    curve = train(build_model(cfg).double(), build_strategy(cfg), (x.double(), y), 5, lr=0.02)
    name = f"{strategy_name}+{rival}"
    golden = json.loads(GOLDEN.read_text()) if GOLDEN.exists() else {}
    if os.environ.get("FSR_RECORD_GOLDEN"):
        golden[name] = curve
        GOLDEN.parent.mkdir(exist_ok=True)
        GOLDEN.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
    assert name in golden, f"no golden curve for {name}; record it as the head of this file says"
    # other threads and instruction sets move it by 1e-12 of itself; a changed formula or draw by 1e-3 and up
    assert curve == pytest.approx(golden[name], rel=1e-8)
