"""LaTeX tables for booktabs, and what letters are called there."""

import re
from collections.abc import Container, Sequence

PREAMBLE = "% \\usepackage{booktabs}\n"

SYMBOLS = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"$<$", ">": r"$>$", "|": r"$|$", "±": r"$\pm$",
    "−": r"$-$", "×": r"$\times$", "∧": r"$\wedge$", "†": r"$^\dagger$", "𝒩": r"$\mathcal{N}$", "⁺": r"$^+$",
    "⁻": r"$^-$", "λ": r"$\lambda$", "τ": r"$\tau$", "γ": r"$\gamma$", "ε": r"$\varepsilon$", "–": "--", "’": "'",
}  # fmt: skip
TILDE = "\u0303"


def latex_table(
    headings: Sequence[str], lines: Sequence[Sequence[str]], caption: str, *, texts: Container[str] = ()
) -> str:
    """Return rows of plain cells as a table.

    Args:
        headings: of the columns.
        lines: cells.
        caption: under the table.
        texts: headings of columns of words; the others are of numbers.
    """
    columns = "".join("l" if heading in texts else "r" for heading in headings)
    rows = [r"\midrule", *[f"{' & '.join(map(escaped, cells))} \\\\" for cells in lines]]
    return booktabs(headings, columns, rows, caption)


def booktabs(headings: Sequence[str], columns: str, rows: Sequence[str], caption: str) -> str:
    """Return a table of rows that are LaTeX already.

    Args:
        headings: plain.
        columns: of the tabular, such as "lrr".
        rows: with their rules between them.
        caption: plain; a paragraph's end would end the caption.
    """
    told = escaped(" ".join(caption.split()))
    top = [r"\begin{table}", r"\centering\small", rf"\begin{{tabular}}{{{columns}}}", r"\toprule"]
    end = [r"\bottomrule", r"\end{tabular}", rf"\caption{{{told}}}", r"\end{table}", ""]
    return "\n".join([*top, f"{' & '.join(map(escaped, headings))} \\\\", *rows, *end])


def escaped(text: str) -> str:
    """Return a text as LaTeX shows it; a letter with a tilde above it is set in mathematics."""
    text = re.sub(f"(.){TILDE}", r"⟦\1⟧", text)
    found = "".join(SYMBOLS.get(letter, letter) for letter in text)
    found = re.sub(r"⟦(.)⟧", r"$\\tilde{\1}$", found)
    rest = [letter for letter in found if ord(letter) > 127]
    return found if not rest else found.encode("ascii", "replace").decode()
