"""`fsr export` as it is typed, on a finished run, an unfinished one, and a network that is kept in the repository."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from omegaconf import OmegaConf

import fsr_lab
from fsr_lab.core.record import EvaluationRecord
from fsr_lab.engine.build import build_model
from fsr_lab.engine.checkpoints import load_weights

KEPT = Path(__file__).parents[2] / "experiments" / "adaptive" / "at_fsr_s0"


def logits_of(run, checkpoint, x):
    model = build_model(OmegaConf.load(run / "config.yaml"))
    load_weights(model, run / "checkpoints" / f"{checkpoint}.ckpt")
    with torch.no_grad():
        return model.eval()(x)


def told_hash(out):
    return next(line.split()[-1] for line in out.splitlines() if line.strip().startswith("sha256"))


def test_a_trained_run_comes_back_with_its_table(fsr, trained, tmp_path):
    done = fsr("export", f"run={trained.run}", f"out={tmp_path / 'out'}", "checkpoint=best", "licence=CC-BY-4.0")
    assert done.code == 0, done
    folder = tmp_path / "out" / "safetensors"
    assert f"safetensors: {folder}" in done.out
    x = torch.rand(4, 3, 8, 8)
    with torch.no_grad():
        loaded = fsr_lab.load(folder, sha256=told_hash(done.out))
        assert torch.equal(loaded(x), logits_of(trained.run, "best", x))
    card = (folder / "README.md").read_text()
    record = EvaluationRecord.load(trained.run / "records" / "best.json")
    for attack in record.attacks:
        assert f"{100 * record.correct(attack).mean():.2f}" in card
    assert "not tested: no adaptive attack was run" in card
    assert "license: cc-by-4.0" in card
    assert "AT(attack=PGD(" in card


def test_further_evaluations_are_of_these_weights_or_refused(fsr, trained, tmp_path):
    words = ("export", f"run={trained.run}", f"out={tmp_path / 'out'}")
    assert "no record of these weights" in fsr(*words, "records=nowhere").refusal()
    ours = tmp_path / "evaluation"
    evaluate = ("evaluate", f"run={trained.run}", "attack=[fgsm]", "threat.eps=4/255", f"hydra.run.dir={ours}")
    assert fsr(*evaluate).code == 0
    assert fsr(*words, f"records={ours}").code == 0
    card = (tmp_path / "out" / "safetensors" / "README.md").read_text()
    assert "linf 4/255" in card.partition("## Results")[2].partition("## Recipe")[0]
    assert "no record of these weights" in fsr(*words, f"records={ours}", "checkpoint=best").refusal()


def test_several_formats_of_a_network_that_is_kept_here(fsr, tmp_path):
    done = fsr("export", f"run={KEPT}", f"out={tmp_path}", "format=[safetensors,robustbench]", "name=Doe2026Title")
    assert done.code == 0, done
    x = torch.rand(2, 3, 32, 32)
    want = logits_of(KEPT, "last", x)
    with torch.no_grad():
        assert torch.equal(fsr_lab.load(tmp_path / "safetensors")(x), want)
        assert torch.equal(fsr_lab.load(tmp_path / "robustbench")(x), want)
    info = json.loads((tmp_path / "robustbench" / "model_info" / "cifar10" / "Linf" / "Doe2026Title.json").read_text())
    assert info["architecture"] == "resnet18, width 16"


def test_weights_as_safetensors_are_evaluated_like_any(fsr, tmp_path):
    assert fsr("export", f"run={KEPT}", f"out={tmp_path}").code == 0
    model = build_model(OmegaConf.load(KEPT / "config.yaml"))
    load_weights(model, tmp_path / "safetensors" / "model.safetensors")
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model.eval()(x), logits_of(KEPT, "last", x))


def test_an_unfinished_run_is_told_how_to_finish(fsr, trained, tmp_path):
    run = shutil.copytree(trained.run, tmp_path / "run")
    status = json.loads((run / "status.json").read_text())
    (run / "status.json").write_text(json.dumps(status | {"state": "running"}))
    refusal = fsr("export", f"run={run}").refusal()
    assert refusal == f"fsr: {run} is not finished (running); continue it with fsr train resume={run}, then export it"
    assert not (run / "export").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "expected run=DIR, a finished run of fsr train, got none"),
        (("run=nowhere",), "nowhere is not a run of fsr train: it has no config.yaml"),
        ((f"run={KEPT}", "format=onx"), "no format named 'onx'; close names: ['onnx']"),
        ((f"run={KEPT}", "checkpoint=best"), "no checkpoint 'best' in"),
        ((f"run={KEPT}", "average=ema"), "no average named 'ema'"),
        ((f"run={KEPT}", "name=a-b"), "expected a name of letters, digits and underscores, a letter first, got 'a-b'"),
        ((f"run={KEPT}", "out=taken"), "taken/safetensors holds something other than an export; give another out="),
    ],
)
def test_wrong_input_gets_one_line(fsr, tmp_path, words, said):
    (tmp_path / "taken" / "safetensors").mkdir(parents=True)
    (tmp_path / "taken" / "safetensors" / "mine.txt").touch()
    assert said in fsr("export", *words).refusal()
