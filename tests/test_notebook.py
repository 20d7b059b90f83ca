"""In a real Jupyter kernel: the variable counts whenever it is set before a model is built, however the kernel was started."""

import json
import os
import sys
from pathlib import Path

import pytest

nbclient = pytest.importorskip("nbclient")
nbformat = pytest.importorskip("nbformat")

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "examples" / "notebook.ipynb"


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Run cells in a new kernel of this interpreter; gives the text that each of them showed."""
    kernels = tmp_path / "share" / "jupyter" / "kernels" / "python3"
    kernels.mkdir(parents=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernels / "kernel.json").write_text(json.dumps({"argv": argv, "display_name": "here", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))

    def run(notebook) -> list[str]:
        here = dict(os.environ)
        nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3").execute()
        assert dict(os.environ) == here
        return [
            "".join(
                output.get("text") or output.get("data", {}).get("text/plain", "") for output in cell.get("outputs", ())
            )
            for cell in notebook.cells
        ]

    return run


def cells(*sources: str):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(source) for source in sources])


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_examples_notebook(run):
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace('"num_inference_steps": 24', '"num_inference_steps": 8')
    shown = run(notebook)
    assert "TeaCache" not in shown[2], "plain"
    assert "TeaCache: skipped 4 of 8 steps (2x, flux2-klein-base-demo" in shown[4]
    assert shown[6].splitlines()[-1].endswith("TeaCache 2x on flux2-klein-base-demo, 4 of 8 steps skipped")
    assert shown[7].strip() == "4 of 8 steps skipped"
    for index in (2, 4):
        assert any("image/png" in output.get("data", {}) for output in notebook.cells[index].outputs)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_kernel_waits_for_mflux_by_itself_and_reads_the_variable_late(run):
    shown = run(
        cells(
            "import mflux",
            "from mflux_teacache_plugin import _startup\nprint(_startup.state()['why'])",
            "import os\nos.environ['MFLUX_TEACACHE'] = '2x'",
            "from mflux_demo_model import load\nfrom mflux_teacache_plugin.apply import handle_of\n"
            "print(handle_of(load()))",
        )
    )
    assert "ipykernel_launcher is running" in shown[1]
    assert "TeaCache 2x on flux2-klein-base-demo, 0 of 0 steps skipped" in shown[3]
