"""Command lines, environment, ports and probes are those that the programs know."""

import ast
import importlib.util
from pathlib import Path

import models as film_review_models
import pytest
import typer
from manifests import (
    COMPONENT,
    SCENES,
    command,
    containers,
    named,
    objects,
    of_kind,
    ports,
    reference,
    templates,
)

import trainer.__main__ as trainer_main
from services.gateway import app as gateway_app, command as gateway_command
from services.policy.service import FULL_NAMES as POLICY
from services.reference.service import FULL_NAME as REFERENCE
from services.reward import oip
from services.reward.service import FULL_NAME as REWARD
from services.rpc import command as service_command
from services.rpc.options import Security, ServerOptions
from trainer.servicer import FULL_NAME as TRAINER

FULL_NAMES = {
    "services.policy": POLICY,
    "services.reward": (REWARD, oip.FULL_NAME),
    "services.reference": (REFERENCE,),
    "trainer": (TRAINER,),
}
READ_BY = {  # environment key → where it is read
    "PLAUDIT_TOKEN_FILE": "services.rpc.command",
    "PLAUDIT_OIDC_ISSUER": "services.rpc.arguments",
    "PLAUDIT_OIDC_AUDIENCE": "services.rpc.arguments",
    "PLAUDIT_OIDC_JWKS": "services.rpc.arguments",
    "PLAUDIT_ROOTS": "services.rpc.arguments",
    "PLAUDIT_INSECURE": "plaudit.clients.channel",
    "PLAUDIT_TLS_CA": "plaudit.clients.tls",
    "HF_HOME": "huggingface_hub.constants",
    "HF_HUB_OFFLINE": "huggingface_hub.constants",
    "MPLCONFIGDIR": "matplotlib",
    "TORCHINDUCTOR_CACHE_DIR": "torch._inductor.runtime.cache_dir_utils",
    "OMP_WAIT_POLICY": "services.rpc.command",
    "OTEL_EXPORTER_OTLP_ENDPOINT": "services.rpc.tracing",
    "RANK": "torch.distributed.rendezvous",
    "WORLD_SIZE": "torch.distributed.rendezvous",
    "MASTER_ADDR": "torch.distributed.rendezvous",
    "MASTER_PORT": "torch.distributed.rendezvous",
}
OF_OTHERS = {
    *("HOME", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "OMP_NUM_THREADS", "PIP_INDEX_URL"),
    *("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "VLLM_CACHE_ROOT", "VLLM_NO_USAGE_STATS"),
}
"""Read by the system and its C library, OpenMP, pip, oneDNN, and vLLM, which isn't installed here."""


@pytest.fixture(params=SCENES)
def found(request):
    return objects(request.param)


def module(container):
    """ "services.policy" of `python -m services.policy …`."""
    words = command(container)
    return words[words.index("-m") + 1] if "-m" in words else ""


def service_app(name):
    return service_command._command(0, lambda options: pytest.fail("only parsed"), "")


COMMANDS = {
    ("python", "-m", "services.policy"): service_app,
    ("python", "-m", "services.reward"): service_app,
    ("python", "-m", "services.reference"): service_app,
    ("python", "-m", "services.gateway"): lambda name: gateway_command._main,
    ("python", "examples/film-reviews/models.py"): lambda name: film_review_models.main,
}
TRAINER_COMMANDS = (("python", "-m", "trainer"), ("torchrun", "--module", "trainer"))


def parsed(words):
    """Values by parameter, as the program's own command line reads them. Raises click's UsageError."""
    for start, build in COMMANDS.items():
        if tuple(words[: len(start)]) == start:
            app = typer.Typer(add_completion=False)
            app.command()(build(start[-1]))
            return typer.main.get_command(app).make_context("it", list(words[len(start) :])).params
    for start in TRAINER_COMMANDS:
        if tuple(words[: len(start)]) == start:
            stage, *arguments = words[len(start) :]
            group = typer.main.get_command(trainer_main.build_app())
            return group.commands[stage].make_context("it", arguments).params
    return pytest.fail(f"{words}: no program of ours")


def programs(found):
    """Command lines of all containers of ours, by the object's name; shell lines left out."""
    for name, template in templates(found):
        for container in template["spec"]["containers"]:
            if command(container):
                yield name, command(container)
    for each in of_kind(found, "TrainJob"):
        yield reference(each), command(each["spec"]["trainer"])


def test_every_flag_is_one_that_the_program_reads(found):
    for _, words in programs(found):
        parsed(words)


def test_a_flag_that_is_none_would_be_found():
    with pytest.raises(Exception, match="No such option"):
        parsed(["python", "-m", "services.reward", "--model=x", "--metrics-adress=0.0.0.0:1"])


def test_servers_accept_their_options_and_listen_for_the_cluster(found):
    for name, words in programs(found):
        values = parsed(words)
        if "address" in values:
            ServerOptions(
                values["address"],
                values.get("metrics_address"),
                values["insecure"],
                log_format=values.get("log_format", "text"),
                security=Security(*(values[key] and Path(values[key]) for key in ("tls_cert", "tls_key"))),
                health_address=values["health_address"],
            ).check()
            assert values["address"].startswith("0.0.0.0:"), name


def test_every_environment_key_is_one_that_something_reads(found):
    keys = {
        key
        for each in of_kind(found, "ConfigMap")
        if "environment" in each["metadata"]["name"]
        for key in each["data"]
    }
    for _, template in templates(found):
        keys |= {each["name"] for container in containers(template) for each in container.get("env", ())}
    assert keys <= READ_BY.keys() | OF_OTHERS


@pytest.mark.parametrize("key", READ_BY)
def test_what_reads_an_environment_key_reads_it(key):
    spec = importlib.util.find_spec(READ_BY[key])
    tree = ast.parse(Path(spec.origin).read_text(encoding="utf-8"))
    texts = {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)}
    made = {f"PLAUDIT_TLS_{name}" for name in texts if "PLAUDIT_TLS_" in texts}  # by an f-string
    assert key in texts | made


