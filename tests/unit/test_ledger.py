"""An evaluation is a ledger of cells: it continues where it stopped, and refuses what does not belong together."""

import errno
import json
import os
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn

from fsr_lab.attack.pgd import PGD
from fsr_lab.core.record import CLEAN, NOT_RUN
from fsr_lab.core.threat import Threat
from fsr_lab.evaluation.cell import cell_seed
from fsr_lab.evaluation.ledger import Ledger
from fsr_lab.evaluation.run import evaluate

THREAT = Threat(norm="linf", eps=8 / 255)


def pgd(steps=3, **options):
    return PGD(**({"threat": THREAT, "steps": steps, "relative_step": 0.25, "random_start": False} | options))


ATTACKS = {"pgd": pgd(), "random": pgd(random_start=True)}


@pytest.fixture
def model():
    """A small network of four classes that is right on about half of the samples."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.Tanh(), nn.Linear(16, 4))
    with torch.no_grad():
        net[3].weight.mul_(6)
    return net


@pytest.fixture
def data(model):
    x = torch.rand(40, 3, 8, 8)
    y = model(x).argmax(1)
    y[::3] = (y[::3] + 1) % 4
    return [(x, y)]


def run(model, data, attacks=None, **options):
    given = {"threat": THREAT, "seed": 0, "chunk": 6, "doctor": False} | options
    return evaluate(model, data, attacks or ATTACKS, **given)


def arrays(record):
    return {name: getattr(record, name) for name in ("outcome", "margin", "norm", "ids", "labels", "forwards")}


def assert_equal(one, other):
    for name, values in arrays(one).items():
        assert np.array_equal(values, arrays(other)[name], equal_nan=values.dtype.kind == "f"), name


def files(folder):
    """Every cell of a ledger: path -> arrays."""
    found = {}
    for path in sorted(folder.glob("*/*.npz")):
        with np.load(path) as stored:
            found[path.relative_to(folder).as_posix()] = {name: stored[name] for name in stored.files}
    return found


def assert_same_files(one, other):
    one, other = files(one), files(other)
    assert one.keys() == other.keys() != set()
    for path, stored in one.items():
        assert stored.keys() == other[path].keys()
        assert all(value.tobytes() == other[path][name].tobytes() for name, value in stored.items()), path


class Asked(nn.Module):
    """Counts the images that it is shown."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.images = inner, 0

    def forward(self, x):
        self.images += len(x)
        return self.inner(x)


def test_a_ledger_changes_nothing(model, data, tmp_path):
    assert_equal(run(model, data, ledger=tmp_path / "kept"), run(model, data))


def test_the_same_evaluation_is_read_back_and_not_run_again(model, data, tmp_path):
    asked = Asked(model)
    first = run(asked, data, ledger=tmp_path)
    asked.images = 0
    again = run(asked, data, ledger=tmp_path)
    assert_equal(first, again)
    assert asked.images == 6 + 6 + 6  # probed twice, and recognised by its first chunk


