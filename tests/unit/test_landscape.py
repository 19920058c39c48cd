"""A sweep's picture: every number where it belongs."""

from matplotlib.figure import Figure
from PIL import Image

from fsr_lab.report import landscape
from fsr_lab.report.sweep import points, read_sweep
from fsr_lab.sweep.index import refresh
from fsr_lab.sweep.job import FINISHED, Job


def grid(tmp_path, **values):
    """Write a sweep's index: {overrides: robust accuracy}."""
    for number, (overrides, value) in enumerate(values.items()):
        job = Job(number=number, overrides=tuple(overrides.split())).begun()
        results = {} if value is None else {"test/robust_last": value}
        job.over(FINISHED, results=results).write(tmp_path / f"{number}")
    refresh(tmp_path, search=True)
    return tmp_path


def drawn(monkeypatch, folder):
    """Return the axes of the picture that a sweep gets."""
    figures = []
    original = landscape.save_figure

    def saving(figure: Figure, path):
        figures.append(figure)
        original(figure, path)

    monkeypatch.setattr(landscape, "save_figure", saving)
    path = landscape.draw_sweep(folder)
    with Image.open(path) as picture:
        assert picture.format == "PNG"
    return figures[0].axes[0]


def test_two_numbers_make_a_map(tmp_path, monkeypatch):
    folder = grid(
        tmp_path, **{"a=0 b=10": 0.1, "a=1 b=10": 0.2, "a=2 b=10": None, "a=0 b=2": 0.4, "a=1 b=2": 0.5, "a=2 b=2": 0.6}
    )
    axis = drawn(monkeypatch, folder)
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("a", "b")
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "1", "2"]
    assert [label.get_text() for label in axis.get_yticklabels()] == ["2", "10"]  # as numbers, not as texts
    cells = {text.get_position(): text.get_text() for text in axis.texts}
    assert cells == {(0, 0): "40.0", (1, 0): "50.0", (2, 0): "60.0", (0, 1): "10.0", (1, 1): "20.0"}


def test_one_number_makes_a_line_of_means_over_seeds(tmp_path, monkeypatch):
    folder = grid(tmp_path, **{"tau=5 seed=0": 0.5, "tau=5 seed=1": 0.7, "tau=0.1 seed=0": 0.1, "tau=0.1 seed=1": 0.2})
    axis = drawn(monkeypatch, folder)
    mean = axis.lines[0]
    assert [round(float(value), 9) for value in mean.get_ydata()] == [15.0, 60.0]
    assert [label.get_text() for label in axis.get_xticklabels()] == ["0.1", "5"]
    assert sorted(float(value) for line in axis.lines[1:] for value in line.get_ydata()) == [10.0, 20.0, 50.0, 70.0]


def test_what_is_not_one_or_two_numbers_has_no_picture(tmp_path):
    names = grid(tmp_path / "names", **{"defense=none": 0.1, "defense=fsr": 0.2})
    three = grid(tmp_path / "three", **{"a=0 b=0 c=0": 0.1, "a=1 b=1 c=1": 0.2})
    unknown = grid(tmp_path / "unknown", **{"a=0": None, "a=1": None})
    assert [landscape.draw_sweep(folder) for folder in (names, three, unknown, tmp_path)] == [None] * 4


def test_points_are_by_number_whatever_their_spelling(tmp_path):
    sweep = read_sweep(grid(tmp_path, **{"a=1.0": 0.1, "a=1": 0.3, "a=8/4": 0.2}))
    assert points(sweep, ("a",), "test/robust_last") == {(1.0,): [10.0, 30.0], (2.0,): [20.0]}
