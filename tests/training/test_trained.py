"""What `train` returns is a path that shows itself in a notebook."""

from bundle_mllm.data.files import write_json
from bundle_mllm.training.trained import TrainedModel

PART = {"hit_rate@1": 0.5, "hit_rate@1_se": 0.1, "mrr": 0.7, "mrr_se": 0.05}


def test_a_trained_model_is_a_path_with_the_figures_of_its_run(tmp_path):
    validations = [
        {
            "validation_hit_rate@1": rate,
            "validation_mrr": 0.6,
            "validation_log_likelihood": -1.0,
            "validation_num_questions": 200,
        }
        for rate in (0.3, 0.4)
    ]
    record = {"finished": True, "stage_two": validations, "both": {**PART, "num_questions": 200}}
    write_json(tmp_path / "run.json", record)
    model = TrainedModel(tmp_path)
    assert model == tmp_path and (model / "run.json").is_file() and f"{model}" == str(tmp_path)
    html = model._repr_html_()
    assert "<td>ranker, stage two</td><td>0.400</td><td>0.600</td><td>200</td>" in html
    assert "<td>both</td><td>0.500 ± 0.100</td><td>0.700 ± 0.050</td><td>200</td>" in html
    assert "retriever" not in html and "not finished" not in html
