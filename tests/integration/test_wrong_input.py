"""What a wrong input gets: one line that names cause and cure, exit code 2, and nothing lost."""

import json
import os
import pickle
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from fsr_lab.core.record import EvaluationRecord
from fsr_lab.strategy.natural import Natural

QUICK = ("evaluation=none", "trainer.max_epochs=1", "+trainer.limit_train_batches=2")
STEPS = 9  # of a whole epoch on the toy data


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and ".hydra" not in path.parts}


def last(run):
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def is_finite(run, which="last"):
    state = torch.load(run / "checkpoints" / f"{which}.ckpt", weights_only=True)["state_dict"]
    return all(bool(value.isfinite().all()) for value in state.values())


@pytest.fixture(scope="module")
def plain(fsr_module, tiny, tmp_path_factory):
    """Return a finished run of one epoch, to be copied by those who change it."""
    run = tmp_path_factory.mktemp("plain") / "run"
    assert fsr_module("train", *tiny, *QUICK, f"hydra.run.dir={run}").code == 0
    return run


@pytest.fixture
def own(plain, tmp_path):
    """Return a finished run of this test's own."""
    return Path(shutil.copytree(plain, tmp_path / "own"))


def alone(outcome):
    """Return the refusal, which must be all that was printed on standard error."""
    line = outcome.refusal()
    assert outcome.err.splitlines() == [line]
    assert len(line) < 1000
    return line


# what the command line says ------------------------------------------------------------------------------------------

WRONG = {
    "unknown layer": (["defense=fsr", "defense.at=blok2"], ["blok2", "TinyCNN", "block2", "block2.conv"]),
    "unknown place at a layer": (["defense=fsr", "defense.at='block2:inn'"], ["'inn'", "in", "block2:inn"]),
    "a layer without a feature map": (["defense=fsr", "defense.at=fc"], ["fc", "(C, H, W)"]),
    "wrong channel count under a defence": (["defense=fsr", "model.in_channels=1"], ["(3, 8, 8)", "in_channels"]),
    "wrong channel count": (["model.in_channels=1"], ["(3, 8, 8)", "in_channels"]),
    "too few outputs for the labels": (["model.num_classes=3"], ["(2, 4)", "(2, 3)", "num_classes"]),
    "negative eps": (["threat.eps=-0.1"], ["-0.1", "8/255"]),
    "negative fraction": (["threat.eps=-8/255"], ["-8/255", "at least 0"]),
    "eps that is no number": (["threat.eps=big"], ["'big'", "8/255"]),
    "unknown norm": (["threat.norm=l1"], ["'l1'", "'l2'"]),
    "training batch of one": (["dataset.batch_size=1"], ["batch_size", "got 1", "BatchNorm"]),
    "validation set too small": (["dataset.val_size=3"], ["val_size", "4 classes", "3"]),
    "unknown option": (["model=tinycnn"], ["no model named 'tinycnn'", "'tiny_cnn'"]),
    "unknown training attack": (["strategy=at", "attack=pgd21"], ["no attack named 'pgd21'", "'pgd20'"]),
    "unknown dataset": (["dataset=cifar"], ["no dataset named 'cifar'", "'cifar10'"]),
    "unknown experiment": (["experiment=cifar10_quik"], ["cifar10_quik", "cifar10_quick"]),
    "unknown key": (["sed=1"], ["sed"]),
    "unknown key in a group": (["trainer.epochs=3"], ["trainer.epochs"]),
    "an argument that the class lacks": (["defense=fsr", "+defense.module.tua=0.1"], ["tua", "FSR"]),
    "a value of a defence": (["defense=fsr", "defense.module.tau=0"], ["tau", "0"]),
    "an option of a defence": (["defense=fsr", "defense.module.noise=sometimes"], ["sometimes", "training"]),
    "an override that does not parse": (["seed=[1"], ["seed=[1"]),
    "no device": (["trainer.devices=0"], ["trainer.devices", "0"]),
    "learning rate": (["optim.lr=-1"], ["learning rate", "-1"]),
    "unknown checkpoint to test": (["test_checkpoints=[lst]"], ["lst", "last"]),
    "seed that is none": (["seed=null"], ["expected seed to be a whole number of at least 0, got None"]),
    "negative seed": (["seed=-1"], ["expected seed", "got -1"]),
    "chunk that is no number": (["chunk=abc"], ["expected chunk to be a whole number of at least 1, got abc"]),
    "no test samples": (["test_samples=0"], ["expected test_samples to be a whole number of at least 1, got 0"]),
    "an eps of nothing": (["threat.eps=0"], ["eps is 0", "threat.eps above 0"]),
    "an eps in levels": (["threat.eps=8"], ["wider than the pixel range", "8/255"]),
    "early exit that may be": (["early_exit=maybe"], ["expected early_exit to be true or false, got 'maybe'"]),
    "a file as ledger": ([f"ledger={__file__}"], [f"expected ledger={__file__} to be a folder"]),
    "images to keep nowhere": (["keep_images=true", "ledger=none"], ["leave out ledger=none"]),
    "a surrogate's network": (["surrogate_model=tiny_cnn"], ["give +model@surrogate_model=tiny_cnn"]),
    "weights of an unknown surrogate": (
        ["evaluation=transfer", f"+surrogate={__file__}"], ["its network; give +model@surrogate_model=NAME"],
    ),
    "an empty sweep": (["-m", "seed=range(0,0)"], ["no jobs"]),
}  # fmt: skip


