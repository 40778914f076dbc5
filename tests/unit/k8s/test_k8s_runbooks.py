"""Each alert has a page in docs/runbooks, and what the page tells to look at and to run is there."""

import re
import shlex
import subprocess

import pytest
import typer
import yaml
from kubernetes_tools import run
from manifests import K8S, ROOT, named, objects, of_kind
from test_k8s_deploy_page import open_ports
from test_k8s_queries import as_file, asked, exported, recorded, rules

from plaudit.cli import app

FOLDER = ROOT / "docs/runbooks"
PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted(FOLDER.glob("*.md"))}
ALERTS = {rule["alert"]: rule for group in rules() for rule in group["rules"] if "alert" in rule}
INDEX = "README"
OURS = re.compile(r"(?:plaudit|grpc_server|http_server|process)_[a-z0-9_]+")
KINDS = {"deployment": "Deployment", "service": "Service", "job": "Job", "pvc": "PersistentVolumeClaim"}


def fenced(page, language):
    """Lines of the blocks of a language."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGES[page], re.MULTILINE | re.DOTALL)
    return [line for block in blocks for line in block.splitlines()]


def commands():
    return [(page, line) for page in PAGES for line in fenced(page, "bash")]


def test_every_alert_has_a_page_and_every_page_an_alert():
    assert PAGES.keys() - {INDEX} == ALERTS.keys()


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_names_its_page_and_the_page_says_how_bad_it_is(alert):
    path = ALERTS[alert]["annotations"]["runbook"]
    assert path == f"docs/runbooks/{alert}.md" and (ROOT / path).exists()
    severity = ALERTS[alert]["labels"]["severity"].capitalize()
    assert PAGES[alert].startswith(f"# {alert}\n\n{severity}. ")
    headings = re.findall(r"^## (.*)$", PAGES[alert], re.MULTILINE)
    assert headings == ["What to look at", "What to do", "How it clears"]
    assert fenced(alert, "promql"), "something to look at"


@pytest.mark.parametrize("page", PAGES)
def test_queries_and_metrics_of_a_page_are_exported(page):
    known = exported().keys() | recorded()
    for query in fenced(page, "promql"):
        names, labels = asked(query)
        assert names and names <= known, query
        assert labels <= {"le", "namespace", "pod", "app_kubernetes_io_component"}.union(
            *(exported().get(name, ()) for name in names)
        ), query
    prose = re.sub(r"^```.*?^```$", "", PAGES[page], flags=re.MULTILINE | re.DOTALL)
    assert {name for name in re.findall(r"`([^`]+)`", prose) if OURS.fullmatch(name)} <= known


def test_promtool_takes_every_query(tmp_path):
    queries = [query for page in PAGES for query in fenced(page, "promql")]
    found = [{"record": f"page:{index}", "expr": each} for index, each in enumerate(queries)]
    assert "SUCCESS" in run(
        "promtool", "check", "rules", as_file(tmp_path, [{"name": "pages", "rules": found}])
    )


@pytest.mark.parametrize("command", [line for _, line in commands() if line.startswith("plaudit ")])
def test_the_plaudit_command_knows_what_a_page_says(command):
    _, *words = shlex.split(command)
    known = typer.main.get_command(app)
    while words and words[0] in getattr(known, "commands", {}):
        known = known.commands[words.pop(0)]
    assert known.name != "plaudit"
    known.make_context("it", words)


def test_every_command_is_one_that_is_held_to_something():
    assert {line.split()[0] for _, line in commands()} == {"kubectl", "plaudit", "curl", "export"}


@pytest.mark.parametrize("command", [line for _, line in commands() if line.startswith("kubectl ")])
def test_objects_and_ports_of_a_page_are_there(command):
    assert command.startswith("kubectl -n plaudit ")
    for kind, name in re.findall(rf"\b({'|'.join(KINDS)})[/ ](plaudit-[\w-]+)", command):
        each = named(objects("production"), KINDS[kind], name)
        if "port-forward" in command:
            assert int(command.split()[-1]) in open_ports(each)
    for component in re.findall(r"-l app.kubernetes.io/component=(\S+)", command):
        labels = (each["metadata"]["labels"] for each in of_kind(objects("production"), "Job", "Deployment"))
        assert component in {each["app.kubernetes.io/component"] for each in labels}


def test_runbooks_can_be_made_links():
    """By the line that docs/deploy.md gives."""
    page = (ROOT / "docs/deploy.md").read_text(encoding="utf-8")
    (expression,) = re.findall(r"\| sed '([^']+runbook_url[^']+)'", page)
    text = (K8S / "components/monitoring/rules.yaml").read_text(encoding="utf-8")
    done = subprocess.run(["sed", expression], input=text, capture_output=True, text=True, check=True)
    linked = [rule for group in yaml.safe_load(done.stdout)["spec"]["groups"] for rule in group["rules"]]
    for rule in linked:
        if "alert" in rule:
            url = rule["annotations"]["runbook_url"]
            assert re.fullmatch(rf"https://git\.example\.com/\S+/docs/runbooks/{rule['alert']}\.md", url)
