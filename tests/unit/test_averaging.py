"""Averages against explicit sums over the recorded online weights, in a real Trainer."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning import Callback, Trainer
from torch import nn
from torch.nn import functional

from fsr_lab.attack.pgd import PGD
from fsr_lab.core.threat import Threat
from fsr_lab.defense.fsr import FSR
from fsr_lab.engine.module import RobustClassifier
from fsr_lab.model.defended import attach
from fsr_lab.model.tiny_cnn import TinyCNN
from fsr_lab.modifier.awp import AWP
from fsr_lab.modifier.ema import EMA
from fsr_lab.modifier.recalibration import recalibrate
from fsr_lab.modifier.swa import SWA
from fsr_lab.strategy.at import AT
from fsr_lab.strategy.natural import Natural

# of Lightning 2.6 about itself under torch 2.15
pytestmark = pytest.mark.filterwarnings("ignore:.*LeafSpec.*is deprecated:FutureWarning")
STEPS = 3  # of an epoch


def plain(model):
    """Return {name: float64 array} of a network's parameters and floating-point buffers."""
    return {
        name: value.double().numpy().copy() for name, value in model.state_dict().items() if value.is_floating_point()
    }


def assert_close(model, wanted):
    found = plain(model)
    assert found.keys() == wanted.keys()
    for name, value in found.items():
        assert np.allclose(value, wanted[name], rtol=0, atol=1e-6), name


def copied(state):
    return {name: value.clone() for name, value in state.items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name, value in one.items() if not torch.equal(value, other[name])] == []


class Recorder(Callback):
    """Keeps the online weights as they were before training and after each of its batches."""

    def __init__(self):
        self.online, self.averages, self.checkpoints = [], [], []

    def on_train_start(self, trainer, pl_module):
        self.online.append(plain(pl_module.model))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.online.append(plain(pl_module.model))
        self.averages.append({name: plain(average) for name, average in pl_module.averages.items()})
        checkpoint = {"state_dict": dict(pl_module.state_dict())}
        for callback in trainer.callbacks:
            callback.on_save_checkpoint(trainer, pl_module, checkpoint)
        pl_module.on_save_checkpoint(checkpoint)
        states = {name: copied(state) for name, state in checkpoint.get("averages", {}).items()}
        self.checkpoints.append((copied(checkpoint["state_dict"]), states))


class Loader(list):
    """The same batches every epoch; a bare list would be several loaders to Lightning."""


def batches(count, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return Loader((torch.rand(6, 3, 8, 8, generator=generator), torch.arange(6) % 4) for _ in range(count))


def small_attack():
    return PGD(threat=Threat(norm="linf", eps=8 / 255), steps=1, relative_step=1.0, random_start=False)


def build(*, modifiers=(), strategy=None, seed=0):
    torch.manual_seed(seed)
    backbone = TinyCNN(num_classes=4, width=4, batch_norm=True)
    return RobustClassifier(
        model=attach(backbone, {"block2": partial(FSR, width=4)}, (3, 8, 8), 4), strategy=strategy or Natural(),
        val_attack=small_attack(), optimizer=partial(torch.optim.SGD, lr=0.2, momentum=0.9), scheduler=None,
        modifiers=modifiers, num_classes=4, seed=0,
    )  # fmt: skip


def fit(module, *callbacks, epochs=2, val=None, recorder=None, **options):
    """Train on the same few batches every epoch; return what was recorded."""
    recorder = recorder or Recorder()
    trainer = Trainer(
        max_epochs=epochs, callbacks=[*callbacks, recorder], accelerator="cpu", logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, inference_mode=False,
        num_sanity_val_steps=0, limit_val_batches=1.0 if val else 0, **options,
    )  # fmt: skip
    trainer.fit(module, batches(STEPS), val or batches(1))
    return recorder


def moving(online, decays):
    """Return the average after each update, by the definition."""
    average, found = online[0], []
    for d, current in zip(decays, online[1:], strict=True):
        average = {name: d * average[name] + (1 - d) * current[name] for name in average}
        found.append(average)
    return found


# EMA and SEAT --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("t", "decay"), [(0, 0.1), (1, 0.1818), (9, 0.5263), (99, 0.9174), (8990, 0.999), (9999, 0.999)]
)
def test_the_warm_up_is_seats(t, decay):
    ema = EMA(warm_up=True)
    ema.updates = t
    assert ema.decay_now(None) == pytest.approx(decay, abs=5e-5)
    ema.updates = 8989
    assert ema.decay_now(None) < 0.999


