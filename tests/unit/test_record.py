import json
import pickle
import random
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pytest

from fsr_lab.core.provenance import Provenance
from fsr_lab.core.record import PAPER_FOUR, EvaluationRecord, Finding
from fsr_lab.core.threat import Threat

ARRAYS = ("outcome", "margin", "norm", "ids", "labels", "forwards", "backwards")
OUTCOME = {
    "clean": [1, 1, 1, 0, 1, 0],
    "fgsm": [1, 1, 0, 1, 1, 0],
    "pgd20": [1, 1, 0, 1, 1, 0],
    "pgd100": [1, 0, 0, 1, 1, 0],
    "cw30": [1, 1, 0, 1, 0, 0],
}


@pytest.fixture
def record():
    rng = np.random.default_rng(0)
    outcome = np.array(list(OUTCOME.values()), dtype=np.int8)
    return EvaluationRecord(
        attacks=tuple(OUTCOME),
        outcome=outcome,
        margin=np.where(outcome == 1, 1, -1) * rng.random(outcome.shape, dtype=np.float32),
        norm=rng.random(outcome.shape, dtype=np.float32),
        ids=np.arange(6),
        labels=rng.integers(10, size=6),
        forwards=np.array([0, 6, 120, 600, 180]),
        backwards=np.array([0, 6, 120, 600, 180]),
        threat=Threat(norm="linf", eps="8/255"),
        precision="float32",
        chunk=500,
        settings={"fgsm": "PGD(steps=1)"},
        findings=(Finding("randomised", "pass", 0.0, "two forwards agree"),),
        provenance=Provenance.collect(command="fsr evaluate", seed=3, hashes={"data": "abc"}),
        name="AT+FSR",
    )


def same(left, right):
    arrays = all(
        np.array_equal(getattr(left, field), getattr(right, field), equal_nan=field in ("margin", "norm"))
        and getattr(left, field).dtype == getattr(right, field).dtype
        for field in ARRAYS
    )
    rest = ("attacks", "chains", "threat", "precision", "chunk", "settings", "findings", "provenance", "name")
    return arrays and all(getattr(left, field) == getattr(right, field) for field in rest)


def test_it_comes_back_as_it_was_saved(record, tmp_path):
    path = record.save(tmp_path / "records", "last")
    assert path == tmp_path / "records" / "last.json"
    assert same(EvaluationRecord.load(path), record)
    assert sorted(entry.name for entry in path.parent.iterdir()) == ["last.json", "last.npz"]


def test_samples_that_were_not_run_come_back_too(record, tmp_path):
    outcome, margin = record.outcome.copy(), record.margin.copy()
    outcome[2, 3], margin[2, 3] = -1, np.nan
    record = replace(record, outcome=outcome, margin=margin)
    assert same(EvaluationRecord.load(record.save(tmp_path, "last")), record)


def test_the_same_record_gives_the_same_header(record, tmp_path):
    first, second = (record.save(tmp_path / name, "last").read_bytes() for name in "ab")
    assert first == second
    header = json.loads(first)
    assert header["threat"] == {"norm": "linf", "eps": 8 / 255}
    assert header["samples"] == 6


def test_accuracies_are_counted_per_sample(record):
    assert len(record) == 6
    assert record.correct("clean").tolist() == [True, True, True, False, True, False]
    assert record.worst_case(["fgsm"]).tolist() == record.correct("fgsm").tolist()


def test_the_ensemble_in_both_conventions(record):
    assert PAPER_FOUR == ("fgsm", "pgd20", "pgd100", "cw30")
    # Eq. 6: right under all four; the released code also asks for the clean image
    assert record.worst_case(PAPER_FOUR).tolist() == [True, False, False, True, False, False]
    assert record.worst_case(("clean", *PAPER_FOUR)).tolist() == [True, False, False, False, False, False]