def test_more_attacks_join_the_ledger_that_is_there(model, data, tmp_path):
    first = run(model, data, {"pgd": pgd()}, ledger=tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*/*.npz")}
    both = run(model, data, ledger=tmp_path)
    assert all(path.stat().st_mtime_ns == time for path, time in before.items())
    assert np.array_equal(both.outcome[:2], first.outcome)
    assert_equal(both, run(model, data))


def test_the_same_name_with_other_settings_is_another_column(model, data, tmp_path):
    run(model, data, {"pgd": pgd()}, ledger=tmp_path)
    other = run(model, data, {"pgd": pgd(steps=1)}, ledger=tmp_path)
    assert_equal(other, run(model, data, {"pgd": pgd(steps=1)}))


@pytest.mark.parametrize("at", [0, 1, 5, 9, 16])
def test_interrupted_anywhere_it_ends_as_if_it_had_not_been(model, data, tmp_path, monkeypatch, at):
    whole = run(model, data, ledger=tmp_path / "whole")
    original, kept = Ledger.put, []

    def put(self, column, index, cell):
        if len(kept) == at:
            raise KeyboardInterrupt
        kept.append(column)
        original(self, column, index, cell)

    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "put", put)
        with pytest.raises(KeyboardInterrupt):
            run(model, data, ledger=tmp_path / "broken")
    assert len(files(tmp_path / "broken")) == at
    assert_equal(run(model, data, ledger=tmp_path / "broken"), whole)
    assert_same_files(tmp_path / "broken", tmp_path / "whole")


@pytest.mark.parametrize("count", [2, 3, 9])
def test_shards_fill_one_ledger_with_the_same_bits(model, data, tmp_path, count):
    whole = run(model, data, ledger=tmp_path / "one")
    parts = [run(model, data, ledger=tmp_path / "many", shard=(index, count)) for index in range(count)]
    assert_same_files(tmp_path / "one", tmp_path / "many")
    assert_equal(run(model, data, ledger=tmp_path / "many"), whole)
    assert sorted(np.concatenate([part.ids for part in parts])) == list(range(40))
    for part in parts:
        assert np.array_equal(part.outcome, whole.outcome[:, part.ids])
        assert np.array_equal(part.labels, whole.labels[part.ids])
    assert sum(part.forwards for part in parts).tolist() == whole.forwards.tolist()


@pytest.mark.parametrize("shard", [(2, 2), (-1, 2), (0, 0)])
def test_a_shard_that_is_none_is_refused(model, data, shard):
    with pytest.raises(ValueError, match=r"expected shard \(i, k\) with 0 <= i < k"):
        run(model, data, shard=shard)


@pytest.mark.parametrize("chunk", [7, 64, 500])
def test_in_float64_the_chunk_size_changes_no_deterministic_outcome(model, chunk):
    model = model.double()
    x = torch.rand(150, 3, 8, 8, dtype=torch.float64)
    y = model(x).argmax(1)
    attacks = {"fgsm": pgd(1, relative_step=1), "pgd": pgd(10)}
    whole, cut = (run(model, [(x, y)], attacks, chunk=size) for size in (150, chunk))
    assert 0.1 < whole.correct("pgd").mean() < 0.9
    assert np.array_equal(whole.outcome, cut.outcome)


def heavier(model):
    with torch.no_grad():
        next(model.parameters()).mul_(1.1)
    return model


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda args: args | {"threat": Threat(norm="linf", eps=4 / 255), "attacks": {}}, "eps: 0.0313"),
        (lambda args: args | {"threat": Threat(norm="l2", eps=8 / 255), "attacks": {}}, "norm: linf there, l2 here"),
        (lambda args: args | {"seed": 1}, "seed: 0 there, 1 here"),
        (lambda args: args | {"chunk": 7}, "chunk: 6 there, 7 here"),
        (lambda args: args | {"model": heavier(args["model"])}, "weights: "),
        (lambda args: args | {"about": "another temperature"}, "about:  there, another temperature here"),
        (lambda args: args | {"batches": [(1 - x, y) for x, y in args["batches"]]}, "data: "),
        (lambda args: args | {"batches": [(x[:39], y[:39]) for x, y in args["batches"]]}, "samples: 40 there, 39 here"),
    ],
    ids=["eps", "norm", "seed", "chunk", "weights", "about", "data", "fewer samples"],
)
def test_the_ledger_of_another_evaluation_is_refused(model, data, tmp_path, change, named):
    args = {"model": model, "batches": data, "attacks": {"pgd": pgd()}, "threat": THREAT, "seed": 0, "chunk": 6}
    evaluate(**args, ledger=tmp_path)
    before = files(tmp_path)
    with pytest.raises(ValueError, match=r"is the ledger of another evaluation .*give this one another ledger=") as err:
        evaluate(**change(args), ledger=tmp_path)
    assert named in str(err.value)
    assert files(tmp_path).keys() == before.keys()


def test_another_network_with_the_same_weights_is_refused(model, data, tmp_path):
    class Tempered(nn.Sequential):
        def forward(self, x):
            return super().forward(x) / 2

    run(model, data, ledger=tmp_path)
    with pytest.raises(ValueError, match=r"is the ledger of another network.*ledger="):
        run(Tempered(*model), data, ledger=tmp_path)


def test_a_callable_has_no_weights_and_is_known_by_its_margins(model, data, tmp_path):
    first = run(lambda x: model(x), data, ledger=tmp_path)
    assert_equal(run(lambda x: model(x), data, ledger=tmp_path), first)
    with pytest.raises(ValueError, match="is the ledger of another network"):
        run(lambda x: model(x).roll(1, 1), data, ledger=tmp_path)


def test_a_ledger_of_other_code_is_refused(model, data, tmp_path, monkeypatch):
    run(model, data, ledger=tmp_path)
    monkeypatch.setattr("fsr_lab.evaluation.run.CODE", "changed")
    with pytest.raises(ValueError, match=r"code: .* there, changed here"):
        run(model, data, ledger=tmp_path)


def test_a_folder_of_something_else_is_left_alone(model, data, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match=r"is not a ledger: it holds other files.*give an empty folder"):
        run(model, data, ledger=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_damaged_header_is_told(model, data, tmp_path, text):
    (tmp_path / "ledger.json").write_text(text)
    with pytest.raises(ValueError, match=r"ledger.json is damaged .*give another ledger="):
        run(model, data, ledger=tmp_path)


@pytest.mark.parametrize("damage", [b"", b"PK\x03\x04 half a file", b"text"])
def test_a_damaged_cell_is_evaluated_again_and_said_so(model, data, tmp_path, capsys, damage):
    whole = run(model, data, ledger=tmp_path)
    path = sorted(tmp_path.glob("pgd*/*.npz"))[2]
    path.write_bytes(damage)
    assert_equal(run(model, data, ledger=tmp_path), whole)
    assert f"{path} is damaged" in capsys.readouterr().err
    assert path.read_bytes() != damage


def test_a_full_disk_stops_it_and_loses_nothing(model, data, tmp_path, monkeypatch):
    calls = []

    def fsync(number):
        calls.append(number)
        if len(calls) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fsync)
        with pytest.raises(OSError, match=r"no space left on the disk of .*free some and run again"):
            run(model, data, ledger=tmp_path)
    assert len(files(tmp_path)) == 4  # the header was the first of the five
    assert list(tmp_path.glob("**/.*")) == []
    assert_equal(run(model, data, ledger=tmp_path), run(model, data))