FIRST = (
    "unknown layer", "wrong channel count under a defence", "wrong channel count", "too few outputs for the labels",
    "negative eps", "negative fraction", "eps that is no number", "training batch of one", "unknown option",
    "unknown key", "an argument that the class lacks", "an override that does not parse", "unknown checkpoint to test",
    "no test samples", "a file as ledger", "weights of an unknown surrogate",
)  # fmt: skip
"""What the default suite shows; each costs half a second of composing, and the others take the same ways."""


@pytest.mark.parametrize(
    "name", [name if name in FIRST else pytest.param(name, marks=pytest.mark.slow) for name in WRONG]
)
def test_a_wrong_override_gets_one_line(fsr, tiny, tmp_path, name):
    overrides, said = WRONG[name]
    flags, overrides = [word for word in overrides if word == "-m"], [word for word in overrides if word != "-m"]
    line = alone(fsr("train", *flags, *tiny, *QUICK, *overrides))
    assert [text for text in said if text not in line] == [], line
    assert list(tmp_path.glob("**/*.ckpt")) == []


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], ["no verb named 'trian'", "train"]),
        (["--bogus"], ["--bogus"]),
        (["train", "--bogus"], ["--bogus"]),
        (["train", "resume=nowhere"], ["nowhere", "not a run"]),
        (["evaluate"], ["run=DIR", "weights=FILE"]),
        (["evaluate", "run=nowhere"], ["nowhere", "not a run"]),
        (["evaluate", "weights=nowhere.pt", "dataset=toy", "model=tiny_cnn"], ["no checkpoint at nowhere.pt"]),
        (["report", "one", "two"], ["no folder one"]),
        (["report", "nowhere"], ["nowhere", "folder"]),
        (["report", "."], ["no evaluation record", "run"]),
        (["prepare", "dataset=cifar10", "dataset.source=nowhere.npz"], ["nowhere.npz", "dataset.source"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_a_wrong_command_gets_one_line(fsr, argv, said):
    line = alone(fsr(*argv))
    assert [text for text in said if text not in line] == [], line


def test_evaluation_of_a_run_names_what_is_there(fsr, plain):
    assert "['best', 'last']" in alone(fsr("evaluate", f"run={plain}", "checkpoint=bst"))
    assert "no attack named 'pgd02'" in alone(fsr("evaluate", f"run={plain}", "attack=[fgsm,pgd02]"))


EVALUATION = [
    (["seed=null"], ["expected seed to be a whole number of at least 0, got None"]),
    (["chunk=abc"], ["expected chunk to be a whole number of at least 1, got abc"]),
    (["test_samples=1.5"], ["expected test_samples to be a whole number of at least 1, got 1.5"]),
    (["device=tpu"], ["expected device to be auto or one of ['cpu'", "got tpu"]),
    (["device=cuda:99"], ["expected device to be auto or one of ['cpu'", "got cuda:99"]),
    (["surrogate_model=resnet18"], ["give model@surrogate_model=resnet18"]),
    (["threat.eps=0"], ["eps is 0", "threat.eps above 0"]),
    ([f"ledger={__file__}/in"], [f"expected ledger={__file__}/in to be a folder, and {__file__} is a file"]),
]


@pytest.mark.parametrize(("words", "said"), EVALUATION, ids=[words[0].partition("=")[0] for words, _ in EVALUATION])
def test_a_wrong_setting_of_an_evaluation_gets_one_line_before_anything_is_written(fsr, plain, tmp_path, words, said):
    line = alone(fsr("evaluate", f"run={plain}", f"hydra.run.dir={tmp_path / 'run'}", *words))
    assert [text for text in said if text not in line] == [], line
    assert not (tmp_path / "run" / "config.yaml").exists()


@pytest.mark.parametrize(
    ("word", "said"),
    [
        ("seed=null", "expected seed to be a whole number of at least 0, got None"),
        ("samples=abc", "expected samples to be a whole number of at least 1, got abc"),
        ("threat.eps=0", "eps is 0"),
        ("device=tpu", "expected device to be auto or one of ['cpu'"),
        ("explain=1", "no check named '1'"),
    ],
)
def test_a_wrong_word_to_the_doctor_gets_one_line(fsr, plain, word, said):
    assert said in alone(fsr("doctor", f"run={plain}", word))


def test_a_folder_of_weights_is_refused_with_what_it_may_be(fsr, plain):
    for verb in ("evaluate", "doctor"):
        line = alone(fsr(verb, f"weights={plain}", "dataset=toy", "model=tiny_cnn"))
        assert f"{plain} is a folder; give a file of weights in it, or run={plain} if fsr train made it" in line


def test_an_attack_outside_the_threat_set_is_refused(fsr, plain):
    wide = "evaluation.attacks.fgsm.threat={_target_: fsr_lab.core.threat.Threat, norm: linf, eps: 0.5}"
    outcome = fsr("evaluate", f"run={plain}", "attack=[fgsm]", wide, "device=cpu")
    line = outcome.refusal()
    assert "'fgsm' left the threat set" in line


# data ----------------------------------------------------------------------------------------------------------------


def images(**changes):
    """Return 40 training and 20 test images as an .npz of CIFAR-10 holds them, with something wrong."""
    rng = np.random.default_rng(0)
    arrays = {
        "x_train": rng.integers(256, size=(40, 32, 32, 3), dtype=np.uint8), "y_train": np.arange(40) % 10,
        "x_test": rng.integers(256, size=(20, 32, 32, 3), dtype=np.uint8), "y_test": np.arange(20) % 10,
    }  # fmt: skip
    for name, change in changes.items():
        arrays[name] = change(arrays[name].copy())
    return arrays


def with_value(value, dtype=None):
    def change(array):
        array = array if dtype is None else (array / 255).astype(dtype)
        array[(3, *[0] * (array.ndim - 1))] = value
        return array

    return change


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"x_train": with_value(1.5, np.float32)}, ["x_train", "[0, 1]", "1.5"]),
        ({"x_test": with_value(-0.5, np.float32)}, ["x_test", "[0, 1]", "-0.5"]),
        ({"x_train": with_value(np.nan, np.float32)}, ["x_train", "NaN", "image 3"]),
        ({"x_train": with_value(np.inf, np.float32)}, ["x_train", "inf"]),
        ({"x_train": lambda x: x[..., :1]}, ["x_train", "(40, 32, 32, 1)", "image_shape"]),
        ({"y_train": with_value(10)}, ["y_train", "[0, 10)", "10", "image 3"]),
        ({"y_test": with_value(-1)}, ["y_test", "[0, 10)", "-1"]),
        ({"y_test": lambda y: y[:-1]}, ["y_test", "20"]),
    ],
    ids=["above one", "below zero", "NaN", "infinite", "one channel", "label 10", "label -1", "a label too few"],
)
@pytest.mark.parametrize("verb", ["prepare", pytest.param("train", marks=pytest.mark.slow)])
def test_wrong_images_and_labels_are_refused_when_prepared(fsr, tiny, tmp_path, monkeypatch, changes, said, verb):
    monkeypatch.setenv("FSR_DATA", str(tmp_path / "data"))
    np.savez(tmp_path / "images.npz", **images(**changes))
    about = ("dataset=cifar10", f"dataset.source={tmp_path / 'images.npz'}", "dataset.verify=false")
    line = alone(fsr(verb, *([] if verb == "prepare" else [*tiny, *QUICK]), *about))
    assert [text for text in said if text not in line] == [], line
    assert [path.name for path in (tmp_path / "data").iterdir() if path.suffix != ".lock"] == []


