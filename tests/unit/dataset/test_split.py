import pytest
import torch

from fsr_lab.dataset.split import stratified


def labels(*sizes):
    y = torch.cat([torch.full((size,), label) for label, size in enumerate(sizes)])
    return y[torch.randperm(len(y), generator=torch.Generator().manual_seed(1))]


@pytest.mark.parametrize(
    ("sizes", "count", "wanted"),
    [
        ((100, 100, 100), 30, [10, 10, 10]),
        ((300, 200, 100), 60, [30, 20, 10]),
        (
            (500, 2, 498),
            100,
            [49, 1, 50],
        ),  # a rare class is there all the same; the remainders decide the rest
        ((10, 10), 2, [1, 1]),
        ((10, 10), 18, [9, 9]),
    ],
)
def test_classes_are_chosen_in_proportion_and_none_is_missing(sizes, count, wanted):
    y = labels(*sizes)
    ids = stratified(y, count, len(sizes), seed=0)
    got = torch.bincount(y[ids], minlength=len(sizes))
    assert len(set(ids.tolist())) == count
    assert torch.equal(ids, ids.sort().values)
    assert (got - torch.tensor(wanted)).abs().max() <= 1
    assert got.min() >= 1


def test_the_choice_follows_its_seed_alone():
    y = labels(50, 50)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = stratified(y, 20, 2, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, stratified(y, 20, 2, seed=0))
    assert not torch.equal(first, stratified(y, 20, 2, seed=1))


def test_nothing_is_chosen_of_nothing_asked():
    assert stratified(labels(5, 5), 0, 2, seed=0).tolist() == []


@pytest.mark.parametrize(
    ("count", "message"),
    [
        (1, "val_size 0 or at least one image of each of 2 classes, got 1"),
        (-3, "got -3"),
        (9, "val_size of at most 8 of 10, got 9"),
        (500, "val_size of at most 8 of 10, got 500"),
    ],
)
def test_impossible_sizes_are_refused(count, message):
    with pytest.raises(ValueError, match=message):
        stratified(labels(5, 5), count, 2, seed=0)


def test_a_class_is_not_emptied():
    with pytest.raises(ValueError, match=r"leave images of every class, got 4: none of \[1\] is left"):
        stratified(labels(9, 1), 4, 2, seed=0)
