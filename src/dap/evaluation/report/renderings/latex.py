"""A table as LaTeX with the rules of the package booktabs."""

from __future__ import annotations

from collections.abc import Sequence

from dap.evaluation.report.cells import Block, Flat, flat

ESCAPES = {
    "\\": r"\textbackslash{}",
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "–": "--",
    "−": "$-$",
    "±": r"$\pm$",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "→": r"$\to$",
    "≠": r"$\ne$",
    "²": r"\textsuperscript{2}",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "λ": r"$\lambda$",
    "“": "``",
    "”": "''",
    "’": "'",
    "…": r"\ldots{}",
    "\u00a0": "~",
}
BOLD = "Bold: the 95 % interval of the difference to vanilla excludes 0."


def escaped(text: str) -> str:
    """Text that LaTeX sets as it is; what cannot be printed becomes a blank."""
    return "".join(ESCAPES.get(c, c if c.isprintable() else " ") for c in text)


def latex(title: str, blocks: Sequence[Block]) -> str:
    r"""One `table` environment for each block.

    No best value is set in bold: that a mean is the largest of a table does not show that it is larger than the second one.
    Bold are the differences to vanilla that are shown, and a line below says so.
    """
    return "\n\n".join(_table(title, block) for block in blocks if block.rows)


def _table(title: str, block: Block) -> str:
    columns = flat(block)
    width = len(columns)
    shown = any("shown" in css.split() for one in columns for css in one.css)
    notes = [BOLD] if shown else []
    notes += [f"Source: {source}." for source in block.sources]
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escaped(f'{title}: {block.title}' if block.title else title)}}}",
        rf"  \begin{{tabular}}{{{''.join('r' if one.column.numeric else 'l' for one in columns)}}}",
        r"    \toprule",
        f"    {_line([escaped(one.heading) for one in columns])}",
        r"    \midrule",
        *(f"    {_line([_text(one, i) for one in columns])}" for i in range(len(block.rows))),
        r"    \bottomrule",
        *(rf"    \multicolumn{{{width}}}{{l}}{{\footnotesize {escaped(note)}}} \\" for note in notes),
        r"  \end{tabular}",
        r"\end{table}",
    ]
    return "\n".join(lines)


def _text(one: Flat, row: int) -> str:
    text = escaped(one.texts[row])
    return rf"\textbf{{{text}}}" if "shown" in one.css[row].split() else text


def _line(cells: Sequence[str]) -> str:
    # Brackets at the start of a line would be taken for an option of the \\ before it.
    first, *others = cells
    return " & ".join([f"{{}}{first}" if first.startswith("[") else first, *others]) + r" \\"