def test_images_of_another_set_are_refused_as_cifar10(fsr, tmp_path, monkeypatch):
    monkeypatch.setenv("FSR_DATA", str(tmp_path / "data"))
    np.savez(tmp_path / "images.npz", **images())
    about = ("dataset=cifar10", f"dataset.source={tmp_path / 'images.npz'}")
    assert "dataset.verify=false" in alone(fsr("prepare", *about))
    assert fsr("prepare", *about, "dataset.verify=false").code == 0


def truncated(path):
    path.write_bytes(path.read_bytes()[:-1000])


def tampered(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(0, 0))


def not_a_manifest(path):
    path.with_suffix(".json").write_text("{")


@pytest.mark.parametrize("damage", [truncated, tampered, not_a_manifest])
def test_damaged_prepared_data_are_refused_and_the_cure_cures(fsr, tiny, tmp_path, monkeypatch, damage):
    monkeypatch.setenv("FSR_DATA", str(tmp_path / "data"))
    assert fsr("prepare", "dataset=toy").code == 0
    damage(tmp_path / "data" / "toy.pt")
    before = contents(tmp_path / "data")
    line = alone(fsr("train", *tiny, *QUICK))
    assert "toy" in line
    assert contents(tmp_path / "data") == before
    cure = re.search(r"run: fsr (prepare dataset=toy.*)$", line)[1]
    assert fsr(*cure.split()).code == 0
    assert fsr("prepare", "dataset=toy").code == 0  # which verifies what is there


