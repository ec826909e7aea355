"""Notebooks of a study: the sources that come with rankdrift, told which study, and carried out."""

from __future__ import annotations

import tempfile
from importlib import resources
from pathlib import Path
from typing import Any

from rankdrift import files
from rankdrift.analysis.report.study import table_files
from rankdrift.errors import UserError, did_you_mean
from rankdrift.layout import StudyLayout

SECONDS = 600
"""Time for a cell."""


def notebooks() -> dict[str, str]:
    """Return the notebooks, by name: their jupytext sources."""
    folder = resources.files("rankdrift").joinpath("notebooks")
    found = {Path(file.name).stem: file for file in folder.iterdir() if file.name.endswith(".py")}
    return {name: found[name].read_text(encoding="utf-8") for name in sorted(found)}


def write_notebook(name: str, study: StudyLayout, output: Path, carry_out: bool = True) -> Path:
    """Write a notebook of a study; return its path, ``<output>/<name>.ipynb``.

    Parameters
    ----------
    name
        One of :func:`notebooks`.
    study
        The study; its tables are all that is read.
    output
        Folder of the notebook; its figures and tables are below ``<name>/``.
    carry_out
        Whether its cells are executed, so that it holds what they show.

    Raises
    ------
    UserError
        If there is no such notebook, the study lacks a table that it reads, a package is missing, or a cell
        fails; what was carried out until then is written.

    """
    known = notebooks()
    if name not in known:
        raise UserError(f"no notebook '{name}': {did_you_mean(name, known)}")
    nbformat, jupytext = _libraries()
    notebook = jupytext.reads(known[name], fmt="py:percent")
    _require_tables(name, study, notebook.metadata.pop("rankdrift")["tables"])
    _tell(notebook, {"STUDY": study.root.resolve(), "OUTPUT": (output / name).resolve()})
    path = output / f"{name}.ipynb"
    failure = _carried_out(notebook) if carry_out else ""
    files.write_text(path, nbformat.writes(notebook))
    if failure:
        raise UserError(
            f"{path}: a cell failed; the notebook holds what was carried out until then: {failure}"
        )
    return path


def _libraries() -> tuple[Any, Any]:
    try:
        import jupytext
        import nbclient  # noqa: F401
        import nbformat
    except ImportError as error:
        raise UserError(f"notebooks need {error.name}: pip install 'rankdrift[notebook]'") from None
    return nbformat, jupytext


def _require_tables(name: str, study: StudyLayout, needed: list[str]) -> None:
    there = {table.stem for table in table_files(study)}
    missing = [table for table in needed if table not in there]
    if missing:
        how = "deploy" if "deployment_benchmark_summary" in missing else "analyze --study"
        raise UserError(
            f"{study.tables}: {name} reads {', '.join(missing)}, which the study has not; run "
            f"'rankdrift {how} {study.root}' first"
        )


def _tell(notebook: Any, parameters: dict[str, Path]) -> None:
    """Fill in the cell with the tag ``parameters``."""
    cell = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ()))
    cell.source = "\n".join(f'{name} = r"{value}"' for name, value in parameters.items())


def _carried_out(notebook: Any) -> str:
    """Execute all cells in place; return what went wrong, in one line."""
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError

    # sockets that are files: no other user can reach them, as they could ports; the kernel leaves its files
    with tempfile.TemporaryDirectory(prefix="rankdrift-") as folder:
        connection = f"{folder}/kernel.json"
        kernel = AsyncKernelManager(kernel_name="python3", transport="ipc", connection_file=connection)
        try:
            NotebookClient(notebook, timeout=SECONDS, km=kernel).execute()
        except CellExecutionError as error:
            return f"{error.ename}: {error.evalue}"
        except (CellTimeoutError, DeadKernelError) as error:
            return str(error).splitlines()[0]
    return ""
