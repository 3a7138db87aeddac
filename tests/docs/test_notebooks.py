"""The notebooks of `examples` run from their first cell to their last, in small."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from tiny_models import make_backbone, make_tokenizer

EXAMPLES = Path(__file__).parents[2] / "examples"
SMALL = {
    "complete_a_bundle": "num_bundles, steps = 60, 4",
    "shop_from_orders": "num_orders, steps = 200, 4",
    "finetune_a_language_model": (
        "num_bundles, num_questions, warm_start_steps, retriever_steps = 60, 16, 2, 4\nbase_model = 'BACKBONE'"
    ),
}


def test_every_notebook_is_run():
    assert {path.stem for path in EXAMPLES.glob("*.ipynb")} == set(SMALL)


@pytest.mark.slow
@pytest.mark.parametrize("name", SMALL)
def test_a_notebook_runs(name, tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.save_pretrained(tmp_path / "BACKBONE")
    make_backbone(max_position_embeddings=4096).save_pretrained(tmp_path / "BACKBONE")
    notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
    [parameters] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", ())]
    parameters.source += f"\n{SMALL[name]}"
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    last = notebook.cells[-1]
    assert last.outputs and not [each for each in last.outputs if each.output_type == "error"]
