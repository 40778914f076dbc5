"""Log lines for people or as JSON, each with the id of the request it belongs to."""

import json
import logging
import re
import sys
import uuid
from contextvars import ContextVar
from datetime import UTC, datetime

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request that is served; ComputeThread carries it into its thread."""

_ACCEPTED_ID = re.compile(r"[\w.:/+=-]{1,128}", re.ASCII)

MOST_CAUSES = 8
"""Errors that are told of, one the cause of the next."""


def accept_request_id(offered: str | None) -> str:
    """The caller's id if it is fit for a log line, else a new one."""
    if offered and _ACCEPTED_ID.fullmatch(offered):
        return offered
    return uuid.uuid4().hex


def configure_logging(log_format: str, level: int = logging.INFO) -> None:
    """Sends every log record of the process to stderr as "text" or "json"."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_add_request_id)
    handler.setFormatter(JsonFormatter() if log_format == "json" else TextFormatter())
    logging.basicConfig(level=level, handlers=[handler], force=True)


class TextFormatter(logging.Formatter):
    """`2026-01-31 12:00:00 INFO services.rpc.calls [request id] message`."""

    def __init__(self) -> None:
        line = "%(asctime)s %(levelname)s %(name)s%(bracketed_id)s %(message)s"
        super().__init__(line, "%Y-%m-%d %H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        """One line, and a stack after it if there is one."""
        found = getattr(record, "request_id", "")
        record.bracketed_id = f" [{found}]" if found else ""
        return super().format(record)


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339), level, logger, message, request_id, stack."""

    def format(self, record: logging.LogRecord) -> str:
        """The record as JSON."""
        content = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            "request_id": getattr(record, "request_id", ""),
        }
        if record.exc_info:
            content["stack"] = self.formatException(record.exc_info)
        return json.dumps({key: value for key, value in content.items() if value}, ensure_ascii=False)


def without_text(error: BaseException, deep: int = MOST_CAUSES) -> BaseException:
    """What stands for a fault in the log: its type's name, stack, and so for what it came of `deep` times.

    Its text may hold what callers wrote, and is left out.
    """
    kind = type(error)
    names = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    bare: BaseException = type(kind.__name__, (Exception,), names)()
    before = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    bare.__context__ = None if before is None or not deep else without_text(before, deep - 1)
    return bare.with_traceback(error.__traceback__)


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = request_id.get()
    return True