# --- ports, probes


def test_ports_are_those_that_the_program_listens_on(found):
    for name, template in templates(found):
        for container in template["spec"]["containers"]:
            if not command(container):
                continue
            values = parsed(command(container))
            names = ("address", "metrics_address", "health_address")
            addresses = (values[name] for name in names if values.get(name))
            listening = {address.rpartition(":")[2] for address in addresses}
            open_ports = (port for port in container.get("ports", ()) if port["name"] != "rendezvous")
            named_ports = {str(port["containerPort"]) for port in open_ports}
            assert named_ports == listening, name


def test_a_ports_name_says_what_it_speaks(found):
    for name, template in templates(found):
        component = template["metadata"]["labels"][COMPONENT]
        expected = {"gateway": {"http", "metrics"}, "models": set()}.get(component, {"grpc", "metrics"})
        if of_kind(found, "Certificate") and expected:
            expected = {*expected, "health"}
        assert ports(template).keys() - {"rendezvous"} == expected, name


def probes(container):
    return {kind: each for kind, each in container.items() if kind.endswith("Probe")}


def test_grpc_probes_ask_for_a_health_service_that_the_server_has(found):
    for name, template in templates(found):
        for container in template["spec"]["containers"]:
            for kind, probe in probes(container).items():
                if "grpc" not in probe:
                    continue
                known = ports(template)  # the kubelet speaks no TLS
                assert probe["grpc"]["port"] == known.get("health", known["grpc"]), name
                expected = ("",) if kind == "livenessProbe" else FULL_NAMES[module(container) or "trainer"]
                assert probe["grpc"]["service"] in expected, name


def test_http_probes_ask_for_a_path_that_the_gateway_has(found):
    paths = {route.path for route in gateway_app.operations.routes}
    gateway = named(found, "Deployment", "plaudit-gateway")["spec"]["template"]
    (container,) = gateway["spec"]["containers"]
    for kind, probe in probes(container).items():
        assert probe["httpGet"]["path"] in paths
        assert probe["httpGet"]["port"] == ("health" if "health" in ports(gateway) else "http")
        assert (probe["httpGet"]["path"] == "/readyz") is (kind == "readinessProbe")


def test_servers_have_all_three_probes_with_time_to_answer(found):
    for each in of_kind(found, "Deployment"):
        (container,) = each["spec"]["template"]["spec"]["containers"]
        assert probes(container).keys() == {"startupProbe", "livenessProbe", "readinessProbe"}
        for kind in ("livenessProbe", "readinessProbe"):  # a busy machine answers late
            assert container[kind]["timeoutSeconds"] >= 5
        assert container["livenessProbe"]["failureThreshold"] >= 6
