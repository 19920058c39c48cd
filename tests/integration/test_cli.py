"""The command line from end to end: what a verb leaves behind, and what it says."""

import csv
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from fsr_lab.core.record import EvaluationRecord

PNG = b"\x89PNG\r\n\x1a\n"
QUICK = ("evaluation=none", "trainer.max_epochs=1", "+trainer.limit_train_batches=2")


def rows(path):
    with path.open(newline="") as stream:
        return list(csv.DictReader(stream))


def stamps(folder):
    """Return {file: (time of its last change, contents)} of everything below a folder."""
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in folder.rglob("*") if path.is_file()}


def status(run):
    return json.loads((run / "status.json").read_text())["state"]


def evaluated(tmp_path):
    """Return the record of the only evaluation there was."""
    (path,) = tmp_path.glob("runs/evaluate/*/records/*.json")
    return EvaluationRecord.load(path)


def assert_same_outcome(one, other):
    assert one.attacks == other.attacks
    for field in ("outcome", "margin", "norm", "labels", "forwards", "backwards"):
        assert np.array_equal(getattr(one, field), getattr(other, field)), field


def test_fsr_lists_the_verbs(fsr):
    outcome = fsr()
    assert outcome.code == 0
    for verb in ("train", "evaluate", "doctor", "prepare", "report"):
        (line,) = [line for line in outcome.out.splitlines() if line.startswith(f"  fsr {verb} ")]
        assert len(line.split()) > 5  # the verb and what it is for
    assert fsr("--help").out == outcome.out


def test_train_help_lists_every_group_and_option(fsr):
    outcome = fsr("train", "--help")
    assert outcome.code == 0
    listed = dict(line.split(": ", 1) for line in outcome.out.splitlines() if ": " in line)
    conf = Path(__file__).parents[2] / "conf"
    groups = {path.parent.relative_to(conf).as_posix() for path in conf.rglob("*/*.yaml")} - {"hydra/help"}
    for group in groups:
        assert sorted(path.stem for path in (conf / group).glob("*.yaml")) == sorted(listed[group].split(", "))


@pytest.mark.parametrize("verb", ["evaluate", "prepare"])
def test_every_verb_has_its_help(fsr, verb):
    outcome = fsr(verb, "--help")
    assert outcome.code == 0
    assert outcome.out.startswith(f"fsr {verb}: ")
    assert "dataset: cifar10, cifar100, digits, image_folder, svhn, tiny_imagenet, toy" in outcome.out


def test_version_is_printed(fsr):
    assert fsr("--version").out.startswith("fsr-lab 0.")


def test_a_run_directory_explains_itself(trained):
    assert trained.outcome.code == 0, trained.outcome.err
    run = trained.run
    files = {path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()}
    assert files >= {
        "config.yaml", "provenance.json", "status.json", "report.md", "table.csv", "curves.png", "samples.png",
        "samples.npz", "metrics/version_0/metrics.csv", "checkpoints/last.ckpt", "checkpoints/best.ckpt",
        "records/last.json", "records/last.npz", "records/best.json", "records/best.npz",
    }  # fmt: skip
    assert [name for name in files if ".tmp" in name or name.endswith(".part")] == []
    assert status(run) == "finished"
    assert (run / "curves.png").read_bytes().startswith(PNG)
    assert (run / "samples.png").read_bytes().startswith(PNG)
    config = (run / "config.yaml").read_text()
    assert "${" not in config
    assert yaml.safe_load(config)["threat"]["eps"] == "16/255"


