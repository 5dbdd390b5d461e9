"""The manual's notebook, run by a real kernel on the small study."""

import json
import os
import sys
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from seedscope.app.settings import TEMPLATES
from support.studies import ENSEMBLE

NOTEBOOK = TEMPLATES / "manual" / "study.ipynb"
WIDGET = "application/vnd.jupyter.widget-view+json"


@pytest.fixture(scope="module")
def run(study_root: Path) -> nbformat.NotebookNode:
    """The notebook with what its cells gave."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    manager = AsyncKernelManager(kernel_name="python3")
    # This interpreter, whatever kernels are installed on the machine.
    manager.kernel_spec.argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    client = NotebookClient(notebook, km=manager, timeout=120)
    environment = os.environ | {"SEEDSCOPE_ROOT": str(study_root)}
    return client.execute(env=environment, cleanup_kc=True)


def given(cell: nbformat.NotebookNode, kind: str) -> str | None:
    found = [output["data"][kind] for output in cell["outputs"] if kind in output.get("data", {})]
    return found[-1] if found else None


def test_the_repository_holds_no_outputs():
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert all(not cell.get("outputs") and cell.get("execution_count") is None for cell in cells)
    nbformat.validate(nbformat.read(NOTEBOOK, as_version=4))


@pytest.mark.slow
def test_every_cell_runs_and_shows_what_it_says(run):
    code = [cell for cell in run["cells"] if cell["cell_type"] == "code"]
    assert all(output["output_type"] != "error" for cell in code for output in cell["outputs"])
    assert all(output.get("name") != "stderr" for cell in code for output in cell["outputs"])
    pages = [given(cell, "text/html") for cell in code]
    assert [page for page in pages if page and 'class="strip stable"' in page]
    assert len([page for page in pages if page and 'class="seedscope"' in page and ENSEMBLE in page]) == 3
    (table,) = (json.loads(json.dumps(view)) for cell in code if (view := given(cell, WIDGET)))
    states = run["metadata"]["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    assert states[table["model_id"]]["state"]["bucket"] == "unstable"
    mine, theirs = map(float, given(code[-1], "text/plain").strip("()").split(","))
    assert mine == pytest.approx(theirs, abs=1e-5)
