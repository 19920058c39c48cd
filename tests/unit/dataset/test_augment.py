import pytest
import torch

from fsr_lab.dataset.augment import PAD, augmentation


def test_none_returns_the_batch_and_draws_nothing():
    x = torch.randint(256, (2, 1, 4, 4), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    assert torch.equal(augmentation("none")(x, generator), x)
    assert torch.equal(generator.get_state(), before)


def test_every_crop_is_a_window_of_the_padded_image_and_all_windows_occur():
    side = 3
    image = torch.arange(1, side * side + 1, dtype=torch.uint8).view(1, side, side)
    padded = torch.zeros(side + 2 * PAD, side + 2 * PAD, dtype=torch.uint8)
    padded[PAD : PAD + side, PAD : PAD + side] = image
    windows = {}
    for top in range(2 * PAD + 1):
        for left in range(2 * PAD + 1):
            window = padded[top : top + side, left : left + side]
            windows[tuple(window.flatten().tolist())] = "plain"
            windows[tuple(window.fliplr().flatten().tolist())] = "mirrored"
    x = image.expand(4000, 1, side, side)
    crops = augmentation("pad_crop_flip")(x, torch.Generator().manual_seed(0))
    seen = {tuple(crop.flatten().tolist()) for crop in crops}
    assert seen == set(windows)


def test_half_of_the_images_are_mirrored_and_every_shift_is_as_likely():
    x = torch.zeros(20_000, 1, 9, 9, dtype=torch.uint8)
    x[:, :, 4, 4] = 1  # in the middle: a shift moves it, and a mirror sends column c to 8 - c
    x[:, :, 4, 5] = 2
    crops = augmentation("pad_crop_flip")(x, torch.Generator().manual_seed(0))
    both = ((crops == 1).sum((1, 2, 3)) == 1) & ((crops == 2).sum((1, 2, 3)) == 1)
    crops = crops[both]
    first, second = (crops == 1).flatten(1).int().argmax(1), (crops == 2).flatten(1).int().argmax(1)
    assert (first > second).float().mean() == pytest.approx(0.5, abs=0.02)
    rows = torch.bincount(first // 9, minlength=9) / len(crops)
    assert torch.allclose(rows, torch.full((9,), 1 / 9), atol=0.01)


def test_an_unknown_name_gets_its_neighbours():
    with pytest.raises(ValueError, match=r"no augmentation named 'pad_crop_flp'; close names: \['pad_crop_flip'"):
        augmentation("pad_crop_flp")
