"""Callers of the gateway, whose errors are those of the gRPC clients."""

import random
import time
from functools import partial
from operator import eq

import httpx

from plaudit import DeadlineExceeded, ItemFailure, Overloaded, PlauditError, Unavailable
from soak.load import DEADLINE_S, ITEMS, Kind

PROMPT, CANDIDATES = "the film is", [" good", " dull", " a wonderful performance"]
HEADER = "x-timeout-seconds"


class HttpCaller:
    """Asks one gateway at HOST:PORT. A context manager; safe to use from several threads."""

    def __init__(self, address, timeout):
        self._timeout = timeout
        self.http = httpx.Client(base_url=f"http://{address}", timeout=timeout)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.http.close()

    def ask(self, path, body, timeout=None):
        """The answer's JSON. Raises PlauditError."""
        headers = {HEADER: f"{timeout or self._timeout:.3f}"}
        try:
            answer = self.http.post(path, json=body, headers=headers)
        except httpx.TimeoutException as error:
            raise DeadlineExceeded(repr(error)) from error
        except httpx.TransportError as error:
            raise Unavailable(repr(error)) from error
        if not answer.is_success:
            raise error_of(answer.json())
        return answer.json()

    def ask_until_let_in(self, path, body):
        """The same within the deadline, and coming back when a full service says so, as the gRPC clients do.

        Raises PlauditError; of one that was refused and then not answered in time, the refusal.
        """
        end, refusal = time.monotonic() + self._timeout, None
        while True:
            try:
                return self.ask(path, body, end - time.monotonic())
            except DeadlineExceeded:
                if refusal is None:
                    raise
                raise refusal from None
            except Overloaded as error:
                refusal, pause = error, error.retry_after * random.uniform(1, 2)
                if time.monotonic() + pause >= end:
                    raise
                time.sleep(pause)

    def probe(self):
        """What Kubernetes does. Raises Unavailable unless the gateway, and what is behind it, is ready."""
        try:
            ready = self.http.get("/readyz").is_success
        except httpx.TransportError as error:
            raise Unavailable(repr(error)) from error
        if not ready:
            raise Unavailable("not ready")


def error_of(problem):
    """The PlauditError that a problem stands for."""
    error = PlauditError.of_item(ItemFailure(problem["code"], problem["detail"]))
    error.retry_after = problem.get("retry_after_seconds")
    return error


def as_json(items):
    """Pairs as /v1/score has them."""
    return [{"prompt": prompt, "response": response} for prompt, response in items]


def http_callers(address, stack, expected):
    """One Kind of each request; the caller ends with `stack`. `expected` are the rewards of ITEMS."""
    caller = stack.enter_context(HttpCaller(address, DEADLINE_S))
    same = {"deterministic": True}

    def score():
        answer = caller.ask("/v1/score", {"items": as_json(ITEMS), **same})
        return [value(result) for result in answer["results"]]

    def rank():
        answer = caller.ask("/v1/rank", {"prompt": PROMPT, "candidates": CANDIDATES, **same})
        return [(each["index"], each["reward"]) for each in answer["ranked"]], answer["unranked"]

    def compare():
        body = {"prompt": PROMPT, "first": CANDIDATES[0], "second": CANDIDATES[1], **same}
        return caller.ask("/v1/compare", body)["probability"]

    def bad():
        caller.ask("/v1/score", {"items": as_json([("", "")]), "all_or_nothing": True})

    return [
        Kind("HTTP score", score, check=partial(eq, expected)),
        Kind("HTTP rank", rank),
        Kind("HTTP compare", compare),
        Kind("HTTP score, wrong on purpose", bad, check=lambda _: False, is_bad=True),
    ]


def value(result):
    """The reward of an item. Raises PlauditError for one that has none."""
    if "error" in result:
        raise error_of({"code": result["error"]["code"], "detail": result["error"]["message"]})
    return result["reward"]