def test_the_worst_case_takes_settled_samples_as_lost(record):
    outcome = record.outcome.copy()
    outcome[3, 2] = -1  # lost to fgsm already
    outcome[4, 0] = -1  # withstood the others
    sparse = replace(record, outcome=outcome)
    assert sparse.worst_case(PAPER_FOUR).tolist() == [True, False, False, True, False, False]
    with pytest.raises(ValueError, match="'pgd100' was not run on every sample: ask for worst_case"):
        sparse.correct("pgd100")


def test_an_attack_that_is_not_there_gets_its_neighbours(record):
    message = r"no attack in this record named 'pgd10'; close names: \['pgd100'"
    with pytest.raises(ValueError, match=message):
        record.correct("pgd10")
    with pytest.raises(ValueError, match=message):
        record.worst_case(["fgsm", "pgd10"])


def test_it_is_not_changed_by_accident(record):
    with pytest.raises(FrozenInstanceError):
        record.name = "better"


@pytest.mark.parametrize("field", ["outcome", "margin", "norm", "labels", "forwards", "backwards"])
def test_arrays_that_do_not_belong_together_are_refused(field, record):
    with pytest.raises(ValueError, match=f"expected {field} of shape .*, got"):
        replace(record, **{field: getattr(record, field)[..., :-1]})


@pytest.mark.parametrize("attacks", [(), ("fgsm", "clean", "pgd20", "pgd100", "cw30")])
def test_clean_accuracy_is_attack_zero(attacks, record):
    with pytest.raises(ValueError, match="expected 'clean' as the first attack of a record"):
        replace(record, attacks=attacks)


def refused(path):
    with pytest.raises(ValueError, match=r"is not a whole evaluation record .*; evaluate again") as caught:
        EvaluationRecord.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["last.json", "last.npz"])
def test_a_missing_file_is_refused(name, record, tmp_path):
    path = record.save(tmp_path, "last")
    (tmp_path / name).unlink()
    refused(path)


@pytest.mark.parametrize("name", ["last.json", "last.npz"])
@pytest.mark.parametrize("share", [0, 0.3, 0.6, 0.99])
def test_a_truncated_file_is_refused(name, share, record, tmp_path):
    path = record.save(tmp_path, "last")
    content = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(content[: int(share * len(content))])
    refused(path)


def loaded_or_message(path):
    try:
        return EvaluationRecord.load(path)
    except ValueError as err:
        return str(err)


def test_a_flipped_bit_is_refused_or_harmless(record, tmp_path):
    path = record.save(tmp_path, "last")
    file = tmp_path / "last.npz"
    content = file.read_bytes()
    messages = []
    for position in random.sample(range(len(content)), 400):
        damaged = bytearray(content)
        damaged[position] ^= 1 << random.randrange(8)
        file.write_bytes(damaged)
        found = loaded_or_message(path)
        if isinstance(found, str):
            messages.append(found)
        else:
            assert same(found, record)  # the bit was one of the archive's dates and the like
    assert len(messages) > 100
    assert all("is not a whole evaluation record" in message for message in messages)


@pytest.mark.parametrize(
    "text", ["", "[]", "null", "{}", '"record"', '{"attacks": ["clean"]}', "\xff\xfe", "not json at all"]
)
def test_another_json_file_is_refused(text, record, tmp_path):
    path = record.save(tmp_path, "last")
    path.write_bytes(text.encode("latin-1"))
    refused(path)


@pytest.mark.parametrize(
    "change",
    [
        {"threat": {"norm": "linf", "eps": -1}},
        {"threat": {"norm": "linf"}},
        {"threat": None},
        {"provenance": {"seed": 1}},
        {"attacks": ["clean", "fgsm"]},
        {"attacks": 5},
        {"findings": [["a", "pass"]]},
    ],
    ids=str,
)
def test_a_header_of_another_shape_is_refused(change, record, tmp_path):
    path = record.save(tmp_path, "last")
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(path)


