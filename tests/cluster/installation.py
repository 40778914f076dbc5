"""What the tests ask of a cluster, by kubectl, our tool and a Prometheus there; each with a deadline."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlencode

import pytest
import yaml
from kubernetes_tools import tool
from prometheus_client.parser import text_string_to_metric_families

ROOT = Path(__file__).parents[2]
OVERLAY = Path(__file__).parent / "overlay"
RULES = ROOT / "k8s/components/monitoring/rules.yaml"
NAMESPACE, METRICS_PORT, PROMETHEUS_PORT = "plaudit", 9100, 9090
RUN, SECOND_RUN = "tiny", "second"
TRAINER, SECOND_TRAINER = "plaudit-trainer", f"plaudit-run-{SECOND_RUN}"
REWARD, CALLER = "deployment/plaudit-reward", "deployment/plaudit-caller"
SERVER_SIDE = ("--server-side", "--field-manager=plaudit")
OURS = "app.kubernetes.io/part-of=plaudit"


def needs_a_cluster():
    """Skips the test where no cluster is named."""
    if not os.environ.get("KUBECONFIG"):
        pytest.skip("KUBECONFIG names no cluster to test on")


# --- command lines


def attempt(*words, seconds=100, stdin=None):
    """A finished kubectl in our namespace."""
    command = [tool("kubectl"), "--namespace", NAMESPACE, *map(str, words)]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=seconds)


def ask(*words, **options):
    """What kubectl prints. Fails with what it says if it fails."""
    done = attempt(*words, **options)
    assert done.returncode == 0, done.stderr
    return done.stdout


def plaudit_tool(*words, seconds=2000):
    """A finished `python -m trainer.cluster`."""
    command = [sys.executable, "-m", "trainer.cluster", *map(str, words)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=seconds)


def until(look, seconds, what):
    """What `look` finds, once it finds something; asked every second."""
    end = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < end, f"{what}: not within {seconds} s\n{sight()}"
        time.sleep(1)
    return found


def sight():
    """For whoever reads that a test has failed: pods, and what they were warned of."""
    pods = attempt("get", "pods", "--output=wide").stdout
    return pods + attempt("get", "events", "--field-selector=type=Warning").stdout


# --- manifests


def manifests():
    """The YAML that is applied: k8s/overlays/local, what tests/cluster/overlay changes, and our rules."""
    made = ask("kustomize", "--load-restrictor=LoadRestrictionsNone", OVERLAY)
    return "\n---\n".join([made, yaml.safe_dump(rules())])


def rules():
    """Those of a PrometheusRule as a ConfigMap, which needs no operator."""
    spec = yaml.safe_load(RULES.read_text(encoding="utf-8"))["spec"]
    labels = {"app.kubernetes.io/component": "prometheus", "app.kubernetes.io/part-of": "plaudit"}
    metadata = {"name": "plaudit-rules", "namespace": NAMESPACE, "labels": labels}
    data = {"rules.yaml": yaml.safe_dump(spec)}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}


def apply(text):
    ask("apply", *SERVER_SIDE, "--filename=-", stdin=text)


def differences(text):
    """What another apply would change."""
    done = attempt("diff", *SERVER_SIDE, "--filename=-", stdin=text)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def delete(text):
    """Returns when all is gone."""
    ask("delete", "--ignore-not-found", "--timeout=15m", "--filename=-", stdin=text, seconds=1000)


def namespaces():
    """Ours, if it is there."""
    return ask("get", "namespace", NAMESPACE, "--ignore-not-found", "--output=name").split()


def left_overs():
    """What is there of us, in the whole cluster: namespace, priority classes, volumes."""
    classes = ask("get", "priorityclass", f"--selector={OURS}", "--output=name").split()
    volumes = json.loads(ask("get", "persistentvolume", "--output=json"))["items"]
    claims = [each["spec"].get("claimRef", {}) for each in volumes]
    return [*namespaces(), *classes, *(each for each in claims if each.get("namespace") == NAMESPACE)]


# --- pods


def pods(selector):
    """Names of all pods, those on their way out among them, and whether they are ready."""
    items = json.loads(ask("get", "pods", f"--selector={selector}", "--output=json"))["items"]
    return {each["metadata"]["name"]: is_ready(each) for each in items}


def is_ready(pod):
    conditions = {each["type"]: each["status"] for each in pod["status"].get("conditions", ())}
    return conditions.get("Ready") == "True" and "deletionTimestamp" not in pod["metadata"]


def of_service(component):
    return f"app.kubernetes.io/name=plaudit,app.kubernetes.io/component={component}"


def of_job(name):
    return f"batch.kubernetes.io/job-name={name}"


def ready(selector, count=1):
    """Names of the ready pods, once there are `count` of them."""

    def look():
        found = ready_now(selector)
        return found if len(found) == count else []

    return until(look, 600, f"{count} ready pods of {selector}")


def ready_now(selector):
    return [name for name, well in pods(selector).items() if well]


def kill(pod):
    """A second, and it is killed."""
    ask("delete", "pod", pod, "--grace-period=1", "--wait=false")


def stop(pod):
    """As a drain would: returns when it has ended by itself."""
    ask("delete", "pod", pod, "--timeout=10m", seconds=660)


def scale(replicas):
    ask("scale", REWARD, f"--replicas={replicas}")
    rolled_out()


def restart():
    ask("rollout", "restart", REWARD)
    rolled_out()


def rolled_out():
    ask("rollout", "status", REWARD, "--timeout=10m", seconds=660)


def privileged_pod():
    """The answer to one that is tried, and not made even where it may be."""
    return attempt("run", "privileged", "--image=plaudit:0.1.0", "--privileged", "--dry-run=server")


# --- what they say


def metrics(pod):
    """Samples by name, as Prometheus would read them."""
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}:{METRICS_PORT}/proxy/metrics"
    found = {}
    for family in text_string_to_metric_families(ask("get", "--raw", path)):
        for sample in family.samples:
            found.setdefault(sample.name, []).append(sample)
    return found


def has_data(prometheus, query):
    """Whether a pod with Prometheus has an answer to a dashboard's query."""
    asked = query.replace("$__rate_interval", "1m").replace("$namespace", NAMESPACE)
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{prometheus}:{PROMETHEUS_PORT}/proxy/api/v1/query"
    answer = json.loads(ask("get", "--raw", f"{path}?{urlencode({'query': asked})}"))
    assert answer["status"] == "success", answer
    return bool(answer["data"]["result"])


