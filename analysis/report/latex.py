"""The report's tables as LaTeX: one ``.tex`` file each, with booktabs' rules, and one that shows them all."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rankdrift import files
from rankdrift.analysis.report.grids import Grid
from rankdrift.analysis.report.study import Study
from rankdrift.analysis.report.summary import last_checkpoint_grid, last_checkpoint_note
from rankdrift.analysis.report.topics import anchor_of, topics

LETTERS = {
    **dict(zip("αβγδ", ["alpha", "beta", "gamma", "delta"], strict=True)),
    **dict(zip("εκλμ", ["epsilon", "kappa", "lambda", "mu"], strict=True)),
    **dict(zip("ρσφΔΣΓΛ", ["rho", "sigma", "varphi", "Delta", "Sigma", "Gamma", "Lambda"], strict=True)),
}
SPECIAL: dict[str, str | int | None] = {
    **{character: f"\\{character}" for character in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"$<$",
    ">": r"$>$",
    "|": r"$|$",
    "±": r"$\pm$",
    "–": "--",  # noqa: RUF001 - the dash of what was not measured
    "²": r"$^2$",
    "ᵀ": r"$^\top$",
    "‖": r"$\|$",
    "·": r"$\cdot$",
    "×": r"$\times$",  # noqa: RUF001
    "→": r"$\to$",
    "√": r"$\surd$",
    **{letter: rf"$\{name}$" for letter, name in LETTERS.items()},
}
"""What LaTeX reads as something else, and what it has no letter for, as every engine of it knows it."""
WHOLE = r"""\documentclass[a4paper,landscape]{article}
\usepackage[T1]{fontenc}
\usepackage[margin=2cm]{geometry}
\usepackage{booktabs,adjustbox}
\setlength{\belowcaptionskip}{1ex}
\begin{document}
%s
\end{document}
"""


def write_latex(study: Study, folder: Path) -> list[Path]:
    """Write every table of the report, and ``all.tex`` that typesets them all; return the files."""
    written = []
    for name, caption, grid in _tables(study):
        file = folder / f"{name}.tex"
        files.write_text(file, as_latex(grid, caption, f"tab:{name}"))
        written.append(file)
    inputs = "\n".join(rf"\input{{{file.stem}}}\clearpage" for file in written)
    files.write_text(folder / "all.tex", WHOLE % inputs)
    return [*written, folder / "all.tex"]


def as_latex(grid: Grid, caption: str, label: str) -> str:
    """Return a table of text as a LaTeX float, no wider than the text (package adjustbox)."""
    lines = [" & ".join(map(escaped, row)) + r" \\" for row in (grid.headers, *grid.rows)]
    alignment = "l" + "r" * (len(grid.headers) - 1)
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{escaped(caption)}}}",
            rf"\label{{{label}}}",
            r"\begin{adjustbox}{max width=\textwidth}",
            rf"\begin{{tabular}}{{{alignment}}}",
            r"\toprule",
            lines[0],
            r"\midrule",
            *lines[1:],
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{adjustbox}",
            r"\end{table}",
            "",
        ]
    )


def escaped(text: str) -> str:
    r"""Return text as LaTeX typesets it.

    >>> print(escaped("a_b: 5 % ± 1"))
    a\_b: 5 \% $\pm$ 1
    """
    return text.translate(str.maketrans(SPECIAL))


def _tables(study: Study) -> Iterator[tuple[str, str, Grid]]:
    """Yield name, caption and content of what the report shows as tables."""
    yield "last-checkpoints", f"Last checkpoints. {last_checkpoint_note(study)}", last_checkpoint_grid(study)
    for topic in topics(study):
        grids = [part for part in topic.parts if isinstance(part, Grid) and part.rows]
        for number, grid in enumerate(grids, start=1):
            name = anchor_of(topic.title) + (f"-{number}" if len(grids) > 1 else "")
            yield name, f"{topic.title}. {grid.caption}".strip(), grid
