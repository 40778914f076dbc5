"""Addresses and options: what is refused, and with which words."""

from dataclasses import replace
from pathlib import Path

import pytest

from services.rpc.options import (
    OptionError,
    Security,
    ServerOptions,
    is_loopback,
    join_address,
    parse_address,
)

PEM = Path("any.pem")


def oidc(**given):
    return ServerOptions(security=Security(**given))


def keys(source):
    return oidc(oidc_issuer="i", oidc_audience="a", oidc_jwks=source)


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:0", "127.0.0.1", 0),
        ("localhost:50051", "localhost", 50051),
        ("[::1]:65535", "::1", 65535),
        ("0.0.0.0:80", "0.0.0.0", 80),
    ],
)
def test_addresses_go_there_and_back(address, host, port):
    assert parse_address(address) == (host, port)
    assert join_address(host, port) == address


@pytest.mark.parametrize("address", ["", "50051", ":50051", "host:", "host:http", "host:65536", "host:-1"])
def test_bad_addresses_name_the_option_and_the_form(address):
    with pytest.raises(OptionError, match=r"--metrics-address is .*; use HOST:PORT"):
        parse_address(address, "--metrics-address")


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "127.9.9.9", "::1"])
def test_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_not_loopback(host):
    assert not is_loopback(host)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ServerOptions(address="0.0.0.0:0"), "--address 0.0.0.0:0 can be reached .* --insecure"),
        (ServerOptions(metrics_address="0.0.0.0:0"), "--metrics-address 0.0.0.0:0 can be reached"),
        (
            ServerOptions(health_address="0.0.0.0:8081"),
            "--health-address 0.0.0.0:8081 can be reached .* use 127.0.0.1, or add --insecure",
        ),
        (
            ServerOptions(health_address="[::]:8081", token="t"),
            r"--health-address \[::\]:8081 can be reached",
        ),
        (ServerOptions(log_format="xml"), "--log-format is 'xml'; use text or json"),
        (ServerOptions(grace_s=-1), "--grace is -1; use 0"),
        (ServerOptions(token=" "), "PLAUDIT_TOKEN is set but empty"),
        (ServerOptions(token="t", token_file=PEM), "PLAUDIT_TOKEN and PLAUDIT_TOKEN_FILE are both set"),
        (ServerOptions(health_address="8081"), "--health-address is '8081'; use HOST:PORT"),
        (ServerOptions(security=Security(PEM)), "--tls-key is missing; .* go together"),
        (ServerOptions(security=Security(None, PEM)), "--tls-cert is missing; .* go together"),
        (ServerOptions(security=Security(tls_client_ca=PEM)), "--tls-client-ca needs --tls-cert"),
        (oidc(oidc_audience="a"), "--oidc-issuer is missing; .* go together"),
        (oidc(oidc_issuer="i", oidc_jwks="f"), "--oidc-audience is missing"),
        (oidc(oidc_issuer="i", oidc_audience="a"), "--oidc-jwks is missing"),
        (oidc(oidc_issuer="", oidc_audience="a", oidc_jwks="f"), "--oidc-issuer is ''; use 1 to 200"),
        (oidc(oidc_issuer="i", oidc_audience="a b", oidc_jwks="f"), "--oidc-audience is 'a b'"),
        (oidc(oidc_issuer="i", oidc_audience="a", oidc_jwks=""), "--oidc-jwks is ''"),
        (keys("http://example.org/keys"), "--oidc-jwks is 'http://example.org/keys'; use https or a file"),
        (keys("http://127.0.0.1.example.org/keys"), "use https or a file"),
        (keys("ftp://127.0.0.1/keys"), "use https or a file"),
        (keys("file:///etc/keys"), "should be https://HOST/PATH"),
        (keys("https:///keys"), "should be https://HOST/PATH"),
        (keys("https://me:secret@example.org/keys"), "without a password"),
        (keys("https://[::1/keys"), "--oidc-jwks is no URL"),
        (keys("https://example.org:port/keys"), "--oidc-jwks is no URL"),
        (
            ServerOptions("0.0.0.0:0", "9100", security=Security(PEM, PEM)),
            "^--metrics-address is '9100'; use HOST:PORT",
        ),
    ],
)
def test_what_cannot_work_is_refused(options, words):
    with pytest.raises(OptionError, match=words):
        options.check()


def test_insecure_and_loopback_pass():
    ServerOptions(address="0.0.0.0:0", metrics_address="0.0.0.0:0", insecure=True).check()
    ServerOptions(metrics_address="localhost:0", health_address="[::1]:0", token="t").check()
    plain = {"health_address": "0.0.0.0:0", "metrics_address": "0.0.0.0:0"}
    ServerOptions(**plain, insecure=True).check()
    secure = ServerOptions("0.0.0.0:0", **plain, security=Security(PEM, PEM, PEM))
    secure.check()
    replace(secure, metrics_plaintext=True).check()


def test_metrics_go_by_the_security_of_calls_unless_plaintext_is_asked_for():
    secure = ServerOptions(security=Security(PEM, PEM, PEM))
    assert secure.metrics_security == secure.security
    assert replace(secure, metrics_plaintext=True).metrics_security == Security()


def test_the_token_is_not_in_the_options_repr():
    assert "hush" not in repr(ServerOptions(token="hush"))


@pytest.mark.parametrize(
    "source", ["jwks.json", "/etc/keys", "https://example.org/keys", "http://127.0.0.1:1/k", "http://[::1]/k"]
)
def test_keys_of_jwts_come_from_a_file_by_https_or_from_this_machine(source):
    keys(source).check()


def test_a_password_in_a_url_is_not_repeated():
    with pytest.raises(OptionError) as caught:
        keys("https://me:secret@example.org/keys").check()
    assert "secret" not in str(caught.value)