def test_images_are_kept_where_asked_for(model, data, tmp_path):
    (x, y), attack = data[0], pgd()
    record = run(model, data, {"pgd": attack}, ledger=tmp_path, keep_images=True)
    assert not np.array_equal(record.norm[1], record.norm[0])
    assert all("images" in stored for stored in files(tmp_path).values())
    (column,) = [path.name for path in tmp_path.iterdir() if path.name.startswith("pgd")]
    book = Ledger(tmp_path, {})
    chunks = dict(book.images(column))
    assert sorted(chunks) == list(range(7))
    found = torch.from_numpy(np.concatenate(list(chunks.values())))
    assert torch.equal(found, torch.cat([attack(model, *part) for part in zip(x.split(6), y.split(6), strict=True)]))


def test_a_ledger_without_images_gets_them_when_they_are_asked_for(model, data, tmp_path):
    first = run(model, data, ledger=tmp_path)
    assert_equal(run(model, data, ledger=tmp_path, keep_images=True), first)
    assert all("images" in stored for stored in files(tmp_path).values())


def test_images_need_a_ledger(model, data):
    with pytest.raises(ValueError, match="no ledger to keep the images in; give ledger=FOLDER"):
        run(model, data, keep_images=True)


def test_a_chain_attacks_only_what_is_left(model, data):
    seen = {}

    def watched(name, attack):
        def call(net, x, y):
            seen.setdefault(name, []).append(len(x))
            return attack(net, x, y)

        return call

    attacks = {"weak": pgd(1), "strong": pgd(10), "alone": pgd(2)}
    record = run(
        model, data, {name: watched(name, attack) for name, attack in attacks.items()},
        chains={"both": ["weak", "strong"]},
    )  # fmt: skip
    exact = run(model, data, attacks)
    clean, weak, strong = (exact.correct(name) for name in (CLEAN, "weak", "strong"))
    assert 0 < (clean & weak).sum() < clean.sum() < 40
    assert sum(seen["weak"]) == clean.sum()
    assert sum(seen["strong"]) == (clean & weak).sum()
    assert sum(seen["alone"]) == 40
    rows = dict(zip(record.attacks, record.outcome, strict=True))
    assert np.array_equal(rows["weak"] == NOT_RUN, ~clean)
    assert np.array_equal(rows["strong"] == NOT_RUN, ~(clean & weak))
    assert np.array_equal(np.isnan(record.margin), record.outcome == NOT_RUN)
    assert np.array_equal(record.worst_case([CLEAN, *record.chains["both"]]), clean & weak & strong)


def test_a_chain_in_shards_with_a_ledger_is_the_same(model, data, tmp_path):
    chains = {"all": list(ATTACKS)}
    whole = run(model, data, chains=chains)
    for index in (1, 0):
        run(model, data, chains=chains, ledger=tmp_path, shard=(index, 2))
    assert_equal(run(model, data, chains=chains, ledger=tmp_path), whole)


