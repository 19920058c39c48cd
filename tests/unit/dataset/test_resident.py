from itertools import chain

import pytest
import torch

from fsr_lab.dataset.resident import ResidentBatches


def make(count=20, **changes):
    """Return batches whose labels are the images' places, so that a pass shows its order."""
    images = torch.randint(256, (count, 1, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(9))
    arguments = {"batch_size": 6, "seed": 0, "shuffle": True, "augment": "none", "device": "cpu"}
    return ResidentBatches(images=images, labels=torch.arange(count), **(arguments | changes))


def labels(batches):
    return [y.tolist() for _, y in batches]


def flat(lists):
    return list(chain.from_iterable(lists))


def test_images_become_floats_of_levels_and_stay_with_their_labels():
    batches = make()
    for x, y in batches:
        assert x.dtype == torch.float32
        assert y.dtype == torch.int64
        assert torch.equal(x, batches.images[y] / 255)
    every = torch.arange(256, dtype=torch.uint8).view(256, 1, 1, 1)
    arguments = {"batch_size": 256, "seed": 0, "shuffle": False, "augment": "none", "device": "cpu"}
    ((x, _),) = ResidentBatches(images=every, labels=torch.zeros(256, dtype=torch.int64), **arguments)
    assert x.min() == 0
    assert x.max() == 1
    assert torch.equal((x * 255).round().byte(), every)


def test_an_epoch_shows_every_sample_once_and_the_next_in_another_order():
    batches = make()
    first, second = labels(batches), labels(batches)
    assert len(first) == len(batches) == 4
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(20))
    assert first != second


def test_order_follows_seed_and_epoch_alone():
    assert labels(make()) == labels(make())
    assert labels(make()) != labels(make(seed=1))
    later = make()
    later.load_state_dict({"epoch": 1, "batch": 0})
    both = make()
    labels(both)
    assert labels(later) == labels(both)


def test_without_shuffle_the_order_is_the_given_one():
    batches = make(shuffle=False)
    assert flat(labels(batches)) == flat(labels(batches)) == list(range(20))


def test_the_global_generator_is_neither_used_nor_moved():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    first = [x for x, _ in make(augment="pad_crop_flip")]
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(1)
    assert all(torch.equal(a, x) for a, (x, _) in zip(first, make(augment="pad_crop_flip"), strict=True))


def test_augmentation_differs_between_epochs_batches_and_ranks():
    def draws(**changes):
        batches = make(count=8, batch_size=4, shuffle=False, augment="pad_crop_flip", **changes)
        batches.images[:] = batches.images[0]
        return [x for _ in range(2) for x, _ in batches]

    alone = draws()
    assert all(not torch.equal(a, b) for i, a in enumerate(alone) for b in alone[:i])
    halves = [draws(rank=rank, world_size=2) for rank in range(2)]
    assert all(not torch.equal(a, b) for a, b in zip(*halves, strict=True))


@pytest.mark.parametrize(
    ("count", "world_size", "sizes"),
    [
        (20, 1, [6, 6, 6, 2]),
        (19, 1, [6, 6, 7]),  # one sample left over joins the batch before it
        (18, 1, [6, 6, 6]),
        (21, 2, [6, 6, 9]),  # three left over cannot give two to each of two ranks
        (22, 2, [6, 6, 6, 4]),
        (5, 1, [5]),
        (1, 1, [1]),
    ],
)
def test_a_remainder_too_small_for_batchnorm_joins_the_batch_before(count, world_size, sizes):
    parts = [make(count=count, rank=rank, world_size=world_size) for rank in range(world_size)]
    assert [len(part) for part in parts] == [len(sizes)] * world_size
    assert [sum(map(len, ys)) for ys in zip(*map(labels, parts), strict=True)] == sizes


@pytest.mark.parametrize("world_size", [2, 3, 4])
def test_ranks_share_each_global_batch(world_size):
    parts = [make(count=46, batch_size=9, rank=rank, world_size=world_size) for rank in range(world_size)]
    alone = labels(make(count=46, batch_size=9)) if world_size == 2 else None
    for step, slices in enumerate(zip(*map(labels, parts), strict=True)):
        sizes = [len(part) for part in slices]
        assert max(sizes) - min(sizes) <= 1
        assert min(sizes) >= 2
        if alone is not None and step < 4:
            assert flat(slices) == alone[step]
    assert sorted(flat(flat(labels(part)) for part in parts)) == list(range(46))


