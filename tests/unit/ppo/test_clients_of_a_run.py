"""The clients of a run: what the environment says of tokens and TLS holds for them."""

import pytest
from pydantic import ValidationError

from trainer.errors import ConfigError
from trainer.ppo import preflight
from trainer.ppo.patience import Endpoint
from trainer.ppo.preflight import Clients
from trainer.ppo.run_sections import ServicesSection


def services(host, policy=None, **more):
    policy = policy or f"{host}:50051"
    return ServicesSection(policy=(policy,), reference=f"{host}:50053", reward=f"{host}:50052", **more)


@pytest.fixture
def opened(monkeypatch):
    """What a fleet of pods opens a replica with, without a cluster to look for them in."""
    made = []
    monkeypatch.setattr(preflight, "open_fleet", lambda policy, open_replica: made.append(open_replica))
    return made


def test_a_token_that_would_go_in_plaintext_is_a_wrong_configuration(monkeypatch):
    monkeypatch.setenv("PLAUDIT_TOKEN", "secret")
    monkeypatch.delenv("PLAUDIT_INSECURE", raising=False)
    with pytest.raises(ConfigError, match=r"services: token: would go to far.example.org:5005") as caught:
        Clients.open(services("far.example.org"))
    assert "PLAUDIT_INSECURE=1" in str(caught.value) and "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("key", "value"), [("PLAUDIT_INSECURE", "1"), ("PLAUDIT_INSECURE", "true"), ("PLAUDIT_TLS_CA", "ca.pem")]
)
def test_the_environment_may_say_that_it_is_right(monkeypatch, key, value):
    monkeypatch.setenv("PLAUDIT_TOKEN", "secret")
    monkeypatch.setenv(key, value)
    Clients.open(services("far.example.org")).close()


@pytest.mark.parametrize(
    ("policy", "name"),
    [
        ("kubernetes:///plaudit-policy:50051", "plaudit-policy"),
        ("kubernetes:///plaudit-policy.prod:50051", "plaudit-policy.prod"),
        ("127.0.0.1:50051", None),
    ],
)
def test_pods_show_the_certificate_of_their_service(opened, policy, name):
    Clients.open(services("127.0.0.1", policy))
    replica = opened[0](Endpoint("policy", "10.0.0.7:50051", "services.policy"))
    assert {replica._policy._tls_name, replica._weights._tls_name} == {name}
    replica.close()


@pytest.mark.parametrize("seconds", [None, 0.5])
def test_reference_and_reward_are_asked_twice_if_that_is_asked_for(seconds):
    clients = Clients.open(services("127.0.0.1", hedge_after=seconds))
    assert clients.reference._hedge_after == clients.reward._hedge_after == seconds
    clients.close()


def test_nothing_is_asked_twice_unless_asked_for():
    assert services("127.0.0.1").hedge_after is None


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), "soon"])
def test_a_second_call_comes_after_some_time(seconds):
    with pytest.raises(ValidationError, match="hedge_after"):
        services("127.0.0.1", hedge_after=seconds)


def test_a_resumed_run_may_hedge_otherwise():
    assert "hedge_after" in ServicesSection.volatile
