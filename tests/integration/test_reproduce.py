"""`fsr reproduce`: a run made again from its own directory, bit for bit, and what differs said beforehand."""

import json
import shutil
from importlib.metadata import version

import pytest
import torch
from omegaconf import OmegaConf

from fsr_lab.engine.checkpoints import read_safely
from fsr_lab.engine.reproducing import differences, moved, same_weights


@pytest.fixture
def elsewhere(trained, tmp_path):
    """Return a copy of the run, as somebody else gets it, whose versions and machine are not all ours."""
    run = shutil.copytree(trained.run, tmp_path / "given")
    about = json.loads((run / "provenance.json").read_text())
    about["versions"] |= {"torch": "1.0.0"}
    about["host"] |= {"processor": "Zuse Z3"}
    (run / "provenance.json").write_text(json.dumps(about))
    return run


def test_a_run_comes_out_the_same_in_another_place(fsr, elsewhere, trained, tmp_path, data, monkeypatch):
    monkeypatch.setenv("FSR_DATA", str(data))
    threads = torch.get_num_threads()
    done = fsr("reproduce", elsewhere)
    assert done.code == 0, done
    assert torch.get_num_threads() == threads
    again = tmp_path / "runs" / "reproduce" / "given"
    assert f"version: torch 1.0.0 there, {version('torch')} here" in done.err
    assert "hardware: processor Zuse Z3 there" in done.err
    assert "identical: the same weights, and every outcome of every sample in 2 record(s)" in done.out
    states = [read_safely(run / "checkpoints" / "last.ckpt")["state_dict"] for run in (trained.run, again)]
    assert all(torch.equal(value, states[1][name]) for name, value in states[0].items())
    page = (again / "reproduction.md").read_text()
    assert "- version: torch 1.0.0 there" in page
    # nothing of the copy was touched, and nothing of the new run lies at the old one's place
    assert {path.name for path in elsewhere.iterdir()} == {path.name for path in trained.run.iterdir()}
    assert str(trained.run) not in (again / "config.yaml").read_text()
    assert any((again / "ledgers").iterdir())  # its own: results of the first run were not read back


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), None),
        (("nowhere",), "nowhere is not a run of fsr train"),
        (("one", "two"), "expected one run of fsr train, got ['one', 'two']"),
        (("given", "--fast"), "expected one run of fsr train"),
        (("given", "out=given"), "given is the run itself; give another out="),
        (("given", "out=file"), "expected out=file to be a folder"),
    ],
)
def test_wrong_input_gets_one_line(fsr, elsewhere, tmp_path, words, said):
    (tmp_path / "file").touch()
    outcome = fsr("reproduce", *words)
    assert said in outcome.refusal() if said else "fsr reproduce RUN" in outcome.out


def test_what_has_no_outcome_or_no_provenance_is_refused(fsr, elsewhere):
    status = json.loads((elsewhere / "status.json").read_text())
    (elsewhere / "status.json").write_text(json.dumps(status | {"state": "running"}))
    assert f"{elsewhere} is not finished (running)" in fsr("reproduce", elsewhere).refusal()
    (elsewhere / "status.json").write_text(json.dumps(status))
    (elsewhere / "provenance.json").unlink()
    assert "has no provenance.json" in fsr("reproduce", elsewhere).refusal()


def test_every_difference_is_told_once(elsewhere):
    about = json.loads((elsewhere / "provenance.json").read_text())
    (elsewhere / "provenance1.json").write_text(json.dumps(about | {"revision": "f00", "dirty": True}))
    lines = differences(elsewhere, "another")
    assert len(lines) == len(set(lines))
    kinds = {line.partition(":")[0] for line in lines}
    assert kinds == {"version", "hardware", "data", "code"}
    assert any(line.startswith("code: revision f00 there, ") for line in lines)
    assert "code: changed after its revision there" in lines
    assert any(line.endswith("there, another here") for line in lines)


def test_folders_move_wherever_they_are_named(elsewhere, tmp_path):
    cfg = OmegaConf.load(elsewhere / "config.yaml")
    folders = {name: tmp_path / f"new_{name}" for name in ("run", "data", "runs", "ledgers")}
    new = moved(cfg, folders)
    assert new.callback.last.dirpath == str(folders["run"] / "checkpoints")
    assert new.trainer.default_root_dir == str(folders["run"])
    assert new.dataset.folder.startswith(str(folders["data"]))
    assert {name: new.paths[name] for name in folders} == {name: str(path) for name, path in folders.items()}
    text = OmegaConf.to_yaml(new)
    assert str(cfg.paths.run) not in text
    assert new.strategy == cfg.strategy


def test_weights_are_compared_as_the_first_run_keeps_them(trained, elsewhere):
    assert same_weights(trained.run, elsewhere) is True
    path = elsewhere / "checkpoints" / "last.ckpt"
    state = read_safely(path)["state_dict"]
    rounded = {name: value.half() if value.is_floating_point() else value for name, value in state.items()}
    torch.save({"state_dict": rounded}, path)
    assert same_weights(elsewhere, trained.run) is True  # rounded, as small runs are kept in git
    assert same_weights(trained.run, elsewhere) is False
    name = next(iter(state))
    torch.save({"state_dict": state | {name: state[name] + 1e-6}}, path)
    assert same_weights(trained.run, elsewhere) is False
    path.unlink()
    assert same_weights(trained.run, elsewhere) is None
