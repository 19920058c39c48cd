"""Transfer attacks from the command line: one run attacks another, whatever form the surrogate is given in."""

import re
import shutil

import pytest
import torch

from fsr_lab.core.hashing import state_hash
from fsr_lab.core.record import EvaluationRecord

ATTACK = "attack=[transfer_mi,transfer_di,transfer_ti]"


@pytest.fixture(scope="module")
def other(fsr_module, tiny, tmp_path_factory):
    """Return a natural run of another network than that of `trained`."""
    run = tmp_path_factory.mktemp("other") / "run"
    argv = ("model.width=4", "trainer.max_epochs=1", "evaluation=none", "test_checkpoints=[last,best]")
    outcome = fsr_module("train", *tiny, *argv, f"hydra.run.dir={run}")
    assert outcome.code == 0, outcome.err
    return run


@pytest.fixture
def transferred(fsr, trained, tmp_path):
    """Return the function that evaluates `trained` with more on the command line, and gives the record."""

    def evaluated(name, *argv):
        folder = tmp_path / name
        outcome = fsr("evaluate", f"run={trained.run}", "device=cpu", f"hydra.run.dir={folder}", *argv)
        assert outcome.code == 0, outcome.err
        return EvaluationRecord.load(folder / "records" / "evaluation.json")

    return evaluated


def weights(run):
    """Return a run's last weights under the network's own names."""
    state = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}


def same_outcome(one, two):
    return (one.outcome == two.outcome).all() and (one.margin == two.margin).all()


def test_a_run_attacks_another(transferred, other):
    record = transferred("run", ATTACK, f"surrogate={other}", "threat.eps=32/255")
    assert record.attacks == ("clean", "transfer_mi", "transfer_di", "transfer_ti")
    assert record.forwards[1:].tolist() == record.backwards[1:].tolist() == [0, 0, 0]
    assert (record.norm[1:].max(1) > 0.9 * 32 / 255).all()
    source = rf"<natural\+none \(last\), config [0-9a-f]{{8}}, weights {state_hash(weights(other))}>"
    assert all(re.search(source, text) for text in record.settings.values())
    assert "momentum=1.0" in record.settings["transfer_mi"]
    assert "InputDiversity(rate=0.9" in record.settings["transfer_di"]
    assert "Translation(size=15" in record.settings["transfer_ti"]
    # the surrogate is another network, so that it does less than the target's own gradients
    white = transferred("white", "attack=[mifgsm]", "threat.eps=32/255")
    assert white.correct("mifgsm").mean() <= record.correct("transfer_mi").mean()
    assert not (white.margin[1] == record.margin[1]).all()


def test_a_network_that_attacks_itself_is_attacked_in_the_open(transferred, trained):
    record = transferred("self", "attack=[transfer_ti,ti_fgsm]", f"surrogate={trained.run}")
    assert (record.margin[1] == record.margin[2]).all()
    assert record.backwards.tolist() == [0, 0, 10 * len(record)]


def test_a_checkpoint_and_a_file_of_weights_are_surrogates_too(transferred, other, tmp_path):
    given = ("attack=[transfer_mi]", "threat.eps=32/255")
    wanted = transferred("run", *given, f"surrogate={other}")
    best = transferred("best", *given, f"surrogate={other / 'checkpoints' / 'best.ckpt'}")
    assert "<natural+none (best), " in best.settings["transfer_mi"]
    torch.save(weights(other), tmp_path / "plain.pt")
    network = ("model@surrogate_model=tiny_cnn", "surrogate_model.width=4", "surrogate_model.batch_norm=true")
    plain = transferred("plain", *given, f"surrogate={tmp_path / 'plain.pt'}", *network)
    assert same_outcome(plain, wanted)
    source = rf"<plain.pt, config [0-9a-f]{{8}}, weights {state_hash(weights(other))}>"
    assert re.search(source, plain.settings["transfer_mi"])