def scored(pod):
    """Calls of Score that a reward pod has answered well."""
    wanted = {"grpc_method": "Score", "grpc_code": "OK"}
    handled = metrics(pod).get("grpc_server_handled_total", [])
    return sum(each.value for each in handled if wanted.items() <= each.labels.items())


def log(pod):
    """What a pod has said so far; nothing before it has started."""
    return attempt("logs", pod, "--container=plaudit").stdout


def in_caller(*words):
    """What a program prints in the pod that may look around."""
    return ask("exec", CALLER, "--container=plaudit", "--", *words)


def calls():
    """The sums of the caller: calls, failed, well, last_failures."""
    return json.loads(in_caller("cat", "/tmp/calls.json"))


def calls_are_well():
    """The caller's sums, when fifty calls in a row have succeeded."""
    until(lambda: calls()["well"] >= 50, 300, "calls that succeed")
    return calls()


def steps(run):
    """The steps in a run's metrics.jsonl, in their order; what was evaluated before the first has step 0."""
    program = f"cat /runs/{run}/metrics.jsonl 2>/dev/null || true"
    lines = in_caller("sh", "-c", program).splitlines(keepends=True)
    return [step for line in lines if line.endswith("\n") and (step := json.loads(line)["step"])]


def steps_above(step):
    """The run's steps, when there are two more than `step`."""
    return until(lambda: [each for each in steps(RUN) if each > step + 1], 900, f"steps after {step}")


def end_of_job(name):
    """["Complete"] or ["Failed"], once it has ended."""
    job = json.loads(ask("get", "job", name, "--output=json"))
    conditions = job["status"].get("conditions", ())
    return [c["type"] for c in conditions if c["status"] == "True" and c["type"] in ("Complete", "Failed")]
