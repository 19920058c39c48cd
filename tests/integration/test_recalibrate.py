"""BatchNorm's statistics estimated anew before an evaluation, from the command line."""

import pytest
import torch

from fsr_lab.core.hashing import state_hash
from fsr_lab.core.record import EvaluationRecord


@pytest.fixture
def recalibrated(fsr, trained, tmp_path):
    """Return the function that evaluates `trained` after so many batches, and gives the record."""

    def evaluated(batches, *argv):
        folder = tmp_path / f"{batches}{len(argv)}"
        outcome = fsr(
            "evaluate", f"run={trained.run}", "device=cpu", "attack=[fgsm]", f"recalibrate.batches={batches}",
            "ledger=none", f"hydra.run.dir={folder}", *argv,
        )  # fmt: skip
        assert outcome.code == 0, outcome.err
        return EvaluationRecord.load(folder / "records" / "evaluation.json")

    return evaluated


def test_the_statistics_alone_are_others_and_the_row_says_so(recalibrated, trained):
    before, after = recalibrated(0), recalibrated(3)
    state = torch.load(trained.run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    own = {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
    assert before.provenance.hashes["weights"] == state_hash(own)
    assert after.provenance.hashes["weights"] != before.provenance.hashes["weights"]
    assert (before.margin[0] != after.margin[0]).any()
    assert after.name == f"{before.name}, recalibrated"


def test_it_repeats_and_follows_the_attack(recalibrated):
    def weights(record):
        return record.provenance.hashes["weights"]

    assert weights(recalibrated(2)) == weights(recalibrated(2, "test_samples=40"))
    assert weights(recalibrated(2)) != weights(recalibrated(2, "recalibrate.attack.steps=1", "test_samples=40"))


def test_a_count_of_batches_is_a_whole_number(fsr, trained):
    outcome = fsr("evaluate", f"run={trained.run}", "attack=[fgsm]", "recalibrate.batches=-1", "device=cpu")
    assert "recalibrate.batches to be a whole number of at least 0, got -1" in outcome.refusal()


def test_the_trained_network_has_batchnorm(trained):
    # without it the tests above would compare nothing
    state = torch.load(trained.run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
    assert any(name.endswith("running_mean") for name in state)
