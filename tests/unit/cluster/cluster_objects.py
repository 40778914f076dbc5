"""Objects as a cluster's controllers write them, for the API server of the tests."""

import copy

IMAGE = "registry.example.com:5000/team/plaudit:0.1.0"
SERVICES = ("policy", "reward", "reference", "gateway")
REVISION = "deployment.kubernetes.io/revision"


def labels(component):
    return {
        "app.kubernetes.io/name": "plaudit",
        "app.kubernetes.io/part-of": "plaudit",
        "app.kubernetes.io/component": component,
        "app.kubernetes.io/managed-by": "kustomize",
    }


def condition(kind, value=True, **more):
    return {"type": kind, "status": str(value), **more}


def pod_spec(image=IMAGE, port=None):
    container = {
        "name": "plaudit",
        "image": image,
        "args": ["--resume"],
        "ports": [{"name": "grpc", "containerPort": port}] if port else [],
        "resources": {"limits": {"memory": "2304Mi"}},
    }
    return {"containers": [container], "volumes": [{"name": "config", "configMap": {"name": "plaudit-ppo"}}]}


def deployment(component, replicas=1, ready=1, **status):
    counts = {"replicas": replicas, "updatedReplicas": replicas, "availableReplicas": ready}
    return {
        "kind": "Deployment",
        "metadata": {
            "name": f"plaudit-{component}",
            "labels": labels(component),
            "generation": 2,
            "annotations": {REVISION: "2"},
        },
        "spec": {"replicas": replicas, "template": {"spec": pod_spec()}},
        "status": {"observedGeneration": 2, **counts, **status},
    }


def replica_set(owner, revision="2", conditions=()):
    component = owner["metadata"]["labels"]["app.kubernetes.io/component"]
    name = f"{owner['metadata']['name']}-{revision}"
    metadata = {"name": name, "labels": labels(component), "annotations": {REVISION: revision}}
    made = {"kind": "ReplicaSet", "metadata": metadata, "status": {"conditions": list(conditions)}}
    return owned(made, owner)


def job(name, component, *conditions, **status):
    template = {"metadata": {"labels": labels(component)}, "spec": pod_spec()}
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "labels": labels(component)},
        "spec": {"backoffLimit": 6, "template": template},
        "status": {"conditions": list(conditions), **status},
    }


def pod(owner, name="", *, phase="Running", ready=True, status=None, port=None, ip="10.0.0.1", conditions=()):
    """`status` is that of its container; a Job's pods carry the labels that the cluster gives them."""
    component = owner["metadata"]["labels"]["app.kubernetes.io/component"]
    made = {
        "kind": "Pod",
        "metadata": {"name": name or f"{owner['metadata']['name']}-x", "labels": labels(component)},
        "spec": pod_spec(port=port),
        "status": {
            "phase": phase,
            "podIP": ip,
            "conditions": [condition("Ready", ready), *conditions],
            "containerStatuses": [container(ready=ready, **(status or {"state": {"running": {}}}))],
        },
    }
    if owner["kind"] == "Job":
        uid = owner["metadata"]["uid"]
        made["metadata"]["labels"] |= {
            "batch.kubernetes.io/job-name": owner["metadata"]["name"],
            "batch.kubernetes.io/controller-uid": uid,
        }
    return owned(made, owner)


def container(ready=True, restarts=0, **status):
    return {"name": "plaudit", "image": IMAGE, "ready": ready, "restartCount": restarts, **status}


def waiting(reason, message="", last=None):
    """Of a container that can't start; `last` is how it ended before."""
    state = {"state": {"waiting": {"reason": reason, "message": message}}}
    return state | ({"lastState": {"terminated": last}} if last else {})


def terminated(code, reason="Error", **more):
    return {"state": {"terminated": {"exitCode": code, "reason": reason, **more}}}


def event(about, reason, message, kind="Warning", at="2026-01-01T00:00:05Z", name=""):
    return {
        "kind": "Event",
        "metadata": {"name": name or f"{about['metadata']['name']}.{reason}"},
        "involvedObject": {"uid": about["metadata"]["uid"]},
        "type": kind,
        "reason": reason,
        "message": message,
        "lastTimestamp": at,
    }


def owned(made, owner):
    made["metadata"]["ownerReferences"] = [{"uid": owner["metadata"]["uid"], "controller": True}]
    return made


def put_services(server, **of_component):
    """Deployments with their ReplicaSets and pods; a component's keywords are those of its deployment."""
    sets = {}
    for component in SERVICES:
        given = copy.deepcopy(of_component.get(component, {}))
        each = server.put("deployments", deployment(component, **given))
        sets[component] = server.put("replicasets", replica_set(each))
        for number in range(each["status"]["availableReplicas"]):
            server.put("pods", pod(sets[component], f"plaudit-{component}-{number}"))
    return sets
