"""Alerts, dashboards and autoscalers ask for metrics and labels that are exported."""

import importlib.util
import json
import re
import shutil
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from kubernetes_tools import run
from manifests import K8S, ROOT, named, objects, of_kind

from services.gateway.app import ROUTERS, operations
from services.gateway.metrics import SECONDS
from trainer.metrics import TABLES, prometheus_name

OF_SCRAPING = {"namespace", "pod", "app_kubernetes_io_component", "le"}
"""Labels that Prometheus and the PodMonitor add, and the bucket's."""
OF_THE_KUBELET = {
    name: {"persistentvolumeclaim"}
    for name in ("kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes")
}
ALERTS = [Path(__file__).with_name(name) for name in ("alerts.yaml", "alerts_of_hours.yaml")]
WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "bool", "offset"}


def load_dashboards():
    spec = importlib.util.spec_from_file_location("dashboards", K8S / "dashboards.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["dashboards"] = module
    spec.loader.exec_module(module)
    return module


dashboards = load_dashboards()


def rules():
    return named(objects("base+monitoring"), "PrometheusRule", "plaudit")["spec"]["groups"]


def scalers():
    return [
        trigger["metadata"]["query"]
        for each in of_kind(objects("production"), "ScaledObject")
        for trigger in each["spec"]["triggers"]
    ]


def recorded():
    return {rule["record"] for group in rules() for rule in group["rules"] if "record" in rule}


@cache
def exported():
    """Name → labels of every series that the pages document, which other tests hold against real scrapes."""
    found = dict(OF_THE_KUBELET)
    pages = [(ROOT / "docs" / name).read_text(encoding="utf-8") for name in ("metrics.md", "http.md")]
    for line in "\n".join(pages).splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        name = re.fullmatch(r"`([a-z_]+)`", cells[0])
        if name and len(cells) == 5:
            found |= series(name[1], cells[1], set(re.findall(r"`(\w+)`", cells[2])))
    for metric in TABLES["ppo"]:
        name = prometheus_name("ppo", metric.name)
        found[name + ("_total" if metric.kind == "counter" else "")] = set()
    return found


def series(name, kind, labels):
    """A histogram is exported as three."""
    if kind != "histogram":
        return {name: labels}
    return {f"{name}_{part}": labels for part in ("bucket", "sum", "count")}


def asked(query):
    """(names, labels) in a query."""
    bare = re.sub(r'"[^"]*"', '""', query)
    labels = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"\"", bare))
    for group in re.findall(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)", bare):
        labels |= {label.strip() for label in group.split(",")}
    bare = re.sub(r"\{[^}]*\}|\[[^\]]*\]|\b(?:by|without|on|ignoring)\s*\([^)]*\)", " ", bare)
    names = set(re.findall(r"\b[a-z_][a-z0-9_:]*\b(?!\s*\()", bare)) - WORDS
    return {name for name in names if not name.isdecimal()}, labels - {""}


def queries():
    alerts = [rule["expr"] for group in rules() for rule in group["rules"]]
    return {"rules": alerts, "dashboards": dashboards.queries(), "scalers": scalers()}


@pytest.mark.parametrize("where", ["rules", "dashboards", "scalers"])
def test_queries_name_what_is_exported(where):
    for query in queries()[where]:
        names, labels = asked(query)
        ours = names - recorded()
        assert names and ours <= exported().keys(), query
        known = set().union(OF_SCRAPING, *(exported()[name] for name in ours))
        if names <= recorded():
            known |= {"grpc_service"}
        assert labels <= known, query


def test_a_metric_that_is_none_would_be_found():
    names, labels = asked(
        'sum by (pod) (rate(grpc_server_handled_total{grpc_kode="OK"}[5m])) / on (pod) up > 0.5'
    )
    assert names == {"grpc_server_handled_total", "up"}
    assert labels == {"pod", "grpc_kode"}


def test_every_recorded_series_is_asked_for():
    text = " ".join(queries()["rules"])
    assert all(name in text for name in recorded())


def test_the_bound_of_the_latency_objective_is_a_bucket():
    bounds = {float(bound) for query in queries()["rules"] for bound in re.findall(r'le="([^"]+)"', query)}
    assert bounds and bounds <= set(SECONDS)