def test_provenance_names_seed_versions_revision_and_data(trained):
    about = json.loads((trained.run / "provenance.json").read_text())
    assert about["seed"] == 0
    assert about["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert {"python", "lightning", "numpy", "fsr-lab"} <= set(about["versions"])
    assert set(about) >= {"revision", "dirty", "host"}
    assert len(about["hashes"]["data"]) == 12
    assert shlex.split(about["command"])[:2] == ["fsr", "train"]
    last = EvaluationRecord.load(trained.run / "records" / "last.json")
    assert last.provenance.hashes["data"] == about["hashes"]["data"]


def test_metrics_have_the_documented_names(trained):
    found = rows(trained.run / "metrics" / "version_0" / "metrics.csv")
    steps = [int(row["step"]) for row in found if row["train/loss"]]
    assert steps == list(range(18))
    assert {"train/ce", "val/acc", "val/robust_acc"} <= set(found[0])
    assert any(name.endswith("/sep") for name in found[0])
    assert any(name.endswith("/rec") for name in found[0])
    for row in found:
        if row["train/loss"]:
            terms = [float(row[name]) for name in row if name.startswith("train/") and row[name]]
            assert sum(terms) == pytest.approx(2 * float(row["train/loss"]), rel=1e-4)
    assert len([row for row in found if row["val/robust_acc"]]) == 2


def test_records_hold_every_sample_and_stay_in_the_threat_set(trained):
    for which in ("last", "best"):
        record = EvaluationRecord.load(trained.run / "records" / f"{which}.json")
        assert record.attacks == ("clean", "fgsm", "pgd20")
        assert record.outcome.shape == (3, 80)
        assert set(np.unique(record.outcome)) <= {0, 1}
        assert ((record.outcome == 1) == (record.margin > 0)).all()
        assert (record.norm[0] == 0).all()
        assert 0.9 * 16 / 255 < record.norm[1:].max() <= 16 / 255 + 1e-6
        assert record.name == f"at+fsr ({which})"
        assert record.forwards.tolist() == [0, 0, 1600]  # PGD-20 passes by FGSM


def test_the_table_is_what_the_records_say(trained):
    table = rows(trained.run / "table.csv")
    assert {row["model"] for row in table} == {"at+fsr (last)", "at+fsr (best)"}
    for row in table:
        which = row["model"].removeprefix("at+fsr (").removesuffix(")")
        record = EvaluationRecord.load(trained.run / "records" / f"{which}.json")
        attack = {"Natural": "clean", "FGSM": "fgsm", "PGD-20": "pgd20"}[row["column"]]
        correct = int((record.outcome[record.attacks.index(attack)] == 1).sum())
        assert (int(row["correct"]), int(row["n"])) == (correct, 80)
        assert float(row["percent"]) == pytest.approx(100 * correct / 80)
        assert float(row["low"]) <= float(row["percent"]) <= float(row["high"])
    for text in ("Natural", "FGSM", "PGD-20", "80", "95 %", f"report: {trained.run / 'report.md'}"):
        assert text in trained.outcome.out
    assert "![curves.png](curves.png)" in (trained.run / "report.md").read_text()


def test_progress_shows_an_eta_for_training_and_for_every_attack(trained):
    lines = trained.outcome.err.splitlines()
    for work in ("train: step 18/18", "clean: 1/1", "fgsm, pgd20: 1/1"):
        assert any(line.startswith(work) and "eta" in line for line in lines)
    assert any(line.startswith("epoch 2/2") and "val/robust_acc" in line for line in lines)


def test_a_finished_run_is_not_trained_again(fsr, trained):
    before = stamps(trained.run / "checkpoints") | stamps(trained.run / "records")
    again = fsr(*trained.argv)
    assert again.code == 0
    assert "epoch" not in again.err
    table = [line for line in trained.outcome.out.splitlines() if "│" in line]
    assert table
    assert [line for line in again.out.splitlines() if "│" in line] == table
    assert stamps(trained.run / "checkpoints") | stamps(trained.run / "records") == before


@pytest.mark.parametrize("which", ["last", "best"])
def test_evaluation_repeats_the_records_of_the_training_run(fsr, trained, tmp_path, which):
    before = stamps(trained.run)
    outcome = fsr("evaluate", f"run={trained.run}", f"checkpoint={which}", "evaluation=quick", "device=cpu")
    assert outcome.code == 0, outcome.err
    record = evaluated(tmp_path)
    assert_same_outcome(record, EvaluationRecord.load(trained.run / "records" / f"{which}.json"))
    assert record.name == f"at+fsr ({which})"
    assert "PGD-20" in outcome.out
    assert stamps(trained.run) == before


def test_an_evaluation_may_choose_attacks_radius_and_samples(fsr, trained, tmp_path):
    command = ("attack=[fgsm,pgd20]", "threat.eps=4/255", "test_samples=40", "label=weaker")
    outcome = fsr("evaluate", f"run={trained.run}", *command)
    assert outcome.code == 0, outcome.err
    record = evaluated(tmp_path)
    assert record.attacks == ("clean", "fgsm", "pgd20")
    assert record.threat.eps == 4 / 255
    assert 0.9 * 4 / 255 < record.norm.max() <= 4 / 255 + 1e-6
    assert (record.name, len(record)) == ("weaker", 40)
    stronger = EvaluationRecord.load(trained.run / "records" / "last.json")
    assert record.correct("pgd20").mean() > stronger.correct("pgd20")[:40].mean()


def test_eps_may_be_a_number_or_a_fraction(fsr, trained, tmp_path):
    for name, eps in (("fraction", "16/255"), ("number", 16 / 255)):
        command = (f"threat.eps={eps}", "attack=[fgsm]", f"hydra.run.dir={tmp_path / name}")
        outcome = fsr("evaluate", f"run={trained.run}", *command)
        assert outcome.code == 0, outcome.err
        assert "linf 16/255" in outcome.out
    fraction, number = (
        EvaluationRecord.load(tmp_path / name / "records" / "evaluation.json") for name in ("fraction", "number")
    )
    assert_same_outcome(fraction, number)
    assert fraction.threat == number.threat


def test_weights_from_a_file_are_evaluated(fsr, trained, tmp_path):
    state = torch.load(trained.run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    plain = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    torch.save(plain, tmp_path / "weights.pt")
    network = ("dataset=toy", "model=tiny_cnn", "model.batch_norm=true", "defense=fsr", "defense.module.width=4")
    command = (f"weights={tmp_path / 'weights.pt'}", "evaluation=quick", "threat.eps=16/255", "device=cpu")
    outcome = fsr("evaluate", *network, *command)
    assert outcome.code == 0, outcome.err
    assert_same_outcome(evaluated(tmp_path), EvaluationRecord.load(trained.run / "records" / "last.json"))


def test_train_attack_is_short_for_the_training_attack(fsr):
    outcome = fsr("train", "dataset=toy", "attack=pgd20", "--cfg", "job")
    assert outcome.code == 0
    config = yaml.safe_load(outcome.out)
    assert (config["strategy"]["attack"]["steps"], config["strategy"]["attack"]["random_start"]) == (20, False)
    assert "evaluation" in config


def test_a_sweep_makes_a_directory_each_and_one_table(fsr, tiny, tmp_path):
    sweep = tmp_path / "sweep"
    place = (f"hydra.sweep.dir={sweep}", "hydra.sweep.subdir=job${seed}")
    command = ("train", "-m", *tiny, *QUICK, "seed=0,1", "label=row${seed}", *place)
    outcome = fsr(*command)
    assert outcome.code == 0, outcome.err
    runs = sorted(path.parent for path in sweep.glob("*/status.json"))
    assert [(run.name, status(run)) for run in runs] == [("job0", "finished"), ("job1", "finished")]
    assert [row["model"] for row in rows(sweep / "table.csv")] == ["row0 (last)", "row1 (last)"]
    assert outcome.out.count("report: ") == 1
    before = stamps(runs[0] / "checkpoints") | stamps(runs[1] / "checkpoints")
    again = fsr(*command)
    assert (again.code, "epoch" in again.err) == (0, False)
    assert stamps(runs[0] / "checkpoints") | stamps(runs[1] / "checkpoints") == before
    # fsr report makes the same bytes of the same records
    report = stamps(sweep)[sweep / "report.md"][1]
    (sweep / "report.md").unlink()
    remade = fsr("report", sweep)
    assert (remade.code, (sweep / "report.md").read_bytes()) == (0, report)
    assert "row1 (last)" in remade.out


def test_a_failed_job_does_not_take_the_others_with_it(fsr, tiny, tmp_path):
    place = (f"hydra.sweep.dir={tmp_path / 'sweep'}", "hydra.sweep.subdir=in${model.in_channels}")
    outcome = fsr("train", "-m", *tiny, *QUICK, "model.in_channels=1,3", *place)
    outcome.refusal()
    finished = [path.parent.name for path in tmp_path.glob("sweep/*/status.json") if status(path.parent) == "finished"]
    assert finished == ["in3"]
    assert outcome.out.count("report: ") == 1


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


@pytest.mark.parametrize("name", ["seed=0,defense=none", "a b", "x (1)"])
def test_a_run_is_found_by_its_plain_path_whatever_its_name(fsr, plain, tmp_path, name):
    run = Path(shutil.copytree(plain, tmp_path / name))
    outcome = fsr("evaluate", f"run={run}", "evaluation=none", "device=cpu")
    assert outcome.code == 0, outcome.err
    assert_same_outcome(evaluated(tmp_path), EvaluationRecord.load(run / "records" / "last.json"))
    for path in (run, run.relative_to(tmp_path)):
        outcome = fsr("train", f"resume={path}")
        assert outcome.code == 0, outcome.err
        assert "epoch" not in outcome.err
    assert fsr("report", name).code == 0


def test_resume_never_trains_afresh(fsr, tiny, own):
    before = torch.load(own / "checkpoints" / "last.ckpt", weights_only=True)
    stamp = (own / "checkpoints" / "last.ckpt").stat().st_mtime_ns
    outcome = fsr("train", *tiny, *QUICK, f"hydra.run.dir={own}", "resume=never", "seed=1")
    assert (outcome.code, status(own)) == (0, "finished")
    assert "epoch 1/1" in outcome.err
    assert (own / "checkpoints" / "last.ckpt").stat().st_mtime_ns > stamp
    after = torch.load(own / "checkpoints" / "last.ckpt", weights_only=True)
    assert before["global_step"] == after["global_step"] == 2
    assert not torch.equal(
        before["state_dict"]["model.backbone.fc.weight"], after["state_dict"]["model.backbone.fc.weight"]
    )
    assert len(list(own.glob("metrics/version_*"))) == 1


def test_another_configuration_is_refused_and_the_run_can_still_be_continued(fsr, tiny, own):
    kept = [own / name for name in ("checkpoints", "records", "metrics", "config.yaml", "status.json")]
    before = {path: at for path, at in stamps(own).items() if any(path.is_relative_to(part) for part in kept)}
    line = fsr("train", *tiny, *QUICK, f"hydra.run.dir={own}", "optim.lr=0.5").refusal()
    assert "optim.lr" in line
    assert "resume=never" in line
    assert {path: at for path, at in stamps(own).items() if path in before} == before
    longer = fsr("train", f"resume={own}", "trainer.max_epochs=2")
    assert longer.code == 0, longer.err
    state = torch.load(own / "checkpoints" / "last.ckpt", weights_only=True)
    assert state["global_step"] == 4


def test_a_schedule_by_steps_cannot_be_lengthened(fsr, tiny, tmp_path):
    command = (*tiny, *QUICK, "optim=sgd_onecycle", f"hydra.run.dir={tmp_path / 'run'}")
    assert fsr("train", *command).code == 0
    outcome = fsr("train", *command, "trainer.max_epochs=2")
    assert outcome.code == 2
    assert "trainer.max_epochs: 1 there, 2 here" in outcome.err


def test_a_finished_run_is_lengthened_by_more_epochs(fsr, tiny, own):
    outcome = fsr("train", *tiny, *QUICK, f"hydra.run.dir={own}", "trainer.max_epochs=2")
    assert outcome.code == 0, outcome.err
    assert "epoch 2/2" in outcome.err
    assert "epoch 1/2" not in outcome.err
    assert torch.load(own / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == 4


def test_a_literal_paper_run_holds_nothing_out(fsr, tiny, tmp_path):
    run = tmp_path / "run"
    command = ("dataset.val_size=0", "test_checkpoints=[last,best]", f"hydra.run.dir={run}")
    outcome = fsr("train", *tiny, *QUICK, *command)
    assert outcome.code == 0, outcome.err
    assert [path.name for path in sorted((run / "records").glob("*.json"))] == ["last.json"]


def test_validation_every_n_epochs_may_leave_no_best_checkpoint(fsr, tiny, tmp_path):
    command = ("trainer.check_val_every_n_epoch=5", "test_checkpoints=[last,best]", f"hydra.run.dir={tmp_path / 'run'}")
    outcome = fsr("train", *tiny, *QUICK, *command)
    assert outcome.code == 0, outcome.err
    assert (tmp_path / "run" / "records" / "last.json").is_file()
    assert status(tmp_path / "run") == "finished"


def test_a_run_may_be_trained_and_not_attacked(fsr, tiny, tmp_path):
    outcome = fsr("train", *tiny, *QUICK, "test_checkpoints=[]", f"hydra.run.dir={tmp_path / 'run'}")
    assert outcome.code == 0, outcome.err
    assert status(tmp_path / "run") == "finished"


def test_a_fast_dev_run_keeps_nothing_and_is_not_taken_for_the_run_itself(fsr, tiny, tmp_path):
    run = tmp_path / "run"
    command = ("train", *tiny, "trainer.max_epochs=1", f"hydra.run.dir={run}")
    outcome = fsr(*command, "trainer.fast_dev_run=true")
    assert outcome.code == 0, outcome.err
    assert "epoch 1/1" in outcome.err
    assert not list(run.glob("checkpoints/*"))
    assert not list(run.glob("records/*"))
    assert "epoch 1/1" not in fsr(*command, "trainer.fast_dev_run=true").err  # it is there
    outcome = fsr(*command)
    assert outcome.code == 0, outcome.err
    assert (run / "records" / "last.json").is_file()


@pytest.mark.slow
def test_a_run_with_data_in_a_folder_of_their_own_is_evaluated(fsr, tiny, tmp_path):
    run, folder = tmp_path / "run", tmp_path / "elsewhere"
    outcome = fsr("train", *tiny, *QUICK, f"dataset.folder={folder}", f"hydra.run.dir={run}")
    assert outcome.code == 0, outcome.err
    outcome = fsr("evaluate", f"run={run}", "evaluation=none", "device=cpu")
    assert outcome.code == 0, outcome.err
    assert_same_outcome(evaluated(tmp_path), EvaluationRecord.load(run / "records" / "last.json"))


@pytest.mark.slow
def test_runs_on_digits_of_two_sizes_are_both_evaluated(fsr, tiny, tmp_path, monkeypatch):
    monkeypatch.setenv("FSR_DATA", str(tmp_path / "data"))
    digits = ("dataset=digits", "optim.lr=0.05", "+trainer.limit_val_batches=1", "test_samples=40")
    for side in (8, 12):
        run = tmp_path / f"side{side}"
        outcome = fsr("train", *tiny, *QUICK, *digits, f"dataset.side={side}", f"hydra.run.dir={run}")
        assert outcome.code == 0, outcome.err
    for side in (8, 12):
        run, place = tmp_path / f"side{side}", tmp_path / f"evaluated{side}"
        command = ("evaluation=none", "test_samples=40", "device=cpu", f"hydra.run.dir={place}")
        outcome = fsr("evaluate", f"run={run}", *command)
        assert outcome.code == 0, outcome.err
        mine, trains = (
            EvaluationRecord.load(path)
            for path in (place / "records" / "evaluation.json", run / "records" / "last.json")
        )
        assert_same_outcome(mine, trains)


def test_prepare_says_where_the_data_lie_and_makes_them_once(fsr, tmp_path, monkeypatch):
    monkeypatch.setenv("FSR_DATA", str(tmp_path / "data"))
    prepared = tmp_path / "data" / "toy.pt"
    outcome = fsr("prepare", "dataset=toy")
    assert (outcome.code, prepared.is_file()) == (0, True)
    assert str(prepared) in outcome.out
    before = stamps(tmp_path / "data")
    assert fsr("prepare", "dataset=toy").code == 0
    assert stamps(tmp_path / "data") == before
    assert fsr("prepare", "dataset=toy", "force=true").code == 0
    after = stamps(tmp_path / "data")
    assert after[prepared][0] > before[prepared][0]
    assert after[prepared][1] == before[prepared][1]
    assert {path.name for path in tmp_path.iterdir()} == {"data"}  # no run directory, no log


def run_script(*argv, cwd, env):
    script = Path(sys.executable).with_name("fsr")
    return subprocess.run([script, *argv], cwd=cwd, env=env, capture_output=True, text=True, check=False)


def test_the_installed_script_composes_from_any_directory(tmp_path):
    env = {name: value for name, value in os.environ.items() if not name.startswith("FSR_")}
    done = run_script("train", "dataset=toy", "threat.eps=4/255", "--cfg", "job", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    config = yaml.safe_load(done.stdout)
    assert (config["threat"]["eps"], config["dataset"]["name"]) == ("4/255", "toy")
    refused = run_script("train", "sed=1", cwd=tmp_path, env=env)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_installed_script_trains_from_any_directory(tiny, data, tmp_path):
    env = os.environ | {"OMP_NUM_THREADS": "1", "FSR_DATA": str(data)}
    env.pop("FSR_RUNS", None)
    done = run_script("train", *tiny, *QUICK, "name=here", cwd=tmp_path, env=env)
    assert done.returncode == 0, done.stderr
    (run,) = (tmp_path / "runs" / "here").iterdir()
    assert status(run) == "finished"
    assert "Natural" in done.stdout
    assert not [line for line in done.stderr.splitlines() if "Warning" in line], done.stderr