def test_shares_make_the_mean_of_rank_means_the_global_mean():
    loss = torch.rand(21, dtype=torch.float64)
    parts = [make(count=21, batch_size=8, rank=rank, world_size=3) for rank in range(3)]
    for step, slices in enumerate(zip(*map(labels, parts), strict=True)):
        everyone = flat(slices)
        weighted = [part.share(step) * loss[ids].mean() for part, ids in zip(parts, slices, strict=True)]
        assert torch.stack(weighted).mean() == pytest.approx(loss[everyone].mean().item(), abs=1e-12)
    assert make().share(0) == 1.0


def test_a_pass_left_early_counts_as_an_epoch():
    batches = make()
    whole = make()
    epochs = [labels(whole), labels(whole)]
    assert next(iter(batches))[1].tolist() == epochs[0][0]
    assert labels(batches) == epochs[1]


def test_asking_for_an_iterator_twice_moves_nothing():
    batches = make()
    iter(batches)
    assert labels(batches) == labels(make())


@pytest.mark.parametrize("stop", range(1, 9))
def test_a_restored_position_continues_exactly(stop):
    def several(batches, count):
        seen = []
        while len(seen) < count:
            for x, y in batches:
                seen.append((x, y))
                if len(seen) == count:
                    break
        return seen

    whole = several(make(augment="pad_crop_flip"), 12)
    stopped = make(augment="pad_crop_flip")
    several(stopped, stop)
    resumed = make(augment="pad_crop_flip")
    resumed.load_state_dict(stopped.state_dict())
    for (x, y), (wanted_x, wanted_y) in zip(several(resumed, 12 - stop), whole[stop:], strict=True):
        assert torch.equal(x, wanted_x)
        assert torch.equal(y, wanted_y)


def test_a_position_beyond_the_epoch_is_refused():
    with pytest.raises(ValueError, match=r"within the epoch's 4 batches, got 7.*batch_size"):
        make().load_state_dict({"epoch": 0, "batch": 7})


@pytest.mark.parametrize(("free", "is_far"), [(None, False), (640, False), (639, True), (0, True)])
def test_images_that_would_take_over_half_of_the_free_memory_stay_on_the_host(free, is_far, caplog):
    asked = []
    batches = make(device="meta", free_memory=lambda device: asked.append(device) or free)  # 20 images, 320 bytes
    assert asked == [torch.device("meta")]
    assert batches.images.device.type == batches.labels.device.type == ("cpu" if is_far else "meta")
    said = [record.getMessage() for record in caplog.records]
    assert len(said) == is_far
    assert all("stay in host memory: meta has" in text for text in said)
    x, y = next(iter(batches))
    assert (x.device.type, y.device.type, x.dtype, tuple(x.shape)) == ("meta", "meta", torch.float32, (6, 1, 4, 4))


def test_a_batch_from_the_host_is_the_batch_from_the_device():
    # "cpu:0" is to torch another device than "cpu", with the same memory
    far = make(augment="pad_crop_flip", device="cpu:0", free_memory=lambda device: 0)
    assert far.images.device != far.device
    for (x, y), (wanted_x, wanted_y) in zip(far, make(augment="pad_crop_flip"), strict=True):
        assert torch.equal(x, wanted_x)
        assert torch.equal(y, wanted_y)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a second memory: no CUDA device here")
def test_batches_are_the_same_wherever_the_images_are_kept():
    arguments = {"count": 500, "batch_size": 64, "augment": "pad_crop_flip"}
    here = make(**arguments)
    places = [make(**arguments, device="cuda", free_memory=lambda device, free=free: free) for free in (None, 0)]
    assert [batches.images.device.type for batches in places] == ["cuda", "cpu"]
    for _ in range(2):
        for (x, y), *others in zip(here, *places, strict=True):
            for other_x, other_y in others:
                assert other_x.device.type == other_y.device.type == "cuda"
                assert torch.equal(other_x.cpu(), x)
                assert torch.equal(other_y.cpu(), y)


def test_images_too_few_for_the_ranks_and_batches_of_none_are_refused():
    with pytest.raises(ValueError, match="each of 3 ranks, got 2 images"):
        make(count=2, world_size=3)
    with pytest.raises(ValueError, match="batch size of at least 1, got 0"):
        make(batch_size=0)
