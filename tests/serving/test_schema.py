"""Random requests that the service's schema allows, and others: each gets an answer that the schema has."""

import os
import shutil

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode

from bundle_mllm.serving.app import create_app
from bundle_mllm.serving.served_model import ServedModel
from bundle_mllm.serving.settings import ServiceSettings

pytestmark = pytest.mark.slow

KEY = "0123456789abcdef"
HEADERS = {"Authorization": f"Bearer {KEY}"}
EXAMPLES = int(os.environ.get("RANDOM_REQUESTS", "5"))


@pytest.fixture(scope="module")
def schema(both_once, tmp_path_factory):
    folder = tmp_path_factory.mktemp("schema")
    model = shutil.copytree(both_once, folder / "model")
    app = create_app(ServiceSettings(model, log=folder / "log.jsonl"), ServedModel(model), KEY)
    made = schemathesis.openapi.from_asgi("/openapi.json", app)
    made.config.checks.positive_data_acceptance.enabled = False  # random ids name no items, so they are refused, too
    rejection = made.config.checks.negative_data_rejection
    rejection.expected_statuses = [*rejection.expected_statuses, "413"]
    return made


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_request_gets_an_answer_of_the_schema(schema, mode):
    operations = [result.ok() for result in schema.get_all_operations()]
    assert len(operations) == 9
    for operation in operations:

        @settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy(generation_mode=mode))
        def check(case):
            case.call_and_validate(headers=HEADERS)

        if mode is GenerationMode.POSITIVE or operation.body or operation.query or operation.path_parameters:
            check()
