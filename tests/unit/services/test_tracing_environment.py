"""What OpenTelemetry's environment variables make of a process, with a real OTLP endpoint over HTTP."""

import contextlib
import http.server
import logging
import threading
import time

import pytest
from opentelemetry import trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tracers import untraced_afterwards

from services.rpc import tracing
from services.rpc.metrics import release
from services.rpc.tracing import traced
from trainer.tracing import span


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes what OTLP exporters send."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.heard.append((self.path, ExportTraceServiceRequest.FromString(body)))
        self.server.answer.wait(20)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def collector():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Collector) as server:
        server.daemon_threads = True
        server.heard, server.answer = [], threading.Event()
        server.answer.set()
        server.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.answer.set()
        server.shutdown()


@pytest.fixture
def environment(monkeypatch, caplog):
    """environment(**variables) traces a block as they say."""
    caplog.set_level(logging.INFO)

    @contextlib.contextmanager
    def start(**variables):
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with untraced_afterwards(), traced("reward"):
            yield

    return start


@pytest.fixture(autouse=True)
def nothing_asked_for(monkeypatch):
    for name in (tracing.EXPORTER, tracing.DISABLED, *tracing.ENDPOINTS, *tracing.PROTOCOLS):
        monkeypatch.delenv(name, raising=False)


def is_traced():
    return not isinstance(trace.get_tracer_provider(), trace.ProxyTracerProvider)


def lines(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "services.rpc.tracing"]


def resource_of(request):
    (of_process,) = request.resource_spans
    return {each.key: each.value.string_value for each in of_process.resource.attributes}


def test_spans_reach_a_collector_before_the_process_ends(collector, environment, caplog):
    with environment(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url):
        assert is_traced()
        with span("work", step=3):
            pass
        assert not collector.heard  # they go in batches
    ((path, request),) = collector.heard
    assert path == "/v1/traces"
    (spans,) = (scope.spans for scope in request.resource_spans[0].scope_spans)
    assert [each.name for each in spans] == ["work"]
    about = resource_of(request)
    assert (about["service.name"], about["service.version"]) == ("plaudit-reward", release())
    assert about["service.instance.id"]
    assert lines(caplog) == [f"traces go to {collector.url}, by OTEL_EXPORTER_OTLP_ENDPOINT"]


def test_the_environment_has_the_last_word_on_names(collector, environment):
    with (
        environment(
            OTEL_EXPORTER_OTLP_TRACES_ENDPOINT=f"{collector.url}/v1/traces",
            OTEL_RESOURCE_ATTRIBUTES="service.version=8,team=search",
            OTEL_SERVICE_NAME="scores",
        ),
        span("work"),
    ):
        pass
    about = resource_of(collector.heard[0][1])
    assert (about["service.name"], about["service.version"], about["team"]) == ("scores", "8", "search")


def test_an_exporter_can_be_named(environment, caplog):
    with environment(OTEL_TRACES_EXPORTER="console"):
        assert is_traced()
    assert lines(caplog) == ["traces go to console, by OTEL_TRACES_EXPORTER"]


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": ""},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318", "OTEL_SDK_DISABLED": "TRUE"},
    ],
)
def test_nothing_is_traced_unless_it_is_asked_for(environment, caplog, variables):
    with environment(**variables):
        assert not is_traced()
        assert tracing.interceptors() == []
    assert lines(caplog) == []


@pytest.mark.parametrize(
    ("variables", "missing"),
    [
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4317", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"},
            "otlp_proto_grpc",
        ),
        ({"OTEL_TRACES_EXPORTER": "zipkin"}, "zipkin"),
    ],
)
def test_a_package_that_is_missing_is_named_in_one_line(environment, caplog, variables, missing):
    with environment(**variables):
        assert not is_traced()
    (line,) = lines(caplog)
    assert "is set, but nothing is traced" in line and missing in line and "pip install" in line


def test_a_collector_that_does_not_answer_holds_nobody_up(collector, environment, monkeypatch):
    monkeypatch.setattr(tracing, "FLUSH_S", 0.2)
    collector.answer.clear()
    began = time.monotonic()
    with environment(OTEL_EXPORTER_OTLP_ENDPOINT=collector.url), span("work"):
        pass
    assert time.monotonic() - began < 5
    assert collector.heard
