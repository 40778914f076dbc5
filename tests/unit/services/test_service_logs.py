"""Log lines carry the request id, as text and as JSON."""

import json
import logging

import pytest

from services.rpc import logs


@pytest.fixture
def in_request():
    token = logs.request_id.set("r-1")
    yield
    logs.request_id.reset(token)


def record(**changes):
    base = {"name": "n", "levelname": "INFO", "msg": "%d items", "args": (3,)}
    made = logging.makeLogRecord({**base, **changes})
    assert logs._add_request_id(made)
    return made


def failure():
    try:
        raise ValueError("bad")
    except ValueError as error:
        return (type(error), error, error.__traceback__)


def test_text_line_has_the_id_in_brackets(in_request):
    assert logs.TextFormatter().format(record()).endswith("INFO n [r-1] 3 items")


def test_text_line_outside_a_request_has_no_brackets():
    assert logs.TextFormatter().format(record()).endswith("INFO n 3 items")


def test_json_line(in_request):
    line = logs.JsonFormatter().format(record(created=0.0, msg="ü %d"))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.000+00:00",
        "level": "INFO",
        "logger": "n",
        "message": "ü 3",
        "request_id": "r-1",
    }


def test_json_line_holds_the_stack_in_one_line():
    line = logs.JsonFormatter().format(record(exc_info=failure()))
    assert "\n" not in line
    content = json.loads(line)
    assert "ValueError: bad" in content["stack"]
    assert "request_id" not in content


@pytest.mark.parametrize("offered", ["abc-123", "x" * 128, "trace:1/2.3+4=5"])
def test_a_fit_id_is_kept(offered):
    assert logs.accept_request_id(offered) == offered


@pytest.mark.parametrize("offered", [None, "", "x" * 129, "two words", "line\nbreak", "ü"])
def test_an_unfit_id_is_replaced(offered):
    made = logs.accept_request_id(offered)
    assert made != offered
    assert logs.accept_request_id(made) == made


def test_configure_logging_sends_json_to_stderr(capsys, in_request):
    before = logging.root.handlers[:], logging.root.level
    try:
        logs.configure_logging("json")
        logging.getLogger("a.b").info("hello")
        logging.getLogger("a.b").debug("not this")
    finally:
        logging.root.handlers[:], logging.root.level = before
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["request_id"] == "r-1"
