"""Pages of the documentation that are filled when it is built, and the numbers that they state."""

import math
import re
import xml.etree.ElementTree as ET

import pytest
import torch
from docs_hooks import DOCS, filled, hook

from fsr_lab.core.route import tempered
from fsr_lab.defense.masks import logistic_noise

METHOD = (DOCS / "method.md").read_text()


@pytest.fixture(scope="module")
def drawn():
    """Return {name: its SVG, parsed} of the figures in the method's page."""
    module = hook("method_page")
    figures = re.findall(r"<svg.*?</svg>", filled(module.on_page_content, "method.md"), re.DOTALL)
    return dict(zip(module.FIGURES, map(ET.fromstring, figures), strict=True))


def test_every_figure_of_the_method_is_drawn_and_told(drawn):
    assert all(len(svg.get("aria-label")) > 100 for svg in drawn.values())
    words = {name: " ".join("".join(each.itertext()) for each in svg.iter()) for name, svg in drawn.items()}
    for told in (
        "Separation Net S",
        "Recalibration Net R",
        "f⁺ = m f",
        "f⁻ = (1 − m) f",
        "f̃ = f⁺ + f̃⁻",
        "recalibration",
    ):
        assert told in words["overview"]
    assert "deployed" in words["gate"]
    assert "slope" in words["slope"]


def test_figures_have_the_readers_colours_and_no_others(drawn):
    css = (DOCS / "extra.css").read_text()
    themes = [set(re.findall(r"--[\w-]+(?=:)", part)) for part in css.split("[data-md-color-scheme")[:2]]
    assert themes[0] == themes[1]
    for svg in drawn.values():
        text = ET.tostring(svg, encoding="unicode")
        assert set(re.findall(r"var\((--[\w-]+)\)", text)) <= themes[0]
        assert not re.search(r"#[0-9a-f]{6}", text)


def test_a_place_that_is_missing_is_said():
    with pytest.raises(ValueError, match="needs one line <!-- figure: overview -->"):
        filled(hook("method_page").on_page_content, "method.md", "<p>nothing</p>")
    with pytest.raises(ValueError, match="put it where the checks go"):
        filled(hook("doctor_page").on_page_markdown, "doctor.md", "# The doctor")
    for name, call in (("method_page", "on_page_content"), ("doctor_page", "on_page_markdown")):
        assert filled(getattr(hook(name), call), "index.md", "another page") == "another page"


def test_the_numbers_of_the_method_are_those_of_the_code():
    def at(score, tau=0.1):
        score = torch.tensor(score, requires_grad=True)
        mask = tempered(score, tau)
        return mask.item(), torch.autograd.grad(mask, score)[0].item()

    assert "above 0.99 wherever |r| exceeds 0.46" in METHOD
    assert at(0.455)[0] < 0.99 < at(0.46)[0]
    assert at(-0.46)[0] < 0.01 < at(-0.455)[0]
    assert "which is 61 % at 0.46" in METHOD
    drawn = tempered(0.46 + logistic_noise(torch.empty(100_000)), 0.1)
    assert (drawn > 0.5).double().mean().item() == pytest.approx(1 / (1 + math.exp(-0.46)), abs=0.006)  # 4 errors
    assert round(1 / (1 + math.exp(-0.46)), 2) == 0.61
    assert "is 0.00045, where temperature 1 would give 0.2;" in METHOD
    assert (round(at(1.0)[1], 5), round(at(1.0, 1.0)[1], 1)) == (0.00045, 0.2)
    assert "from r = 1.8 on the" in METHOD.replace("\n", " ")
    assert at(1.8) == (1.0, 0.0)
    assert at(1.6)[1] > 0
