"""HTTP in front of an ApiServer: paths and verbs, refusals, and streams that end in many ways."""

import json
import socket
from http.server import BaseHTTPRequestHandler
from typing import NamedTuple
from urllib.parse import parse_qsl, urlsplit

NAMESPACE = "plaudit"


class Asked(NamedTuple):
    """What RBAC is asked about a request."""

    verb: str
    group: str
    resource: str


class Refusal(Exception):
    def __init__(self, status, message, headers=(), **details):
        super().__init__(message)
        self.status, self.message, self.headers, self.details = status, message, dict(headers), details


class Requests(BaseHTTPRequestHandler):
    """Requests to the `api` of their server, in a thread of each connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # or each answer waits 40 ms for the acknowledgement of its head

    def log_message(self, *_):
        pass

    def do_GET(self):
        self.answer(self.get)

    def do_PATCH(self):
        self.answer(self.patch)

    def do_POST(self):
        self.answer(
            lambda asked, name, query, body: self.send(self.server.api.create(asked.resource, body), 201)
        )

    def do_PUT(self):
        self.answer(self.put)

    def do_DELETE(self):
        self.answer(self.delete)

    def answer(self, act):
        """/api/v1/namespaces/NS/RESOURCE[/NAME[/SUB]], or /apis/GROUP/VERSION/namespaces/…"""
        url = urlsplit(self.path)
        _, root, *rest = url.path.split("/")
        group = rest.pop(0) if root == "apis" else ""
        _, namespaces, namespace, resource, *named = rest
        assert (namespaces, namespace) == ("namespaces", NAMESPACE)
        name, sub = [*named, "", ""][:2]
        query = dict(parse_qsl(url.query))
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else {}
        asked = Asked(verb_of(self.command, name, query), group, resource + (f"/{sub}" if sub else ""))
        self.server.api.accounts.add(self.headers["Authorization"])
        self.server.api.queries.append((asked.verb, asked.resource, query))
        try:
            self.server.api.allow(asked)
            self.fail(self.server.api.fault(asked))
            act(asked, name, query, body)
        except Refusal as refusal:
            self.refuse(refusal)
        except ConnectionAbortedError:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)

    def fail(self, answer):
        if isinstance(answer, Refusal):
            raise answer
        if answer == "hang":
            self.server.api.hang()
        if answer in ("hang", "reset"):
            raise ConnectionAbortedError
        if answer == "html":
            raise Refusal(418, "")
        self.stream_ends_by = answer

    def get(self, asked, name, query, body):
        if asked.verb == "watch":
            self.stream(json.dumps(each) for each in self.server.api.events(asked.resource, query))
        elif asked.verb == "list":
            self.send(self.server.api.list(asked.resource, query))
        elif asked.resource == "pods/log":
            self.stream(self.server.api.logs[name].pop(0))
        else:
            self.send(self.server.api.get(asked.resource, name))

    def patch(self, asked, name, query, body):
        assert self.headers["Content-Type"] == "application/apply-patch+yaml"
        self.send(self.server.api.apply(asked, name, body, query))

    def post(self, asked, name, query, body):
        self.send(self.server.api.create(asked.resource, body), 201)

    def put(self, asked, name, query, body):
        self.send(self.server.api.replace(asked.resource, name, body))

    def delete(self, asked, name, query, body):
        self.send(self.server.api.delete(asked.resource, name, body))

    def refuse(self, refusal):
        status = {"kind": "Status", "code": refusal.status, "message": refusal.message}
        body = status | {"details": refusal.details} if refusal.message else "<html>"
        self.send(body, refusal.status, refusal.headers)

    def send(self, body, status=200, headers=()):
        data = json.dumps(body).encode()
        self.send_response(status)
        for key, value in dict(headers, **{"Content-Length": str(len(data))}).items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(data)

    def stream(self, lines):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for line in lines:
            self.chunk(line + "\n")
        if self.stream_ends_by == "gone":
            gone = {"kind": "Status", "code": 410, "message": "too old resource version"}
            self.chunk(json.dumps({"type": "ERROR", "object": gone}) + "\n")
        if self.stream_ends_by == "stall":
            self.server.api.hang()
        if self.stream_ends_by == "drop":
            self.wfile.write(b"ff\r\n{half")
            raise ConnectionAbortedError
        self.wfile.write(b"0\r\n\r\n")

    def chunk(self, text):
        data = text.encode()
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")


def verb_of(method, name, query):
    if method == "GET":
        return "watch" if query.get("watch") else "get" if name else "list"
    return {"PATCH": "patch", "DELETE": "delete", "POST": "create", "PUT": "update"}[method]