@pytest.mark.parametrize("warm_up", [True, False])
def test_ema_is_the_moving_average_from_the_untrained_network_on(warm_up):
    module = build()
    recorder = fit(module, EMA(decay=0.9, warm_up=warm_up))
    decays = [min(0.9, (t + 1) / (t + 10)) if warm_up else 0.9 for t in range(2 * STEPS)]
    wanted = moving(recorder.online, decays)
    assert len(wanted) == len(recorder.averages) == 2 * STEPS
    for average, want in zip(recorder.averages, wanted, strict=True):
        for name, value in average["ema"].items():
            assert np.allclose(value, want[name], rtol=0, atol=1e-6), name
    assert_close(module.averages["ema"], wanted[-1])
    (moved,) = {name for name in wanted[-1] if name.endswith("block2.norm.running_mean")}
    assert not np.allclose(wanted[-1][moved], recorder.online[-1][moved], atol=1e-3)


def test_buffers_of_whole_numbers_are_copied_and_the_engines_own_left_alone():
    module = build()
    fit(module, EMA(decay=0.9, warm_up=False))
    counted = [value for name, value in module.averages["ema"].state_dict().items() if name.endswith("tracked")]
    assert [int(value) for value in counted] == [2 * STEPS] * len(counted)
    assert len(counted) == 6  # two of the backbone, four of FSR
    assert int(module.diverged_at) == -1


def test_averaging_leaves_training_as_it_is():
    alone, averaged = build(), build()
    fit(alone)
    fit(averaged, EMA(), SWA(start_epoch=1), val=batches(1, seed=1))
    assert_same(averaged.state_dict(), alone.state_dict())


def test_the_average_is_a_network_of_its_own(batch):
    module = build()
    fit(module, EMA(), epochs=1)
    average = module.averages["ema"]
    shared = {tensor.data_ptr() for tensor in module.model.state_dict().values()}
    assert not shared & {tensor.data_ptr() for tensor in average.state_dict().values()}
    before = average(batch[0])
    with torch.no_grad():
        for parameter in module.model.parameters():
            parameter.zero_()
    assert torch.equal(average(batch[0]), before)  # its taps call its own defence
    assert not any(parameter.requires_grad for parameter in average.parameters())


def test_accumulated_gradients_count_as_one_step():
    module = build()
    ema = EMA(decay=0.5, warm_up=False)
    recorder = fit(module, ema, epochs=1, accumulate_grad_batches=2)
    assert ema.updates == 2  # after two batches, and after the epoch's third
    assert_close(module.averages["ema"], moving([recorder.online[i] for i in (0, 2, 3)], [0.5, 0.5])[-1])


# SWA -----------------------------------------------------------------------------------------------------------------


def test_swa_is_the_mean_of_the_ends_of_its_epochs():
    module = build()
    recorder = fit(module, SWA(start_epoch=2, bn_batches=0), epochs=4)
    ends = [recorder.online[STEPS * epoch] for epoch in (2, 3, 4)]
    assert_close(module.averages["swa"], {name: np.mean([end[name] for end in ends], axis=0) for name in ends[0]})
    # within its second epoch it is what it was at the end of its first
    for name, value in recorder.averages[2 * STEPS + 1]["swa"].items():
        assert np.allclose(value, ends[0][name], rtol=0, atol=1e-7)