@pytest.mark.parametrize("lost", ["toy.pt", pytest.param("toy.json", marks=pytest.mark.slow)])
def test_missing_prepared_data_are_made_again(fsr, tiny, tmp_path, monkeypatch, lost):
    monkeypatch.setenv("FSR_DATA", str(tmp_path / "data"))
    assert fsr("prepare", "dataset=toy").code == 0
    (tmp_path / "data" / lost).unlink()
    outcome = fsr("train", *tiny, *QUICK)
    assert outcome.code == 0, outcome.err


# checkpoints ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["model.width=16"], ["another architecture", "shape", "block1.conv.weight", "(8, 3, 3, 3)", "(16, 3, 3, 3)"]),
        (["+model.batch_norm=false"], ["another architecture", "unknown", "running_mean"]),
        (["defense=fsr"], ["another architecture", "missing", "taps"]),
    ],
    ids=["width", "BatchNorm", "defence"],
)  # fmt: skip
def test_a_checkpoint_of_another_architecture_says_which_keys_differ(fsr, plain, overrides, said):
    line = fsr("evaluate", f"run={plain}", "device=cpu", "evaluation=none", *overrides).refusal()
    assert [text for text in said if text not in line] == [], line


class Evil:
    """Leaves a mark where it is loaded as a pickle."""

    def __init__(self, mark):
        self.mark = mark

    def __reduce__(self):
        return (Path.touch, (self.mark,))


def as_checkpoint(path, mark):
    torch.save({"state_dict": {"model.x": torch.zeros(1)}, "loops": Evil(mark)}, path)


def as_pickle(path, mark):
    path.write_bytes(pickle.dumps(Evil(mark), protocol=2))


@pytest.mark.parametrize(
    ("write", "trusting"),
    [
        (as_checkpoint, lambda path: torch.load(path, weights_only=False)),
        pytest.param(as_pickle, lambda path: pickle.loads(path.read_bytes()), marks=pytest.mark.slow),
    ],
    ids=["a checkpoint", "a bare pickle"],
)
def test_a_checkpoint_that_would_run_code_is_refused_and_does_not_run_it(fsr, tiny, own, tmp_path, write, trusting):
    mark, weights = tmp_path / "it ran", own / "checkpoints" / "last.ckpt"
    write(weights, mark)
    (own / "status.json").unlink()  # as of a run that is yet to be continued
    bytes_before = weights.read_bytes()
    network = ("dataset=toy", "model=tiny_cnn", "model.batch_norm=true", "evaluation=none", "device=cpu")
    for argv in (
        ("evaluate", f"run={own}", "evaluation=none", "device=cpu"),
        ("evaluate", f"weights={weights}", *network),
        ("train", *tiny, *QUICK, f"hydra.run.dir={own}"),
    ):
        line = fsr(*argv).refusal()
        assert "refused" in line
        assert str(weights) in line
        assert not mark.exists()
        assert weights.read_bytes() == bytes_before
    trusting(weights)
    assert mark.exists()  # who trusts it runs it


@pytest.mark.parametrize("share", [0.5, *(pytest.param(share, marks=pytest.mark.slow) for share in (0.0, 0.99))])
def test_a_truncated_checkpoint_is_refused_and_kept(fsr, tiny, own, share):
    path = own / "checkpoints" / "last.ckpt"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    half = path.read_bytes()
    (own / "status.json").unlink()  # as of a run that is yet to be continued
    for argv in (
        ("evaluate", f"run={own}", "evaluation=none", "device=cpu"),
        ("train", *tiny, *QUICK, f"hydra.run.dir={own}"),
    ):
        assert str(path) in fsr(*argv).refusal()
        assert path.read_bytes() == half


