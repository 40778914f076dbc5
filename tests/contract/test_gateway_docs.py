"""docs/http.md against the gateway: its examples are sent and answered, its tables hold."""

import json
import re
from http import HTTPStatus
from pathlib import Path

import pytest
from gateway_server import client_of, options, wait_until
from prometheus_client.parser import text_string_to_metric_families

from services.gateway import problems, schemas
from services.gateway.metrics import HttpMetrics
from services.reward.service import reward_service
from services.rpc.background import serve_in_background

PAGE = (Path(__file__).parents[2] / "docs/http.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^###? (.+)\n((?:(?!##).*\n?)*)", PAGE, flags=re.MULTILINE))
ENDPOINTS = [heading for heading in SECTIONS if re.match(r"(GET|POST) /", heading)]


def examples(heading):
    return [
        json.loads(block) for block in re.findall(r"```json\n(.*?)```", SECTIONS[heading], flags=re.DOTALL)
    ]


def rows(heading):
    lines = [line for line in SECTIONS[heading].splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def shape(value):
    """What kind of JSON it is, whatever its values."""
    if isinstance(value, dict):
        return {key: shape(each) for key, each in value.items()}
    if isinstance(value, list):
        return [shape(each) for each in value]
    return (
        "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value).__name__
    )


@pytest.fixture(scope="module")
def http(tiny_reward):
    reward = serve_in_background(lambda: reward_service(options(tiny_reward)))
    with reward as server, client_of(server.address) as client:
        yield client


@pytest.mark.parametrize("heading", ENDPOINTS)
def test_an_example_is_answered_as_the_page_shows(http, heading):
    method, path = heading.split()
    *request, shown = examples(heading)
    answer = http.request(method, path, json=request[0] if request else None)
    assert answer.status_code == 200
    assert shape(answer.json()) == shape(shown)


def test_every_endpoint_is_on_the_page(http):
    described = http.get("/openapi.json").json()["paths"]
    operations = {"/healthz", "/readyz", "/metrics"}
    assert {heading.split()[1] for heading in ENDPOINTS} | {"/v2/rerank"} | operations == described.keys()
    assert all(path in PAGE for path in described)


def test_a_failure_is_as_the_page_shows(http):
    (shown,) = examples("Errors")
    documents = ["a", "b", "c", ""]
    answer = http.post("/v1/rerank", json={"query": "the film is", "documents": documents}).json()
    assert shape(answer) == shape(shown)
    assert {**answer, "request_id": ""} == {**shown, "request_id": ""}


def test_every_status_of_a_refusal_is_in_the_table():
    said = {int(status): set(re.findall(r"`(\w+)`", codes)) for status, codes, _ in rows("Errors")}
    for status, code in problems._STATUS.values():
        assert code in said[int(status)]
    assert all(HTTPStatus(status) >= 400 for status in said)


def test_the_options_are_those_that_there_are():
    said = {key.strip("`"): default.strip("`") for key, _, default in rows("Our own endpoints")}
    fields = schemas.Options.model_fields
    assert said.keys() == fields.keys()
    shown = {name: str(field.default).lower() for name, field in fields.items() if name != "model"}
    assert {name: default for name, default in said.items() if name != "model"} == shown


def test_the_metrics_are_those_that_there_are(http):
    http.post("/v1/score", json={"items": []})
    wait_until(lambda: 'http_route="/v1/score"' in http.get("/metrics").text)  # counted once answered
    said = {name.strip("`"): (kind, set(re.findall(r"`(\w+)`", labels)))
            for name, kind, labels, *_ in rows("Operations")}  # fmt: skip
    found = {}
    for family in text_string_to_metric_families(http.get("/metrics").text):
        if not family.name.startswith("process_"):
            labels = {label for sample in family.samples for label in sample.labels} - {"le"}
            name = family.name + ("_total" if family.type == "counter" else "")
            found[name] = (family.type, labels)
    assert found == said
    assert HttpMetrics().registry is not HttpMetrics().registry, "gateways of one process don't share any"
