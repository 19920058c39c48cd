"""Figures as inline SVG: equal bytes for equal figures, and colours that follow the page's light or dark theme."""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape

import matplotlib
from cycler import cycler
from matplotlib.figure import Figure

INK, RULE = "#010203", "#040506"
SERIES = ("#0a0b01", "#0a0b02", "#0a0b03", "#0a0b04", "#0a0b05", "#0a0b06")
"""Colours that stand for the page's own, and are replaced by them: the style sheet says what they are."""

_THEME = {INK: "currentColor", RULE: "var(--rule)"} | {
    colour: f"var(--series-{place})" for place, colour in enumerate(SERIES, start=1)
}


@contextmanager
def themed() -> Iterator[None]:
    """Draw, within the block, in the page's colours."""
    with matplotlib.rc_context({
        "axes.edgecolor": INK, "axes.facecolor": "none", "axes.grid": True, "axes.labelcolor": INK,
        "axes.linewidth": 0.6, "axes.prop_cycle": cycler(color=SERIES), "axes.spines.right": False,
        "axes.spines.top": False, "axes.titlecolor": INK, "axes.titlesize": 11, "figure.facecolor": "none",
        "font.size": 11, "grid.color": RULE, "grid.linewidth": 0.6, "legend.fontsize": 10, "legend.frameon": False,
        "lines.linewidth": 1.6, "lines.markersize": 4, "savefig.facecolor": "none", "svg.fonttype": "none",
        "text.color": INK, "xtick.color": INK, "xtick.labelcolor": INK, "ytick.color": INK,
        "ytick.labelcolor": INK,
    }):  # fmt: skip
        yield


def inline_svg(figure: Figure, alt: str) -> str:
    """Return a figure, drawn in `themed`, as an SVG element that scales with the page.

    Args:
        figure: drawn.
        alt: what it shows, for those who do not see it.
    """
    buffer = io.StringIO()
    # an id may stand once on a page: shapes are called by what they are and whose they are
    with themed(), matplotlib.rc_context({"svg.hashsalt": alt}), warnings.catch_warnings():
        # the reader's browser sets the letters, in fonts that have more of them
        warnings.filterwarnings("ignore", "Glyph .* missing", UserWarning)
        figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->\s*", "", text, flags=re.DOTALL)  # each text once more, as a comment
    # groups are called axes_1 in every figure
    text = re.sub(r'<g id="[^"]*"', "<g", text)
    text = re.sub(r"(font: [\d.]+px) [^;\"]*", r"\1 system-ui, sans-serif", text)
    box = re.search(r'viewBox="[^"]*"', text)
    assert box is not None, "matplotlib writes the view box of every SVG"
    head = f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img"'
    text = re.sub(r"<svg[^>]*>", f'{head} aria-label="{escape(alt)}"><title>{escape(alt)}</title>', text, count=1)
    for colour, own in _THEME.items():
        text = text.replace(colour, own)
    return text
