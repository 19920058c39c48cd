import numpy as np
import pytest
from matplotlib.image import imread

from fsr_lab.report.figures import draw_curves, draw_samples, read_curves

CURVES = {
    "train/ce": {0: 2.3, 20: 1.7, 40: 1.1},
    "train/layer4/sep": {0: 4.6, 20: 4.0, 40: 3.3},
    "val/robust_acc": {19: 0.1, 39: 0.4},
}


def samples(channels=3, count=4, seed=0):
    rng = np.random.default_rng(seed)
    clean = rng.random((count, channels, 8, 8), dtype=np.float32)
    return {
        "clean": clean,
        "adversarial": np.clip(clean + rng.choice([-0.03, 0.03], clean.shape), 0, 1),
        "labels": np.arange(count),
        "predicted_clean": np.arange(count),
        "predicted_adversarial": np.arange(count) + 1,
    }


def assert_is_a_picture(path):
    pixels = imread(path)
    assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert min(pixels.shape[:2]) > 100
    assert pixels.std() > 0.01
    return pixels


def test_curves_are_drawn(tmp_path):
    path = tmp_path / "new" / "curves.png"
    draw_curves(CURVES, path, title="AT+FSR")
    assert_is_a_picture(path)
    assert [entry.name for entry in path.parent.iterdir()] == ["curves.png"]


@pytest.mark.parametrize("curves", [{}, {"val/acc": {5: 0.5}}, {"train/loss": {0: 1.0}}])
def test_a_run_that_hardly_began_is_drawn_too(curves, tmp_path):
    draw_curves(curves, tmp_path / "curves.png", title="short")
    assert_is_a_picture(tmp_path / "curves.png")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("count", [1, 4])
def test_samples_are_drawn(channels, count, tmp_path):
    draw_samples(samples(channels, count), tmp_path / "samples.png", title="PGD-20")
    assert_is_a_picture(tmp_path / "samples.png")


def test_an_attack_that_changed_nothing_is_drawn_without_warning(tmp_path):
    same = samples()
    same["adversarial"] = same["clean"]
    draw_samples(same, tmp_path / "samples.png", title="nothing")
    assert_is_a_picture(tmp_path / "samples.png")


def test_equal_inputs_give_equal_bytes(tmp_path):
    for name in ("one", "two"):
        draw_curves(CURVES, tmp_path / f"{name}_curves.png", title="AT")
        draw_samples(samples(), tmp_path / f"{name}_samples.png", title="AT")
    draw_samples(samples(seed=1), tmp_path / "other_samples.png", title="AT")
    content = {path.stem: path.read_bytes() for path in tmp_path.iterdir()}
    assert content["one_curves"] == content["two_curves"]
    assert content["one_samples"] == content["two_samples"]
    assert content["one_samples"] != content["other_samples"]


def test_drawing_leaves_matplotlibs_settings_and_figures_alone(tmp_path):
    import matplotlib
    from matplotlib import pyplot

    before = dict(matplotlib.rcParams)
    draw_curves(CURVES, tmp_path / "curves.png", title="AT")
    assert dict(matplotlib.rcParams) == before
    assert pyplot.get_fignums() == []


def write_log(run, version, rows):
    folder = run / "metrics" / f"version_{version}"
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text("epoch,step,train/ce,val/acc\n" + "".join(f"{row}\n" for row in rows))


def test_curves_are_read_from_the_csv_log(tmp_path):
    write_log(tmp_path, 0, ["0,0,2.5,", "0,20,1.5,", "0,20,,0.25"])
    assert read_curves(tmp_path) == {"train/ce": {0: 2.5, 20: 1.5}, "val/acc": {20: 0.25}}


def test_where_a_resumed_run_logged_again_the_later_counts(tmp_path):
    write_log(tmp_path, 2, ["1,20,1.25,", "1,40,1.0,"])
    write_log(tmp_path, 10, ["1,40,0.75,"])
    write_log(tmp_path, 0, ["0,0,2.5,", "0,20,1.5,"])
    assert read_curves(tmp_path) == {"train/ce": {0: 2.5, 20: 1.25, 40: 0.75}}


def test_a_run_without_a_log_has_no_curves(tmp_path):
    assert read_curves(tmp_path) == {}