def test_before_it_begins_swa_is_the_online_network():
    recorder = fit(build(), SWA(start_epoch=2, bn_batches=0))
    for averages, online in zip(recorder.averages[: STEPS + 1], recorder.online[1 : STEPS + 2], strict=True):
        assert all(np.array_equal(averages["swa"][name], value) for name, value in online.items())
    for online, averages in recorder.checkpoints[: STEPS + 1]:
        assert_same(averages["swa"], online)


def test_an_average_that_follows_perturbed_weights_is_saved_as_the_true_ones():
    module = build(modifiers=[AWP(gamma=0.5)])
    fit(module, SWA(start_epoch=1), epochs=1)
    module.averages["swa"] = module.model
    before = copied(module.state_dict())
    module.training_output(*batches(1)[0], SimpleNamespace(epoch=0))
    checkpoint = {"state_dict": dict(module.state_dict())}
    SWA().on_save_checkpoint(None, module, checkpoint)
    module.on_save_checkpoint(checkpoint)
    weights = {name: value for name, value in before.items() if name.endswith("weight")}
    assert_same({name: checkpoint["averages"]["swa"][name] for name in weights}, weights)
    assert not torch.equal(module.model.backbone.fc.weight, weights["model.backbone.fc.weight"])


def test_batchnorm_is_estimated_anew_on_images_crafted_against_the_average():
    crafted = []

    class Spied(AT):
        def craft(self, model, x, y, progress):
            found = super().craft(model, x, y, progress)
            if model is module.averages.get("swa") and model is not module.model:
                crafted.append((x, found.x_adv))
            return found

    module = build(strategy=Spied(attack=small_attack()))
    fit(module, SWA(start_epoch=1, bn_batches=2), epochs=2, val=batches(1, seed=1))
    average = module.averages["swa"]
    assert len(crafted) == 2 * 2
    assert all((x_adv - x).abs().max() > 0.9 * 8 / 255 for x, x_adv in crafted)
    seen = [functional.conv2d(x, average.backbone.block1.conv.weight, stride=2, padding=1) for _, x in crafted[-2:]]
    norm = average.backbone.block1.norm
    assert torch.allclose(norm.running_mean, torch.stack([f.mean((0, 2, 3)) for f in seen]).mean(0), atol=1e-6)
    assert torch.allclose(norm.running_var, torch.stack([f.var((0, 2, 3)) for f in seen]).mean(0), atol=1e-6)
    assert (norm.momentum, norm.training, int(norm.num_batches_tracked)) == (0.1, False, 2)


@pytest.mark.parametrize("start", [1, 3])
def test_swa_after_the_last_epoch_is_refused(start):
    if start == 1:
        SWA(start_epoch=1).setup(SimpleNamespace(max_epochs=1), None, "fit")
        return
    with pytest.raises(ValueError, match=r"epoch 3, after the last, 2.*modifier\.swa\.start_epoch=1"):
        fit(build(), SWA(start_epoch=start))


# recalibration -------------------------------------------------------------------------------------------------------