KINDS = ["a list", "tensors without names", "names without tensors", "a tensor"]


@pytest.mark.parametrize("content", [[1, 2], {0: torch.zeros(1)}, {"state_dict": [1]}, torch.zeros(3)], ids=KINDS)
def test_a_file_without_a_state_dict_is_refused(fsr, tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    network = ("dataset=toy", "model=tiny_cnn", "evaluation=none", "device=cpu")
    assert "state dict" in fsr("evaluate", f"weights={tmp_path / 'weights.pt'}", *network).refusal()


def test_a_damaged_record_is_refused_by_the_report(fsr, own):
    path = own / "records" / "last.npz"
    path.write_bytes(path.read_bytes()[:100])
    line = alone(fsr("report", own))
    assert "last.json" in line
    assert "evaluate again" in line


# nothing lost --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("resume", "wrong"),
    [
        ("never", "dataset.batch_size=1"),
        ("never", "trainer.accelerator=x"),
        pytest.param("never", "defense.at=blok2", marks=pytest.mark.slow),
        pytest.param("never", "trainer.devices=0", marks=pytest.mark.slow),
        pytest.param("auto", "dataset.batch_size=1", marks=pytest.mark.slow),
        pytest.param("auto", "defense.at=blok2", marks=pytest.mark.slow),
    ],
)
def test_a_wrong_input_leaves_a_finished_run_as_it_was(fsr, tiny, own, resume, wrong):
    before = {path: data for path, data in contents(own).items() if path.name != "train.log"}
    defense = "defense=fsr" if "defense" in wrong else "defense=none"
    fsr("train", *tiny, *QUICK, defense, f"hydra.run.dir={own}", f"resume={resume}", wrong).refusal()
    assert {path: contents(own).get(path) for path in before} == before
    outcome = fsr("evaluate", f"run={own}", "evaluation=none", "device=cpu")
    assert outcome.code == 0, outcome.err


# a loss that is no number --------------------------------------------------------------------------------------------


def spoil(monkeypatch, at, spoiled):
    """Let the training loss of one step be what `spoiled` makes of it."""
    original, calls = Natural.criterion, []

    def criterion(self, adv, clean, y):
        losses = original(self, adv, clean, y)
        calls.append(len(calls))
        return {"ce": spoiled(losses["ce"], adv)} if calls[-1] == at else losses

    monkeypatch.setattr(Natural, "criterion", criterion)


@pytest.mark.parametrize("interval", [50, pytest.param(1, marks=pytest.mark.slow)])
def test_a_nan_loss_stops_the_run_and_keeps_the_last_good_checkpoint(fsr, tiny, tmp_path, monkeypatch, interval):
    run, bad = tmp_path / "run", STEPS + 3
    command = ("train", *tiny, "evaluation=none", f"hydra.run.dir={run}", f"trainer.log_every_n_steps={interval}")
    with monkeypatch.context() as broken:
        spoil(broken, bad, lambda loss, logits: loss * float("nan"))
        line = fsr(*command).refusal()
    assert f"step {bad} " in line
    assert "last good checkpoint" in line
    assert json.loads((run / "status.json").read_text())["state"] != "finished"
    assert last(run)["global_step"] == STEPS
    assert is_finite(run, "last")
    assert is_finite(run, "best")
    outcome = fsr(*command)
    assert outcome.code == 0, outcome.err
    assert last(run)["global_step"] == 2 * STEPS
    assert EvaluationRecord.load(run / "records" / "last.json").attacks == ("clean",)


def test_a_nan_gradient_of_an_epochs_last_step_does_not_spoil_the_checkpoint(fsr, tiny, tmp_path, monkeypatch):
    run = tmp_path / "run"
    # the square root's slope at 0 is infinite: a finite loss with a gradient that is no number
    spoil(monkeypatch, 2 * STEPS - 1, lambda loss, logits: loss + (0 * logits).sum().sqrt())
    line = fsr("train", *tiny, "evaluation=none", f"hydra.run.dir={run}").refusal()
    assert "last good checkpoint" in line
    assert last(run)["global_step"] == STEPS
    assert is_finite(run)


def test_an_absurd_learning_rate_is_said_to_diverge(fsr, tiny, tmp_path):
    run = tmp_path / "run"
    command = ("optim=sgd_multistep", "optim.lr=1e38", "model.batch_norm=false", f"hydra.run.dir={run}")
    line = fsr("train", *tiny, "evaluation=none", *command).refusal()
    assert re.search(r"not finite at step [1-8] ", line)
    assert list(run.glob("checkpoints/*")) == []
