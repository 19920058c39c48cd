"""A report's page in a browser: what is sorted, what fits a phone, light and dark, and that nothing is asked for."""

import re
import shutil
import subprocess

import numpy as np
import pytest
from PIL import Image
from records import kept, made_analysis, made_artefact, made_curves, made_record, made_samples, rates

from fsr_lab.report.artefact_page import write_artefact

pytestmark = pytest.mark.chromium

# no name resolves and no address answers: a page that asks for anything has an error to show
OFFLINE = ("--host-resolver-rules=MAP * ~NOTFOUND", "--proxy-server=127.0.0.1:9")
LIGHT, DARK = (f"--blink-settings=preferredColorScheme={scheme}" for scheme in (1, 0))


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """Return a page with a table, plots, images and an analysis."""
    folder = made_artefact(tmp_path_factory.mktemp("experiments") / "table0")
    for name, experiment, worst in (("AT", "table0/at", 60), ("AT+FSR", "table0/at_fsr", 40)):
        run = kept(folder, "cpu", experiment)
        made_record(rates(80, worst), name=f"{name} (last)").save(run / "records", "last")
        made_record(rates(81, worst + 9), name=f"{name} (best)").save(run / "records", "best")
        made_curves(run)
        made_samples(run / "samples.npz")
    with (folder / "manifest.yaml").open("a") as stream:
        stream.write("analyses:\n  - {name: AT+FSR, experiment: table0/at_fsr, kind: attention}\n")
    made_analysis("attention").save(run / "analyses", "attention")
    assert write_artefact(folder)[2] == []
    return folder / "page.html"


def chromium(page, *options, width=1280, height=2000):
    """Open a page, and return what the browser printed."""
    browser = shutil.which("chromium")
    assert browser, "no chromium; make test-pages installs it"
    done = subprocess.run(
        [browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", *OFFLINE,
         f"--window-size={width},{height}", *options, f"file://{page}"],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


def asked(page, tmp_path, script, **options):
    """Return what an expression says in the page, by a copy that ends with it."""
    copy = tmp_path / "page.html"
    text = page.read_text().replace("</body>", f"<script>document.title = String({script});</script></body>")
    copy.write_text(text)
    return re.search(r"<title>(.*?)</title>", chromium(copy, "--dump-dom", **options), re.DOTALL)[1]


def picture(page, tmp_path, *options, **size):
    path = tmp_path / "shot.png"
    chromium(page, f"--screenshot={path}", *options, **size)
    with Image.open(path) as image:
        return np.asarray(image.convert("L"), dtype=float)


NAMES = "[...document.querySelectorAll('.numbers tbody th')].map((each) => each.firstChild.textContent.trim()).join()"
CLICK = "document.querySelectorAll('.numbers thead button')[2].click()"  # PGD-20


@pytest.mark.parametrize(
    ("clicks", "names"),
    [(0, "AT,AT,AT+FSR,AT+FSR"), (1, "AT+FSR,AT+FSR,AT,AT"), (2, "AT,AT,AT+FSR,AT+FSR"), (3, "AT,AT,AT+FSR,AT+FSR")],
)
def test_a_click_sorts_a_column(page, tmp_path, clicks, names):
    said = asked(page, tmp_path, f"([{', '.join([CLICK] * clicks)}], {NAMES})")
    assert said == names
    values = "[...document.querySelectorAll('.numbers tbody tr')].map((row) => row.cells[2].dataset.value).join()"
    wanted = {0: "60.0,69.0,40.0,49.0", 1: "40.0,49.0,60.0,69.0", 2: "69.0,60.0,49.0,40.0", 3: "60.0,69.0,40.0,49.0"}
    assert asked(page, tmp_path, f"([{', '.join([CLICK] * clicks)}], {values})") == wanted[clicks]


@pytest.mark.parametrize("width", [1280, 500])
def test_nothing_hangs_over_the_edge(page, tmp_path, width):
    said = asked(page, tmp_path, "document.documentElement.scrollWidth - innerWidth", width=width)
    assert int(said) <= 0


def test_the_first_column_stays_while_a_phone_scrolls(page, tmp_path):
    script = (
        "(() => { const box = document.querySelector('.grid .scroll'); box.scrollLeft = 200;"
        " const head = box.querySelector('tbody th').getBoundingClientRect();"
        " return [box.scrollLeft > 0, Math.abs(head.left - box.getBoundingClientRect().left) < 3]; })()"
    )
    assert asked(page, tmp_path, script, width=500) == "true,true"


def test_light_and_dark_are_what_the_reader_prefers(page, tmp_path):
    light, dark = picture(page, tmp_path, LIGHT), picture(page, tmp_path, DARK)
    assert np.median(light) > 230
    assert np.median(dark) < 40


def test_a_plots_lines_can_be_seen_in_both(page, tmp_path):
    colours = "[...document.querySelectorAll('.plots svg path')].map((each) => getComputedStyle(each).stroke)"
    seen = "new Set(" + colours + ".filter((each) => each.startsWith('rgb'))).size > 3"
    assert asked(page, tmp_path, seen) == "true"
    assert asked(page, tmp_path, "document.querySelector('.plots svg').getBoundingClientRect().height > 150") == "true"


def test_it_asks_for_nothing_and_breaks_nothing(page, tmp_path):
    script = (
        "performance.getEntriesByType('resource').filter((each) => !each.name.startsWith('data:')).length"
        " + [...document.images].filter((each) => !each.complete || !each.naturalWidth).length"
    )
    assert asked(page, tmp_path, script) == "0"
