"""The examples in the client's docstrings run as they stand, on real services."""

import contextlib
import doctest
import importlib
import pkgutil

import pytest

import plaudit.clients
from services.policy.service import policy_service
from services.reference.service import reference_service
from services.reward.service import reward_service
from services.rpc.background import serve_in_background
from services.rpc.command import ModelOptions

MODULES = [
    "plaudit",
    *(f"plaudit.clients.{module.name}" for module in pkgutil.iter_modules(plaudit.clients.__path__)),
]


@pytest.fixture(scope="module")
def addresses(tiny_policy, tiny_reward):
    """The address an example names → that of the service that runs."""
    policy, reward = (ModelOptions(str(folder), "cpu", "float32", 1) for folder in (tiny_policy, tiny_reward))
    services = {
        "127.0.0.1:50051": lambda: policy_service(policy),
        "127.0.0.1:50053": lambda: reference_service(policy),
        "127.0.0.1:50052": lambda: reward_service(reward),
    }
    with contextlib.ExitStack() as stack:
        yield {
            address: stack.enter_context(serve_in_background(make)).address
            for address, make in services.items()
        }


def with_examples(name):
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(name))
    return [test for test in found if test.examples]


EXAMPLES = [test for name in MODULES for test in with_examples(name)]


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name.removeprefix("plaudit.clients."))
def test_examples(test, addresses):
    for example in test.examples:
        for documented, running in addresses.items():
            example.source = example.source.replace(documented, running)
    report = []
    doctest.DocTestRunner().run(test, out=report.append, clear_globs=False)
    assert not report, "".join(report)


def test_every_service_has_an_example():
    documented = {test.name.split(".")[2] for test in EXAMPLES if test.name != "plaudit"}
    assert {"policy", "reference", "reward", "weights"} <= documented