def test_a_chunk_of_which_nothing_is_left_costs_nothing(model, data):
    x = data[0][0]
    record = run(model, [(x, (model(x).argmax(1) + 1) % 4)], chains={"all": ["pgd", "random"]})
    assert record.forwards.tolist() == record.backwards.tolist() == [0, 0, 0]
    assert (record.outcome[1:] == NOT_RUN).all()


def test_kept_images_of_a_chain_are_clean_where_it_was_not_run(model, data, tmp_path):
    x = data[0][0]
    record = run(model, data, {"pgd": pgd()}, chains={"all": ["pgd"]}, ledger=tmp_path, keep_images=True)
    (column,) = [path.name for path in tmp_path.iterdir() if path.name.startswith("pgd")]
    images = torch.from_numpy(np.concatenate([found for _, found in Ledger(tmp_path, {}).images(column)]))
    idle = torch.from_numpy(record.outcome[1] == NOT_RUN)
    assert 0 < idle.sum() < 40
    assert torch.equal(images[idle], x[idle])
    assert (images[~idle] != x[~idle]).any()


@pytest.mark.parametrize(
    ("chains", "message"),
    [
        ({"all": ["pgd", "pdg"]}, "no attack of this evaluation named 'pdg'"),
        ({"one": ["pgd"], "two": ["pgd"]}, "'pgd' stands in two chains"),
    ],
)
def test_a_wrong_chain_is_refused(model, data, chains, message):
    with pytest.raises(ValueError, match=message):
        run(model, data, chains=chains)


@dataclass(frozen=True)
class Kin:
    """Moves every pixel by a step and returns what it has after `steps`; kin of one size are run once."""

    steps: int
    size: float

    def passes_by(self, other):
        return isinstance(other, Kin) and other.size == self.size and other.steps <= self.steps

    def __call__(self, model, x, y):
        for step in range(self.steps):
            model(x)
            x = (x + self.size * (-1) ** step).clamp(0, 1)
        return x

    def together(self, attacks, model, x, y):
        self(model, x, y)
        quiet = lambda images: None  # noqa: E731
        return [attack(quiet, x, y) for attack in attacks]


def test_kin_are_run_once_and_counted_with_the_longest(model, data):
    attacks = {"long": Kin(5, 0.01), "short": Kin(2, 0.01), "other": Kin(3, 0.02), "pgd": pgd()}
    record = run(model, data, attacks)
    apart = [run(model, data, {name: attack}) for name, attack in attacks.items()]
    for row, single in enumerate(apart, start=1):
        assert np.array_equal(record.outcome[row], single.outcome[1])
        assert np.array_equal(record.margin[row], single.margin[1])
    assert record.forwards.tolist() == [0, 5 * 40, 0, 3 * 40, 3 * 40]
    assert [int(single.forwards[1]) for single in apart] == [5 * 40, 2 * 40, 3 * 40, 3 * 40]


def test_kin_are_run_apart_on_a_network_that_gives_other_logits_each_time(model, data):
    class Noisy(nn.Module):
        eval_noise = True

        def forward(self, x):
            return model(x) + 0.1 * torch.randn(len(x), 4)

    attacks = {"long": Kin(5, 0.01), "short": Kin(2, 0.01)}
    record = run(Noisy(), data, attacks)
    alone = run(Noisy(), data, {"short": attacks["short"]})
    assert np.array_equal(record.margin[2], alone.margin[1])
    assert record.forwards.tolist() == [0, 5 * 40, 2 * 40]


def test_an_attack_that_needs_more_classes_is_replaced_and_it_is_said(data):
    @dataclass(frozen=True)
    class Choosy:
        least: int
        inner: PGD

        def for_classes(self, num_classes):
            return self if num_classes >= self.least else self.inner

        def __call__(self, net, x, y):
            raise AssertionError("too few classes")

    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    record = run(net, [(data[0][0], data[0][1] % 3)], {"choosy": Choosy(4, pgd()), "pgd": pgd()})
    (finding,) = record.findings
    assert (finding.check, finding.verdict, finding.value, finding.attacks) == ("classes", "warn", 3, ("choosy",))
    assert "choosy needs more than 3 classes and was run with another loss: PGD(" in finding.text
    assert np.array_equal(record.outcome[1], record.outcome[2])
    assert record.settings["choosy"] == record.settings["pgd"]