def test_no_surrogate_is_refused_with_the_way_to_one(fsr, trained):
    line = fsr("evaluate", f"run={trained.run}", "attack=[transfer_di]").refusal()
    assert "surrogate=RUN" in line
    assert "fsr train model=resnet50 strategy=natural defense=none" in line


def test_a_surrogate_of_other_classes_or_images_is_refused(fsr, tiny, trained, other, tmp_path):
    quick = ("trainer.max_epochs=1", "+trainer.limit_train_batches=1", "evaluation=none")
    for name, setting, words in (
        ("classes", "dataset.num_classes=3", ["num_classes 4", "got 3"]),
        ("shape", "dataset.image_shape=[3,12,12]", ["image_shape [3, 8, 8]", "got [3, 12, 12]"]),
    ):
        run = tmp_path / name
        made = fsr("train", *tiny, *quick, setting, f"hydra.run.dir={run}", f"dataset.folder={run}")
        assert made.code == 0, made.err
        line = fsr("evaluate", f"run={trained.run}", "attack=[transfer_di]", f"surrogate={run}").refusal()
        assert all(word in line for word in [str(run), "trained on toy", *words])


@pytest.mark.parametrize(
    ("surrogate", "words"),
    [
        ("nowhere", ["no surrogate at nowhere", "a run of fsr train"]),
        ("folder", ["folder is not a run of fsr train"]),
        ("plain.pt", ["another architecture", "model@surrogate_model=NAME"]),
        ("missing.pt", ["no surrogate at missing.pt", "a file of weights"]),
        ("run", ["no checkpoint 'last' in run", "train the run first"]),
    ],
)
def test_what_is_no_surrogate_is_refused(surrogate, words, fsr, trained, other, tmp_path):
    (tmp_path / "folder").mkdir()
    shutil.copytree(other, tmp_path / "run", ignore=shutil.ignore_patterns("*.ckpt"))
    torch.save(weights(other), tmp_path / "plain.pt")
    line = fsr("evaluate", f"run={trained.run}", "attack=[transfer_di]", f"surrogate={surrogate}").refusal()
    assert all(word in line for word in words)


def test_weights_of_other_classes_are_refused_with_the_classes_that_there_are(fsr, trained, other, tmp_path):
    state = weights(other)
    torch.save(state | {name: state[name][:3] for name in state if ".fc." in name}, tmp_path / "three.pt")
    network = ("model@surrogate_model=tiny_cnn", "surrogate_model.width=4", "surrogate_model.batch_norm=true")
    line = fsr("evaluate", f"run={trained.run}", "attack=[transfer_di]", "surrogate=three.pt", *network).refusal()
    assert "three.pt is of another architecture: 2 of another shape (backbone.fc.weight (3, 8) for (4, 8)" in line
    assert "give the model that it was trained with (model@surrogate_model=NAME), on the 4 classes of toy" in line


def test_any_attack_can_be_crafted_on_the_surrogate(transferred, other):
    choice = "attack@evaluation.attacks.transfer_ti.attack=ti_fgsm_kernel7"
    record = transferred("any", "attack=[transfer_ti]", choice, f"surrogate={other}", "threat=linf_16")
    assert "Translation(size=7" in record.settings["transfer_ti"]
    assert record.threat.eps == pytest.approx(16 / 255)


def test_a_transfer_inside_another_attack_is_given_its_network_too(transferred, other):
    config = (
        "evaluation=none", "+attack@evaluation.attacks.again.attack=transfer_mi",
        "+evaluation.attacks.again._target_=fsr_lab.attack.restarts.Restarts", "+evaluation.attacks.again.restarts=1",
    )  # fmt: skip
    given = (f"surrogate={other}", "threat.eps=32/255")
    record = transferred("nested", *config, *given)
    assert re.match(rf"Restarts\(attack=Transfer\(source=<.*{state_hash(weights(other))}>", record.settings["again"])
    assert same_outcome(record, transferred("plain", "attack=[transfer_mi]", *given))
