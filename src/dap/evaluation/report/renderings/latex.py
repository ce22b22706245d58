"""A table as LaTeX with the rules of the package booktabs; graphicx makes a wide one as wide as the text."""

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
SHRUNK = r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}"
"""Makes what is wider than the text as wide as the text; needs the package graphicx."""

WIDEST = 10
"""A table of more columns is split in two."""

BOLD = "Bold: the 95 % interval of the difference excludes 0."


def escaped(text: str) -> str:
    """Text that LaTeX sets as it is; what cannot be printed becomes a blank."""
    return "".join(ESCAPES.get(c, c if c.isprintable() else " ") for c in text)


def latex(title: str, blocks: Sequence[Block]) -> str:
    r"""A `table` environment for each block, or two where a block has more than `WIDEST` columns.

    No best value is set in bold: that a mean is the largest of a table does not show that it is larger than the second one.
    Bold are the differences that are shown, and a line below says so.
    """
    tables = []
    for block in blocks:
        if not block.rows:
            continue
        caption = f"{title}: {block.title}" if block.title else title
        tables += [_table(caption, columns, block) for columns in _split(flat(block))]
    return "\n\n".join(tables)


def _split(columns: list[Flat]) -> list[list[Flat]]:
    """The columns, or those that a narrow terminal leaves out or moves last, and the others, both with the row's names."""
    later = [one for one in columns if one.column.apart or (one.column.spare or 0) > 4]
    if len(columns) <= WIDEST or not later:
        return [columns]
    names = [one for i, one in enumerate(columns) if i == 0 or one.column.names]
    return [[one for one in columns if one not in later], [*names, *later]]


def _table(caption: str, columns: Sequence[Flat], block: Block) -> str:
    shown = any("shown" in css.split() for one in columns for css in one.css)
    notes = [BOLD, *block.marks] if shown else []
    notes += [f"Source: {source}." for source in block.sources]
    lines = [
        r"\begin{table}",
        r"  \centering",
        rf"  \caption{{{escaped(caption)}}}",
        rf"  {SHRUNK}{{\begin{{tabular}}{{{''.join('r' if one.column.numeric else 'l' for one in columns)}}}",
        r"    \toprule",
        f"    {_line([escaped(one.heading) for one in columns])}",
        r"    \midrule",
        *(f"    {_line([_text(one, i) for one in columns])}" for i in range(len(block.rows))),
        r"    \bottomrule",
        r"  \end{tabular}}",
        *(rf"  \par\smallskip{{\footnotesize {escaped(note)}}}" for note in notes),
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
