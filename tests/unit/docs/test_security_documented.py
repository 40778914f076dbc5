"""docs/security.md against the code: options, environment, keys, scopes, and its example."""

import inspect
import re
from importlib.util import find_spec
from pathlib import Path

import pytest
import typer
from doc_pages import DOCS, codes, fences, rows, sections

import plaudit
import services.reward.__main__ as reward_main
import trainer.__main__ as trainer_main
from plaudit.access import SCOPES, token_digest
from plaudit.clients.channel import Connection
from services.gateway import command as gateway_command
from services.gateway.access import ROUTES
from services.rpc import arguments, command
from services.rpc.metrics import REFUSALS, SECURITY_FILES
from services.rpc.scopes import METHODS, OPEN
from services.rpc.tokens import _KEYS, parse_tokens

PAGE = (DOCS / "security.md").read_text(encoding="utf-8")
PARTS = sections(PAGE)
METRICS = (DOCS / "metrics.md").read_text(encoding="utf-8")


def server_options():
    """Option → (its other spellings, environment keys) of a server's command line."""
    app = typer.Typer()
    app.command()(command._command(0, lambda options: pytest.fail("only parsed"), ""))
    return {
        name: parameter
        for parameter in typer.main.get_command(app).params
        for name in (*parameter.opts, *parameter.secondary_opts)
    }


def test_options_and_their_environment():
    known = server_options()
    for option, environment, _ in rows(PARTS["Security"]):
        if not option:
            assert codes(environment)[0] in ("PLAUDIT_TOKEN", "PLAUDIT_TOKEN_FILE")
            continue
        (name,) = codes(option)
        said = codes(environment)
        assert said == ([known[name].envvar] if known[name].envvar else []), name


def test_every_shared_option_is_in_the_table():
    shared = {
        option
        for alias in vars(arguments).values()
        for each in getattr(alias, "__metadata__", ())
        for option in each.param_decls
    }
    assert shared <= {codes(option)[0] for option, *_ in rows(PARTS["Security"]) if option}


def test_every_environment_key_is_read_somewhere():
    source = "".join(
        Path(find_spec(name).origin).read_text(encoding="utf-8")
        for name in (
            *("services.rpc.command", "services.rpc.arguments"),
            *("plaudit.clients.channel", "plaudit.clients.token"),
        )
    )
    tls = Path(find_spec("plaudit.clients.tls").origin).read_text(encoding="utf-8")
    for key in set(re.findall(r"PLAUDIT_[A-Z_]+", PAGE)):
        assert key in source or (key.startswith("PLAUDIT_TLS_") and "PLAUDIT_TLS_{name}" in tls), key


def test_who_takes_roots():
    """By the name and the key that the page says."""
    stage = typer.main.get_command(trainer_main.build_app()).commands["sft"]
    (option,) = (each for each in stage.params if "--roots" in each.opts)
    for row, taken in zip(rows(PARTS["Paths in configurations"]), (option, reward_main.ROOTS), strict=True):
        assert codes(row[1]) == [f"{taken.opts[0]} {taken.metavar}"]
        assert codes(row[2]) == [taken.envvar]


def test_keys_of_the_tokens_file():
    assert {codes(key)[0] for key, _ in rows(PARTS["Tokens"])} == set(_KEYS)


def test_the_example_is_a_tokens_file():
    (example,) = fences(PAGE, "toml")
    tokens = parse_tokens(example.encode(), "docs/security.md")
    assert {identity.name for identity in tokens.by_digest.values()} == {"alice"}
    assert {identity.name for identity in tokens.by_certificate.values()} == {"trainer"}
    assert token_digest("") not in example


def test_the_table_of_scopes_is_the_servers_own():
    said = {}
    for scope, service, methods in rows(PARTS["Scopes"]):
        name = codes(scope)[0] if codes(scope) else OPEN
        service = codes(service)[0]
        every = METHODS[service] if methods == "all" else codes(methods)
        said.setdefault(service, {}).update(dict.fromkeys(every, name))
    assert said == METHODS
    assert {codes(row[0])[0] for row in rows(PARTS["Scopes"]) if codes(row[0])} == set(SCOPES)


def test_the_table_of_paths_is_the_gateways_own():
    said = {}
    for scope, paths in rows(PARTS["The HTTP gateway"]):
        said |= dict.fromkeys(codes(paths), codes(scope)[0] if codes(scope) else OPEN)
    assert said == ROUTES


def test_the_gateway_has_the_options_of_all_but_reflection():
    app = typer.Typer()
    app.command()(gateway_command._main)
    known = {name for each in typer.main.get_command(app).params for name in each.opts}
    said = {codes(option)[0] for option, *_ in rows(PARTS["Security"]) if option}
    assert said - known == {"--no-reflection"}


def test_a_stage_has_the_options_of_all_but_texts_in_the_log():
    stage = typer.main.get_command(trainer_main.build_app()).commands["ppo"]
    known = {name for each in stage.params for name in (*each.opts, *each.secondary_opts)}
    said = {codes(option)[0] for option, *_ in rows(PARTS["Security"]) if option}
    assert said - known == {"--log-texts"}


def test_arguments_of_clients():
    known = inspect.signature(Connection.__init__).parameters
    said = {codes(argument)[0] for argument, *_ in rows(PARTS["Clients"])[:7]}
    assert said <= known.keys()
    assert {name for name in known if name.startswith(("tls_", "token"))} <= said


def test_exceptions_of_clients():
    for name, _ in rows(PARTS["Clients"])[7:]:
        assert issubclass(getattr(plaudit, codes(name)[0]), plaudit.PlauditError)


def test_reasons_and_files_are_in_the_table_of_metrics():
    (row,) = [line for line in METRICS.splitlines() if "plaudit_calls_refused_total" in line]
    assert set(REFUSALS) <= set(codes(row))
    (row,) = [line for line in METRICS.splitlines() if "plaudit_security_file_good" in line]
    assert set(SECURITY_FILES) <= set(codes(row))
