"""The ledger on the command line: killed, sharded, repeated, refused."""

import random
import shutil

import numpy as np
import pytest

from fsr_lab.core.record import EvaluationRecord

CELLS = 3 * 7  # clean, fgsm and a random attack on 80 test images, 12 at a time


@pytest.fixture(scope="module")
def argv(trained):
    return (
        "evaluate", f"run={trained.run}", "attack=[fgsm,pgd10_train]", "chunk=12", "device=cpu",
        "evaluation.attacks.pgd10_train.steps=2",
    )  # fmt: skip


def record_of(folder):
    return EvaluationRecord.load(folder / "records" / "evaluation.json")


def assert_same(one, other):
    for name in ("outcome", "margin", "norm", "ids", "labels", "forwards", "backwards"):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.tobytes() == theirs.tobytes(), name


def cells(ledger):
    return {path.relative_to(ledger).as_posix(): path.read_bytes() for path in ledger.glob("*/*.npz")}


@pytest.fixture(scope="module")
def whole(warm, argv, tmp_path_factory):
    """Return the folder of an evaluation that nobody stopped; its ledger lies in it."""
    folder = tmp_path_factory.mktemp("whole")
    reply = warm.run(*argv, f"ledger={folder / 'ledger'}", f"hydra.run.dir={folder / 'run'}")
    assert reply.code == 0, reply.err
    assert len(cells(folder / "ledger")) == CELLS
    return folder


@pytest.mark.slow
def test_killed_at_ten_random_points_it_ends_with_the_same_bits(warm, argv, whole, tmp_path):
    points = sorted(random.Random(5).sample(range(1, CELLS), 10))
    before = 0
    for point in points:
        reply = warm.run(
            *argv, f"ledger={tmp_path / 'ledger'}", f"hydra.run.dir={tmp_path / 'run'}",
            stops=[("attack", point - before + (before > 0), "SIGKILL")],
        )  # fmt: skip
        assert reply.code == -9, reply.err
        before = point
        assert len(cells(tmp_path / "ledger")) == point
        assert not (tmp_path / "run" / "records").exists()
    reply = warm.run(*argv, f"ledger={tmp_path / 'ledger'}", f"hydra.run.dir={tmp_path / 'run'}")
    assert reply.code == 0, reply.err
    assert_same(record_of(tmp_path / "run"), record_of(whole / "run"))
    assert cells(tmp_path / "ledger") == cells(whole / "ledger")


@pytest.mark.slow
def test_two_processes_share_the_cells(fsr, argv, whole, tmp_path):
    outcome = fsr(*argv, f"ledger={tmp_path / 'ledger'}", f"hydra.run.dir={tmp_path / 'run'}", "trainer.devices=2")
    assert outcome.code == 0, outcome.err
    assert len(cells(tmp_path / "ledger")) == CELLS
    assert_same(record_of(tmp_path / "run"), record_of(whole / "run"))


def test_shards_by_hand_and_the_table_at_the_end(fsr, argv, whole, tmp_path):
    place = (f"ledger={tmp_path / 'ledger'}", f"hydra.run.dir={tmp_path / 'run'}")
    for index, samples in ((1, 36), (0, 44)):
        outcome = fsr(*argv, *place, f"shard={index}/2")
        assert outcome.code == 0, outcome.err
        assert f"shard {index}/2: {samples} samples; once all are done" in outcome.out
        assert not (tmp_path / "run" / "records").exists()
    assert fsr(*argv, *place).code == 0
    assert_same(record_of(tmp_path / "run"), record_of(whole / "run"))


def test_the_same_evaluation_finds_its_ledger_by_itself(fsr, argv, tmp_path):
    assert fsr(*argv, f"hydra.run.dir={tmp_path / 'one'}").code == 0
    (ledger,) = (tmp_path / "runs" / "ledgers").iterdir()
    before = {path: path.stat().st_mtime_ns for path in ledger.glob("*/*.npz")}
    assert len(before) == CELLS
    assert fsr(*argv, f"hydra.run.dir={tmp_path / 'two'}").code == 0
    assert {path: path.stat().st_mtime_ns for path in ledger.glob("*/*.npz")} == before
    assert_same(record_of(tmp_path / "one"), record_of(tmp_path / "two"))
    assert fsr(*argv, f"hydra.run.dir={tmp_path / 'three'}", "threat.eps=4/255").code == 0
    assert len(list((tmp_path / "runs" / "ledgers").iterdir())) == 2


def test_the_ledger_of_another_eps_is_refused_and_stays_whole(fsr, argv, whole, tmp_path):
    ledger = shutil.copytree(whole / "ledger", tmp_path / "ledger")
    refusal = fsr(*argv, f"ledger={ledger}", "threat.eps=4/255").refusal()
    assert "is the ledger of another evaluation (eps: 0.0627" in refusal
    assert cells(ledger) == cells(whole / "ledger")


def test_early_exit_gives_the_worst_case_for_fewer_passes(fsr, argv, whole, tmp_path):
    assert fsr(*argv, "early_exit=true", f"hydra.run.dir={tmp_path / 'run'}").code == 0
    record, exact = record_of(tmp_path / "run"), record_of(whole / "run")
    assert record.chains == {"worst case": ("fgsm", "pgd10_train")}
    assert np.array_equal(
        record.worst_case(record.attacks), exact.correct("clean") & exact.worst_case(("fgsm", "pgd10_train"))
    )
    assert record.forwards.sum() < exact.forwards.sum()


def test_an_evaluation_says_on_what_its_chains_are_run(fsr, argv, tmp_path):
    words = (
        "+evaluation.chains={one:[pgd10_train]}", "+evaluation.after={one:[fgsm]}", "+evaluation.limits.pgd10_train=3",
        "+evaluation.samples=24", f"hydra.run.dir={tmp_path / 'run'}", f"ledger={tmp_path / 'ledger'}",
    )  # fmt: skip
    outcome = fsr(*argv, *words)
    assert outcome.code == 0, outcome.err
    assert "pgd10_train on at most 3 of the samples left in each chunk; the others" in " ".join(outcome.out.split())
    record = record_of(tmp_path / "run")
    assert (len(record), record.chains) == (24, {"one": ("fgsm", "pgd10_train")})
    left = record.worst_case(("clean", "fgsm")).reshape(2, 12).sum(1)
    assert (record.outcome[2].reshape(2, 12) >= 0).sum(1).tolist() == np.minimum(left, 3).tolist()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["shard=2/2"], "expected shard=i/k with i from 0 to k-1"),
        (["shard=half"], "expected shard=i/k"),
        (["trainer.devices=0"], "expected trainer.devices to be a number of at least 1, got 0"),
        (["trainer.devices=2", "ledger=none"], "shards meet in a ledger"),
        (["shard=0/2", "ledger=none"], "shards meet in a ledger"),
        (["early_exit=no"], "expected early_exit to be true or false"),
        (["keep_images=true", "ledger=none"], "images are kept in one; leave out ledger=none"),
        (["+evaluation.after={all:[fgsm]}"], "after: no chain of this evaluation named 'all'"),
        (
            ["+evaluation.chains={one:[fgsm]}", "+evaluation.after={one:[pgd20]}"],
            "no attack or chain of this evaluation",
        ),
        (["+evaluation.limits.pgd20=5"], "limits: no attack or family of this evaluation named 'pgd20'"),
        (["+evaluation.samples=0"], "expected evaluation.samples to be a whole number of at least 1, got 0"),
    ],
)
def test_what_cannot_work_is_told_in_one_line(fsr, argv, words, message):
    assert message in fsr(*argv, *words).refusal()