def test_rules_of_the_gateway_look_at_every_route_that_scores_and_at_no_other():
    (taken,) = {each for query in queries()["rules"] for each in re.findall(r'http_route=~"([^"]+)"', query)}
    assert all(re.fullmatch(taken, route.path) for router in ROUTERS for route in router.routes)
    others = {route.path for route in operations.routes} | {"", "/docs", "/openapi.json"}
    assert not any(re.fullmatch(taken, path) for path in others)


def test_every_stage_of_the_recipe_has_the_metrics_of_progress():
    assert {"step", "last_step_timestamp_seconds"} <= {metric.name for metric in TABLES["ppo"]}


def as_file(tmp_path, groups):
    path = tmp_path / "rules.yaml"
    path.write_text(yaml.safe_dump({"groups": groups}))
    return path


def test_promtool_takes_the_rules(tmp_path):
    assert "SUCCESS" in run("promtool", "check", "rules", "--lint-fatal", as_file(tmp_path, rules()))


def test_promtool_takes_the_queries_of_dashboards_and_scalers(tmp_path):
    found = [*dashboards.queries(), *scalers()]
    written = [query.replace("$__rate_interval", "5m").replace("$namespace", "plaudit") for query in found]
    group = {
        "name": "queries",
        "rules": [{"record": f"query:{index}", "expr": each} for index, each in enumerate(written)],
    }
    assert "SUCCESS" in run("promtool", "check", "rules", as_file(tmp_path, [group]))


def test_alerts_fire_when_they_should_and_not_before(tmp_path):
    as_file(tmp_path, rules())
    run("promtool", "test", "rules", *(shutil.copy(path, tmp_path) for path in ALERTS))


def test_every_alert_is_tried():
    tests = [test for path in ALERTS for test in yaml.safe_load(path.read_text(encoding="utf-8"))["tests"]]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    known = {rule["alert"] for group in rules() for rule in group["rules"] if "alert" in rule}
    assert {case["alertname"] for case in cases if case["exp_alerts"]} == known, "raised"
    assert {case["alertname"] for case in cases if not case["exp_alerts"]} == known, "silent"


def test_every_alert_says_how_bad_it_is_and_what_it_means():
    for group in rules():
        for rule in group["rules"]:
            if "alert" in rule:
                assert rule["labels"]["severity"] in ("critical", "warning")
                assert rule["annotations"]["summary"].endswith("."), rule["alert"]


@pytest.mark.parametrize("name", dashboards.DASHBOARDS)
def test_dashboards_are_what_the_code_says(name):
    committed = (dashboards.FOLDER / f"{name}.json").read_text(encoding="utf-8")
    assert committed == dashboards.render(name), "run: python k8s/dashboards.py"


@pytest.mark.parametrize("name", dashboards.DASHBOARDS)
def test_dashboards_are_found_by_grafana(name):
    board = json.loads(dashboards.render(name))
    assert board["uid"] == f"plaudit-{name}" and board["title"]
    panels = [each for each in board["panels"] if each["type"] != "row"]
    assert len({(each["gridPos"]["x"], each["gridPos"]["y"]) for each in panels}) == len(panels)
    assert all(each["datasource"]["uid"] == "${source}" for each in panels)
    config = named(objects("base+monitoring"), "ConfigMap", "plaudit-dashboards")
    assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(config["data"][f"{name}.json"]) == board


def test_a_step_is_stacked_by_its_phases():
    board = json.loads(dashboards.render("training"))
    stacked = {
        each["title"]
        for each in board["panels"]
        if each["type"] == "timeseries"
        and each["fieldConfig"]["defaults"].get("custom", {}).get("stacking", {}).get("mode") == "normal"
    }
    assert stacked == {"Phases of a step"}


def test_the_trainers_step_phases_are_all_on_a_dashboard():
    phases = {metric.name for metric in TABLES["ppo"] if metric.name.startswith("time/")}
    text = " ".join(dashboards.queries())
    assert phases and all(prometheus_name("ppo", name) in text for name in phases)
