"""Notebooks: each runs from top to bottom on one thread, and what is stored in the file is complete, small and free of machine paths."""
import json
import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from test_rl import base, call                                      # noqa: F401  (base is a fixture)
from nanokimi.long2short import METHODS

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
MACHINE_PATH = re.compile(r"(?<![\w.])/(tmp|work|home|root|Users|usr|opt|var)/|[A-Z]:\\")


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """What a cell put out, in order: printed text counts once, however it was split into pieces."""
    found = [output.get("name") or next((kind for kind in ("image/png", "text/html") if kind in output.get("data", {})), output.output_type)
             for output in cell.outputs]
    return [kind for i, kind in enumerate(found) if i == 0 or kind == "image/png" or kind != found[i - 1]]


def texts(cell):
    """Everything a reader can see of a cell but its pictures."""
    yield cell.source
    for output in cell.get("outputs", ()):
        yield output.get("text", "")
        yield from (str(value) for kind, value in output.get("data", {}).items() if not kind.startswith("image/"))


def test_there_are_notebooks():
    assert NOTEBOOKS, f"no notebook in {FOLDER.name}/"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_stored_notebook(path):
    assert path.stat().st_size < 1_000_000, f"{path.name} is {path.stat().st_size:,} bytes: use fewer or smaller figures"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1)), "not run once, from top to bottom, in a fresh kernel"
    found = [kind for cell in cells for kind in kinds(cell)]
    assert "image/png" in found and "stdout" in found, "the file holds no outputs: run it and save it"
    assert not {"error", "stderr"} & set(found), "the file holds an error or a warning"
    for number, cell in enumerate(notebook.cells):
        for text in texts(cell):
            assert not MACHINE_PATH.search(text), f"cell {number} names a path of the machine it ran on: {MACHINE_PATH.search(text)}"


@pytest.fixture(scope="module")
def run(base, tmp_path_factory):                                    # noqa: F811
    """Every stage that a notebook opens, at micro size and untrained: two iterations of RL, copies of the start, a log of two rows."""
    folder = tmp_path_factory.mktemp("notebooks") / "micro"
    with pytest.MonkeyPatch.context() as patch:
        call(patch, base, "rl", "--iterations", "2")
    shutil.copytree(base, folder)
    for stage in ("pretrain", "long", "brief", *(f"l2s-{method}" for method in METHODS)):
        shutil.copytree(base / "sft", folder / stage)
    load = {kind: [[3.0, 1.0, 2.0, 2.0]] for kind in ("text", "image", "video")}
    rows = [{"stage": "pretrain", "step": step, "loss": 6.0, "max_logit": 1.0, "clip_rate": 0.0, "load": load} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_runs(path, run, monkeypatch):
    """At micro size: what is printed is nonsense, but every cell runs and puts out as many pictures and as much text as in the stored file."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1"), monkeypatch.setenv("NANOKIMI_RUN", str(run)), monkeypatch.setenv("NANOKIMI_PROBLEMS", "4")
    notebook = nbformat.read(path, as_version=4)
    stored = [kinds(cell) for cell in code_cells(notebook)]
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()     # raises at a cell's error
    assert [kinds(cell) for cell in code_cells(notebook)] == stored, "the stored outputs are stale: run the notebook and save it"
