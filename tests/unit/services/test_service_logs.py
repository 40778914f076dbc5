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


def chain(length):
    """An error that came of another, and so on."""
    error = ValueError("secret")
    for _ in range(length):
        try:
            raise error
        except ValueError:
            try:
                raise KeyError("secret")
            except KeyError as caught:
                error = ValueError("secret")
                error.__context__ = caught
    return error


def told_without_text(error):
    bare = logs.without_text(error)
    line = logs.JsonFormatter().format(record(exc_info=(type(bare), bare, bare.__traceback__)))
    return json.loads(line)["stack"]


def test_a_fault_is_told_by_stack_and_type_without_its_text():
    _, error, _ = failure()
    stack = told_without_text(error)
    assert "in failure" in stack and stack.endswith("\nValueError")
    assert str(error) == "bad", "it stays as it was"


def test_what_a_fault_came_of_is_told_so_too():
    stack = told_without_text(chain(2))
    assert stack.count("\nValueError") == 3 and stack.count("\nKeyError") == 2
    assert "secret" not in stack.replace('"secret"', "")


def test_what_is_hidden_stays_hidden():
    error = chain(1)
    error.__suppress_context__ = True
    assert "KeyError" not in told_without_text(error)


def test_a_fault_that_came_of_itself_has_an_end():
    first, second = ValueError("secret"), KeyError("secret")
    first.__cause__, second.__cause__ = second, first
    stack = told_without_text(first)
    assert "secret" not in stack and stack.count("ValueError") <= logs.MOST_CAUSES


def test_notes_and_classes_of_ones_own():
    class Odd(Exception):
        def __init__(self, one, two):
            super().__init__(one, two)

    error = Odd("secret", "secret")
    error.add_note("secret")
    assert told_without_text(error).endswith("Odd")
    assert "secret" not in told_without_text(error)


@pytest.mark.parametrize("offered", ["abc-123", "x" * 128, "trace:1/2.3+4=5"])
def test_a_fit_id_is_kept(offered):
    assert logs.accept_request_id(offered) == offered


@pytest.mark.parametrize("offered", [None, "", "x" * 129, "two words", "line\nbreak", "ü"])
def test_an_unfit_id_is_replaced(offered):
    made = logs.accept_request_id(offered)
    assert made != offered
    assert logs.accept_request_id(made) == made


@pytest.mark.usefixtures("root_logger")
def test_configure_logging_sends_json_to_stderr(capsys, in_request):
    logs.configure_logging("json")
    logging.getLogger("a.b").info("hello")
    logging.getLogger("a.b").debug("not this")
    captured = capsys.readouterr()
    assert captured.out == ""
    assert json.loads(captured.err)["request_id"] == "r-1"