def test_seeds_follow_the_cell_alone():
    seeds = {cell_seed(seed, name, index) for seed in (0, 1) for name in ("one", "two") for index in (0, 1)}
    assert len(seeds) == 8
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_the_header_tells_what_the_ledger_is_of(model, data, tmp_path):
    run(model, data, ledger=tmp_path)
    header = json.loads((tmp_path / "ledger.json").read_text())
    assert {"weights", "about", "data", "samples", "norm", "eps", "seed", "chunk", "code", "torch"} == header.keys()


class Noisy(nn.Module):
    """Draws noise when deployed, and says so."""

    eval_noise = True

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def forward(self, x):
        logits = self.inner(x)
        return logits + 0.3 * torch.randn_like(logits)


def test_a_network_that_draws_noise_finds_its_ledger_again(model, data, tmp_path):
    first = run(Noisy(model), data, ledger=tmp_path)
    assert_equal(run(Noisy(model), data, ledger=tmp_path), first)
    for index in (1, 0):
        run(Noisy(model), data, ledger=tmp_path / "shards", shard=(index, 2))
    assert_equal(run(Noisy(model), data, ledger=tmp_path / "shards"), first)


def test_a_shard_of_another_network_is_refused_by_its_own_chunks(model, data, tmp_path):
    run(lambda x: model(x).roll(1, 1), data, ledger=tmp_path, shard=(1, 2))
    run(lambda x: model(x), data, ledger=tmp_path, shard=(0, 2))  # it has nothing to compare with
    with pytest.raises(ValueError, match="is the ledger of another network"):
        run(lambda x: model(x), data, ledger=tmp_path, shard=(1, 2))


@dataclass(frozen=True)
class Shift:
    """Moves every pixel by one size."""

    size: float

    def __call__(self, net, x, y):
        return (x + self.size).clamp(0, 1)


def test_a_foreign_attack_is_known_by_its_settings(model, data, tmp_path):
    for size in (0.0, 8 / 255, 0.0):
        record = run(model, data, {"shift": Shift(size)}, ledger=tmp_path)
        assert record.norm[1].max() == pytest.approx(size, abs=1e-6)


@pytest.mark.parametrize("make", [lambda: lambda net, x, y: x, lambda: Untold(torch.zeros(1, 3, 32, 32))])
def test_an_attack_that_does_not_tell_its_settings_has_no_ledger(model, data, tmp_path, make):
    run(model, data, {"untold": make()})
    with pytest.raises(ValueError, match=r"'untold' does not tell its settings .*dataclass of plain values"):
        run(model, data, {"untold": make()}, ledger=tmp_path)


@dataclass(frozen=True, eq=False)
class Untold:
    pattern: torch.Tensor

    def __call__(self, net, x, y):
        return x


def test_passes_of_kin_do_not_depend_on_what_the_ledger_has(model, data, tmp_path):
    attacks = {"long": pgd(9, relative_step=0.1), "short": pgd(4, relative_step=0.1)}
    together = run(model, data, attacks, ledger=tmp_path)
    alone = run(model, data, {"short": attacks["short"]}, ledger=tmp_path)
    assert together.forwards.tolist() == [0, 9 * 40, 0]
    assert alone.forwards.tolist() == [0, 4 * 40]
    assert run(model, data, attacks, ledger=tmp_path).forwards.tolist() == [0, 9 * 40, 0]


def test_a_cell_of_other_samples_than_are_left_is_run_again(model, data, tmp_path):
    chains = {"all": ["pgd", "random"]}
    whole = run(model, data, chains=chains, ledger=tmp_path)
    (first,) = [path for path in tmp_path.iterdir() if path.name.startswith("pgd")]
    cell = first / "00000.npz"
    with np.load(cell) as stored:
        changed = dict(stored)
    lost = np.flatnonzero(changed["outcome"] == 0)
    assert len(lost)
    changed["outcome"][lost[0]] = 1  # as if another machine's draws had let it stand
    np.savez(cell, **changed)
    again = run(model, data, chains=chains, ledger=tmp_path)
    assert again.outcome[2][lost[0]] != NOT_RUN
    assert whole.outcome[2][lost[0]] == NOT_RUN


def test_a_header_half_written_does_not_condemn_the_folder(model, data, tmp_path):
    (tmp_path / ".ledger.json.123.456.tmp").write_text('{"half')
    assert_equal(run(model, data, ledger=tmp_path), run(model, data))


def test_a_ledger_that_cannot_be_kept_is_told(model, data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot keep a ledger in .*; give ledger=FOLDER"):
        run(model, data, ledger=tmp_path / "file")
