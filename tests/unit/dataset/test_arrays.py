import numpy as np
import pytest

from fsr_lab.dataset.arrays import Arrays, checked


def arrays(**changes):
    """Return a good set of 6 + 3 images (1, 4, 5) of 3 classes, with changes."""
    rng = np.random.default_rng(0)
    good = Arrays(
        x_train=rng.integers(256, size=(6, 1, 4, 5), dtype=np.uint8),
        y_train=np.array([0, 1, 2, 0, 1, 2], dtype=np.int32),
        x_test=rng.integers(256, size=(3, 1, 4, 5), dtype=np.uint8),
        y_test=np.array([0, 1, 2]),
        source="here",
    )
    return good._replace(**changes)


def check(found):
    return checked(found, name="mine", image_shape=(1, 4, 5), num_classes=3)


def test_both_layouts_and_both_kinds_of_number_become_the_same():
    wanted = check(arrays())
    assert wanted.x_train.dtype == np.uint8
    assert wanted.y_train.dtype == np.int64
    channels_last = check(arrays(x_train=arrays().x_train.transpose(0, 2, 3, 1)))
    floats = check(arrays(x_train=(arrays().x_train / 255).astype(np.float32)))
    for other in (channels_last, floats):
        assert np.array_equal(other.x_train, wanted.x_train)
        assert other.x_train.flags["C_CONTIGUOUS"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"x_train": np.full((6, 1, 4, 5), 2.0)},
            r"mine: x_train: expected floats in \[0, 1\], got \[2, 2\]; scale",
        ),
        ({"x_test": np.full((3, 1, 4, 5), -0.1)}, r"x_test: expected floats in \[0, 1\], got \[-0.1, -0.1\]"),
        ({"x_train": np.full((6, 1, 4, 5), np.nan)}, "x_train: expected numbers, got NaN in image 0"),
        ({"x_train": np.zeros((6, 1, 4, 5), np.int64)}, "expected uint8 or floats in .*, got int64; convert"),
        (
            {"x_train": np.zeros((6, 20), np.uint8)},
            r"expected images \(N, 1, 4, 5\) .*, got \(6, 20\); correct",
        ),
        ({"x_train": np.zeros((6, 3, 4, 5), np.uint8)}, r"got \(6, 3, 4, 5\)"),
        ({"x_test": np.zeros((0, 1, 4, 5), np.uint8)}, r"got \(0, 1, 4, 5\)"),
        ({"y_train": np.array([0, 1, 2, 3, 0, 0])}, r"labels in \[0, 3\), got 3 for image 3; correct"),
        ({"y_test": np.array([0, -1, 2])}, r"y_test: expected labels in \[0, 3\), got -1 for image 1"),
        ({"y_train": np.array([0, 1, 2])}, r"y_train: expected a label for each of 6 images, got \(3,\)"),
        ({"y_train": np.zeros(6)}, "expected integer labels, got float64"),
        ({"y_train": np.array([0, 0, 0, 1, 1, 1])}, "training images of all 3 classes, got none of 2; set"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        check(arrays(**changes))
    assert "\n" not in str(caught.value)
