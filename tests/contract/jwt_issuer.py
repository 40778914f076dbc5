"""An issuer of JWTs made for tests: its keys, its tokens, and the place on loopback where its keys are."""

import base64
import functools
import hashlib
import hmac
import json
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from services.rpc.options import Security

ISSUER, AUDIENCE = "https://issuer.example", "plaudit"
_MAKE = {
    "RSA": lambda: rsa.generate_private_key(65537, 2048),
    "short RSA": lambda: rsa.generate_private_key(65537, 1024),
    "EC": lambda: ec.generate_private_key(ec.SECP256R1()),
    "OKP": ed25519.Ed25519PrivateKey.generate,
}


class SigningKey:
    """A private key; it signs as its algorithm says."""

    def __init__(self, kid, private, algorithm):
        self.kid, self.private, self.algorithm = kid, private, algorithm

    def jwk(self, **changes):
        """The public half as a JSON Web Key; None takes a member away."""
        made = jwt.get_algorithm_by_name(self.algorithm).to_jwk(self.private.public_key(), as_dict=True)
        return _without_none({**made, "kid": self.kid, "alg": self.algorithm, "use": "sig", **changes})

    def sign(self, algorithm=None, header=None, **changes):
        """A token that is good but for the changes; None takes a claim away."""
        headers = {"kid": self.kid, **(header or {})}
        return jwt.encode(
            claims(**changes), self.private, algorithm or self.algorithm, _without_none(headers)
        )

    def sign_anything(self, **changes):
        """As `sign`; the library's own way lets no claim be of a wrong type."""
        content = json.dumps(claims(**changes)).encode()
        return jwt.api_jws.encode(content, self.private, self.algorithm, {"kid": self.kid})

    def pem(self):
        encoding, kind = serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        return self.private.public_key().public_bytes(encoding, kind)


@functools.cache
def signing_key(kid="one", kind="EC", algorithm="ES256"):
    """The same one for the same arguments: an RSA key takes a while."""
    return SigningKey(kid, _MAKE[kind](), algorithm)


def claims(**changes):
    now = int(time.time())
    # A whole day: some tokens are made when tests are collected, and used when their turn comes.
    times = {"iat": now, "nbf": now, "exp": now + 86400}
    return _without_none({"iss": ISSUER, "aud": AUDIENCE, "sub": "alice", "scope": "", **times, **changes})


def unsigned(**changes):
    return jwt.encode(claims(**changes), None, "none", {"kid": "one"})


def signed_with_the_public_key(key, **changes):
    """The old trick: the public key taken for an HMAC's secret. The library itself refuses to do it."""
    parts = ({"alg": "HS256", "typ": "JWT", "kid": key.kid}, claims(**changes))
    signed = b".".join(_base64(json.dumps(part).encode()) for part in parts)
    return b".".join((signed, _base64(hmac.digest(key.pem(), signed, hashlib.sha256)))).decode()


def changed(token, **claim):
    """The token with other claims under its old signature."""
    header, body, signature = token.split(".")
    content = json.loads(base64.urlsafe_b64decode(body + "==="))
    return ".".join((header, _base64(json.dumps(content | claim).encode()).decode(), signature))


def key_set(*keys):
    """The bytes of a JSON Web Key Set."""
    return json.dumps({"keys": [key.jwk() if isinstance(key, SigningKey) else key for key in keys]}).encode()


def security(source, **more):
    return Security(oidc_issuer=ISSUER, oidc_audience=AUDIENCE, oidc_jwks=str(source), **more)


class JwksServer:
    """Gives `content` to whoever asks; it can hang, fail, and send elsewhere."""

    def __init__(self, content):
        self.content, self.status, self.headers = content, 200, {}
        self.asked = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.url = ""

    def wait_until_asked(self, times):
        end = time.monotonic() + 20
        while self.asked < times:
            assert time.monotonic() < end, "nobody asks"
            time.sleep(0.001)

    def answer(self, handler):
        self.asked += 1
        self.go_on.wait(30)
        handler.send_response(self.status)
        for name, value in {"content-length": str(len(self.content)), **self.headers}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(self.content)


@contextmanager
def jwks_server(*keys):
    place = JwksServer(key_set(*keys))

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            place.answer(self)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # whoever asked has gone
    place.url = f"http://127.0.0.1:{server.server_port}/keys"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield place
    finally:
        place.go_on.set()
        server.shutdown()
        server.server_close()
        thread.join()


def _base64(data):
    return base64.urlsafe_b64encode(data).rstrip(b"=")


def _without_none(values):
    return {key: value for key, value in values.items() if value is not None}
