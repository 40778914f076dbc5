"""An API server of one namespace, in memory: what it keeps, what it was asked, and how it can fail.

Why not PyPI's kmock: it has no server-side apply (a PATCH of what isn't there is 404), no selectors, no
resource versions and no end of a watch.

A watch tells what has changed since its version and ends, and the clock goes on as if it had lasted its
time. `on_watch` and the clock's `steps` are what happens meanwhile, so that no test waits.
"""

import copy
import itertools
import sys
import threading
from collections import deque
from http.server import ThreadingHTTPServer

import yaml
from api_requests import NAMESPACE, Asked, Refusal, Requests

__all__ = ["NAMESPACE", "ApiServer", "Asked", "Clock", "Refusal", "kubeconfig", "slice_of"]
JOB_LABELS = ("batch.kubernetes.io/controller-uid", "controller-uid")


class Clock:
    """Time that passes only when somebody sleeps; then the next thing happens."""

    def __init__(self):
        self.now = 1000.0
        self.slept = []
        self.steps = deque()

    @property
    def passed(self):
        return self.now - 1000

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        self.slept.append(seconds)
        self.now += seconds
        if self.steps:
            self.steps.popleft()()


class Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request, client_address):
        """A client that has gone, out of patience, is no error of the server's."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)


class ApiServer:
    """Start it as a context manager; `url` is where it listens."""

    def __init__(self, clock):
        self.clock = clock
        self.objects = {}
        self.changes = []
        self.asked = []
        self.queries = []
        self.accounts = set()
        self.logs = {}
        self.faults = []
        self.on_watch = deque()
        self.rules = None
        self.managers = {}
        self._uids = itertools.count(1)
        self._hung = threading.Event()

    def __enter__(self):
        self._http = Http(("127.0.0.1", 0), Requests)
        self._http.api = self
        threading.Thread(target=self._http.serve_forever, args=(0.005,), daemon=True).start()
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}"
        return self

    def __exit__(self, *_):
        self._hung.set()
        self._http.shutdown()
        self._http.server_close()

    # --- what tests do to it

    def put(self, resource, each):
        """Adds or replaces an object, as if a controller had."""
        meta = each["metadata"]
        meta.setdefault("namespace", NAMESPACE)
        meta.setdefault("uid", f"uid-{next(self._uids)}")
        meta.setdefault("creationTimestamp", f"2026-01-01T00:00:{len(self.changes) % 60:02}Z")
        kind = "MODIFIED" if (resource, meta["name"]) in self.objects else "ADDED"
        self._keep(kind, resource, each)
        return each

    def remove(self, resource, name):
        """Takes an object away, as if a controller had."""
        self._keep("DELETED", resource, self.objects[resource, name])
        del self.objects[resource, name]

    def fail(self, verb, resource, answer, times=1):
        """The next `times` such requests are answered by a Refusal, or by what `fail` and `stream` know."""
        self.faults += [(verb, resource, answer)] * times

    # --- what requests do to it

    def fault(self, asked):
        for each in self.faults:
            if each[:2] == (asked.verb, asked.resource):
                self.faults.remove(each)
                return each[2]
        return None

    def allow(self, asked):
        """Raises the refusal of RBAC."""
        self.asked.append(asked)
        allowed = self.rules is None or any(
            asked.group in rule["apiGroups"]
            and asked.resource in rule["resources"]
            and asked.verb in rule["verbs"]
            for rule in self.rules
        )
        if not allowed:
            raise Refusal(
                403,
                f'{asked.resource} is forbidden: User "ada" cannot {asked.verb} resource "{asked.resource}" '
                f'in API group "{asked.group}" in the namespace "{NAMESPACE}"',
            )

    def list(self, resource, query):
        found = [
            each
            for (kind, _), each in sorted(self.objects.items())
            if kind == resource and selected(each, query)
        ]
        return {"metadata": {"resourceVersion": str(len(self.changes))}, "items": found}

    def events(self, resource, query):
        """Of a watch."""
        if self.on_watch:
            self.on_watch.popleft()()
        self.clock.now += float(query["timeoutSeconds"])
        since = int(query["resourceVersion"])
        for kind, of, each in self.changes[since:]:
            if of == resource and selected(each, query):
                yield {"type": kind, "object": each}

    def get(self, resource, name):
        if (resource, name) not in self.objects:
            raise Refusal(404, f'{resource} "{name}" not found')
        return self.objects[resource, name]

    def apply(self, asked, name, body, query):
        assert query["fieldManager"] == "plaudit" and query["force"] == "false"
        assert body["metadata"]["name"] == name and body["metadata"]["namespace"] == NAMESPACE
        key = (asked.resource, name)
        if key not in self.objects:
            self.allow(asked._replace(verb="create"))
        elif others := self.managers.get(key):
            raise conflict(others)
        former = self.objects.get(key)
        if asked.resource == "jobs":
            body = job_made(body, former, next(self._uids))
        return self.put(asked.resource, body)

    def create(self, resource, body):
        if (resource, body["metadata"]["name"]) in self.objects:
            raise Refusal(409, f'{resource} "{body["metadata"]["name"]}" already exists')
        return self.put(resource, body)

    def replace(self, resource, name, body):
        if self.get(resource, name)["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise Refusal(
                409, "the object has been modified; please apply your changes to the latest version"
            )
        return self.put(resource, body)

    def delete(self, resource, name, body):
        each = self.get(resource, name)
        assert body["propagationPolicy"] == "Foreground"
        if body["preconditions"]["uid"] != each["metadata"]["uid"]:
            raise Refusal(409, "the UID in the precondition does not match")
        each["metadata"]["deletionTimestamp"] = "2026-01-01T01:00:00Z"
        return self.put(resource, each)

    def hang(self):
        self._hung.wait(30)

    def _keep(self, kind, resource, each):
        each["metadata"]["resourceVersion"] = str(len(self.changes) + 1)
        self.objects[resource, each["metadata"]["name"]] = each
        self.changes.append((kind, resource, copy.deepcopy(each)))


def job_made(body, former, number):
    """A Job as the cluster keeps it, with a selector of its own; refuses what the cluster would refuse."""
    labels = body["spec"]["template"]["metadata"]["labels"]
    if "selector" in body["spec"] or any(key in labels for key in JOB_LABELS):
        raise Refusal(422, f'Job "{body["metadata"]["name"]}" is invalid: spec.selector: not auto-generated')
    if former is not None:
        raise Refusal(422, "spec.template: Invalid value: field is immutable")
    body = copy.deepcopy(body)
    uid = f"uid-{number}"
    body["metadata"]["uid"] = uid
    body["spec"]["selector"] = {"matchLabels": {JOB_LABELS[0]: uid}}
    body["spec"]["template"]["metadata"]["labels"] |= {
        **dict.fromkeys(JOB_LABELS, uid),
        "batch.kubernetes.io/job-name": body["metadata"]["name"],
        "job-name": body["metadata"]["name"],
    }
    return body


def conflict(managers):
    causes = [
        {"reason": "FieldManagerConflict", "message": f'conflict with "{name}" using v1', "field": field}
        for name, field in managers
    ]
    return Refusal(409, f"Apply failed with {len(causes)} conflicts", causes=causes)


def selected(each, query):
    """By `a=b,c=d` of labels, and of the one field that is asked for."""
    labels = each["metadata"].get("labels", {})
    for term in filter(None, query.get("labelSelector", "").split(",")):
        key, _, value = term.partition("=")
        if labels.get(key) != value:
            return False
    field, _, value = query.get("fieldSelector", "").partition("=")
    assert field in ("", "involvedObject.uid")
    return not field or each["involvedObject"]["uid"] == value


def kubeconfig(urls):
    """A kubeconfig of clusters by the name of their context; "here" is the current one."""
    return yaml.safe_dump(
        {
            "current-context": "here",
            "clusters": [{"name": name, "cluster": {"server": url}} for name, url in urls.items()],
            "users": [{"name": "ada", "user": {"token": "secret"}}],
            "contexts": [{"name": name, "context": {"cluster": name, "user": "ada"}} for name in urls],
        }
    )


def slice_of(name, *pods, port=50051, service="plaudit-policy", **more):
    """An EndpointSlice; a pod is an address, or (address, conditions)."""
    found = [pod if isinstance(pod, tuple) else (pod, {"ready": True}) for pod in pods]
    return {
        "metadata": {"name": name, "labels": {"kubernetes.io/service-name": service}},
        "ports": [{"name": "grpc", "port": port}],
        "endpoints": [{"addresses": [address], "conditions": conditions} for address, conditions in found],
        **more,
    }