def test_recalibration_runs_the_deployed_network_but_for_its_batchnorms(batch):
    module = build()
    model = module.model.train()
    flags = [m.training for m in model.modules()]
    defense = model.defenses["block2"]
    seen = []
    defense.register_forward_hook(lambda m, args, out: seen.append((m.training, m.separation[1].training)))
    state = torch.get_rng_state()
    before = copied(model.state_dict())
    recalibrate(model, [batch[0], batch[0] / 2])
    assert torch.equal(torch.get_rng_state(), state)  # no mask was drawn
    assert seen == [(False, True)] * 2
    assert [m.training for m in model.modules()] == flags
    after = model.state_dict()
    changed = {name for name, value in before.items() if not torch.equal(value, after[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"running_mean", "running_var", "num_batches_tracked"}
    assert len(changed) == 3 * 6
    assert all(p.requires_grad for p in model.parameters())


def test_recalibrating_again_gives_the_same(batch):
    model = build().model
    recalibrate(model, [batch[0]])
    once = copied(model.state_dict())
    recalibrate(model, iter([batch[0]]))
    assert_same(dict(model.state_dict()), once)


def test_a_network_without_batchnorm_asks_for_no_batch():
    def refuse():
        raise AssertionError("nobody needs a batch")
        yield

    recalibrate(nn.Linear(3, 3), refuse())


def test_momentum_is_back_after_an_exception(batch):
    def broken():
        yield batch[0]
        raise KeyboardInterrupt

    model = build().model.train()
    with pytest.raises(KeyboardInterrupt):
        recalibrate(model, broken())
    assert model.backbone.block1.norm.momentum == 0.1
    assert all(m.training for m in model.modules())


# validation and checkpoints ------------------------------------------------------------------------------------------


def test_validation_judges_the_first_average_and_leaves_the_online_weights(monkeypatch):
    module = build()
    judged = []
    attack = module.val_attack

    def spy(model, x, y):
        judged.append((model, copied(module.state_dict())))
        return attack(model, x, y)

    module.val_attack = spy
    recorder = fit(module, EMA(), SWA(start_epoch=1), val=batches(2, seed=1))
    assert len(judged) == 4
    assert {id(model) for model, _ in judged} == {id(module.averages["ema"])}
    for epoch, (_, online) in zip((1, 1, 2, 2), judged, strict=True):
        for name, value in recorder.online[STEPS * epoch].items():
            assert np.array_equal(online[f"model.{name}"].double().numpy(), value)


def test_an_interrupted_validation_leaves_the_online_weights():
    module = build()

    def interrupted(model, x, y):
        raise RuntimeError("stop")

    module.val_attack = interrupted
    recorder = Recorder()
    with pytest.raises(RuntimeError, match="stop"):
        fit(module, EMA(), val=batches(1, seed=1), recorder=recorder)
    assert all(np.array_equal(value, recorder.online[-1][name]) for name, value in plain(module.model).items())


def test_a_checkpoint_holds_the_network_and_its_averages_and_nothing_else():
    module = build()
    recorder = fit(module, EMA(decay=0.5), EMA(name="seat_average"), SWA(start_epoch=1), epochs=1)
    online, averages = recorder.checkpoints[-1]
    assert list(averages) == ["ema", "seat_average", "swa"]
    assert_same(online, module.state_dict())
    for name, state in averages.items():
        assert state.keys() == online.keys()
        assert_same(state, {f"model.{key}": value for key, value in module.averages[name].state_dict().items()})
    assert not torch.equal(averages["ema"]["model.backbone.fc.weight"], online["model.backbone.fc.weight"])


def test_an_average_that_is_no_number_is_not_saved():
    module = build()
    fit(module, EMA(), epochs=1)
    checkpoint = {"state_dict": dict(module.state_dict())}
    checkpoint["averages"] = {"ema": {"model.x": torch.tensor(float("nan"))}}
    with pytest.raises(RuntimeError, match=r"model\.x was not finite"):
        module.on_save_checkpoint(checkpoint)


def test_a_checkpoint_without_the_average_is_refused():
    with pytest.raises(ValueError, match="holds no average 'ema'"):
        EMA().on_load_checkpoint(None, None, {"state_dict": {}})


@pytest.mark.parametrize(
    ("build_average", "said"),
    [
        (partial(EMA, decay=1.0), r"decay of ema in \[0, 1\), got 1\.0"),
        (partial(EMA, decay=-0.1), "got -0.1"),
        (partial(SWA, start_epoch=0), "start_epoch of swa of at least 1, the first epoch, got 0"),
        (partial(SWA, bn_batches=-1), "bn_batches of swa of at least 0, got -1"),
    ],
)
def test_impossible_values_are_refused(build_average, said):
    with pytest.raises(ValueError, match=said):
        build_average()
