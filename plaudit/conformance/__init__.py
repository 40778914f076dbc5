"""A conformance run: whether a server keeps the promises of our RewardService contract.

It knows the server only by its address, so that others can write their own in any language and see that
it fits. Each check stands alone: one that fails says what was found instead, and the next one goes on.
"""

from collections.abc import Iterator

from plaudit.clients import PlauditError
from plaudit.conformance import agreeing, describing, scoring
from plaudit.conformance.subject import Subject
from plaudit.conformance.verdicts import Broken, Check, Finding, Skipped

__all__ = ["CHECKS", "Check", "Finding", "conformance"]

CHECKS: tuple[Check, ...] = (*describing.CHECKS, *scoring.CHECKS, *agreeing.CHECKS)


def conformance(address: str, model: str = "", timeout: float = 60.0) -> Iterator[Finding]:
    """The findings of all CHECKS, as they are made.

    `model` by its name on the server; the default one if empty. `timeout` in seconds for each call, of which
    those that fill the model's context have ten times as many.
    Raises Unavailable, Unauthenticated or another PlauditError if there is nothing to check.
    """
    with Subject(address, timeout=timeout) as subject:
        subject.model_name, subject.long_timeout = model, 10 * timeout
        subject.list_models()  # nobody there, or no token, is no finding
        for check in CHECKS:
            yield _finding(check, subject)


def _finding(check: Check, subject: Subject) -> Finding:
    try:
        check.look(subject)
    except Broken as broken:
        return Finding(check.name, check.expected, "fail", str(broken))
    except Skipped as skipped:
        return Finding(check.name, check.expected, "skip", str(skipped))
    except PlauditError as error:
        method = f"{error.where.method}: " if error.where else ""
        return Finding(check.name, check.expected, "fail", f"{method}{error.reason}")
    return Finding(check.name, check.expected, "pass", "")