def test_a_file_that_would_run_code_is_refused(record, tmp_path):
    class Runs:
        def __reduce__(self):
            return Path.touch, (tmp_path / "ran",)

    path = record.save(tmp_path, "last")
    arrays = {field: getattr(record, field) for field in ARRAYS} | {"labels": np.array([Runs()], dtype=object)}
    np.savez(tmp_path / "last.npz", **arrays)
    refused(path)
    (tmp_path / "last.npz").write_bytes(pickle.dumps(Runs()))
    refused(path)
    assert not (tmp_path / "ran").exists()


def test_arrays_of_another_record_are_refused(record, tmp_path):
    path = record.save(tmp_path, "last")
    np.savez(tmp_path / "last.npz", **{field: getattr(record, field)[..., :3] for field in ARRAYS})
    refused(path)


def test_chains_and_touched_attacks_come_back(record, tmp_path):
    finding = Finding("gradient-free", "fail", 0.4, "the white-box attacks are weaker", ("pgd20", "pgd100"))
    stored = replace(record, chains={"both": ("pgd20", "cw30")}, findings=(finding,))
    loaded = EvaluationRecord.load(stored.save(tmp_path, "last"))
    assert loaded.chains == {"both": ("pgd20", "cw30")}
    assert loaded.findings == (finding,)


def test_a_record_of_before_there_were_chains_still_loads(record, tmp_path):
    path = record.save(tmp_path, "last")
    header = json.loads(path.read_text())
    del header["chains"]
    header["findings"] = [finding[:4] for finding in header["findings"]]
    path.write_text(json.dumps(header))
    loaded = EvaluationRecord.load(path)
    assert loaded.chains == {}
    assert loaded.findings == record.findings


def test_a_chain_of_attacks_that_are_not_there_is_refused(record):
    with pytest.raises(ValueError, match="no attack in this record named 'square'"):
        replace(record, chains={"all": ("pgd20", "square")})


def part(record, rows):
    picked = {name: getattr(record, name)[:, rows] for name in ("outcome", "margin", "norm")}
    picked |= {name: getattr(record, name)[rows] for name in ("ids", "labels")}
    passes = {name: getattr(record, name) * len(rows) // 6 for name in ("forwards", "backwards")}
    return replace(record, **picked, **passes)


@pytest.mark.parametrize("shards", [([0, 1, 2, 3, 4, 5],), ([0, 3], [1, 4], [2, 5]), ([4, 5], [], [2, 3, 0, 1])])
def test_shards_join_to_the_whole_whatever_their_order(record, shards):
    assert same(EvaluationRecord.merged([part(record, rows) for rows in shards]), record)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"threat": Threat(norm="linf", eps="4/255")}, "their threat differ"),
        ({"chunk": 7}, "their chunk differ"),
        ({"settings": {"fgsm": "PGD(steps=2)"}}, "their settings differ"),
        ({"chains": {"all": ("fgsm",)}}, "their chains differ"),
    ],
)
def test_what_is_not_of_one_evaluation_does_not_merge(record, change, message):
    with pytest.raises(ValueError, match=message):
        EvaluationRecord.merged([part(record, [0, 1]), replace(part(record, [2, 3]), **change)])


def test_records_of_other_weights_do_not_merge(record):
    other = replace(record.provenance, hashes={"data": "abc", "weights": "other"})
    with pytest.raises(ValueError, match="their weights or data differ"):
        EvaluationRecord.merged([part(record, [0, 1]), replace(part(record, [2, 3]), provenance=other)])


def test_one_sample_in_two_shards_is_refused(record):
    with pytest.raises(ValueError, match="sample 1 is in two of these records"):
        EvaluationRecord.merged([part(record, [0, 1]), part(record, [1, 2])])


def test_nothing_does_not_merge():
    with pytest.raises(ValueError, match="no record to merge"):
        EvaluationRecord.merged([])
