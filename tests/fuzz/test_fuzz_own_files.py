"""Checkpoints, journals, sets of keys and tokens that hold anything: refused as documented, or read."""

import contextlib
import hashlib
import json
import shutil

import jwt
import pytest
import torch
from fuzz_settings import fuzzed
from hostile_json import SCALARS, VALUES, mangled
from hypothesis import given, strategies as st
from jwt_issuer import AUDIENCE, ISSUER, claims, key_set, signing_key
from measured_memory import bounded_memory

from plaudit import ItemFailure, Reward
from plaudit.clients import RewardComponent
from plaudit.files.journal import Journal
from plaudit.files.rows import FileError
from services.rpc.jwks import parse_keys
from services.rpc.oidc import Issuer
from services.rpc.options import OptionError
from services.rpc.tokens import Refused
from trainer import checkpoints
from trainer.errors import CheckpointError

TEXTS = {
    "nothing": b"",
    "NUL": b"\x00\n",
    "not UTF-8": b'{"version": "\xff"}\n',
    "deep list": b"[" * 100_000 + b"\n",
    "deep and closed": b'{"version": 2, "sha256": "", "keys": ' + b"[" * 100_000 + b"]" * 100_000 + b"}\n",
    "deep and nearly read": b'{"version": 2, "keys": ' + b"[" * 900 + b"]" * 900 + b"}\n",
    "huge integer": b'{"version": 2, "step": ' + b"9" * 10_000 + b"}\n",
    "beyond a double": b'{"version": 2, "step": 1e400}\n',
    "lone surrogate": b'{"version": 2, "sha256": "\\ud800", "keys": ["\\ud800"]}\n',
    "a key twice": b'{"version": 2, "version": 2}\n',
    "many keys": b"{" + b",".join(b'"k%d": 1' % number for number in range(20_000)) + b"}\n",
}
hostile = pytest.mark.parametrize("name", TEXTS)


# --- checkpoints ---


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A checkpoint that may be spoilt."""
    state = {"a": torch.ones(2), "b": [1, (2.5, None)], 3: "x"}
    return checkpoints.save(tmp_path_factory.mktemp("checkpoints"), 4, {"p": state}, {"data.train": "d"})


def load(saved, manifest, seal=False):
    """Reads the checkpoint with another manifest; `seal` gives that the digest that belongs to it."""
    if seal:
        manifest = {key: value for key, value in manifest.items() if key != "sha256"}
        digest = hashlib.sha256(json.dumps(manifest, sort_keys=True).encode()).hexdigest()
        manifest = {**manifest, "sha256": digest}
    content = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
    path = shutil.copytree(saved, saved.parents[1] / "spoilt" / saved.name, dirs_exist_ok=True)
    (path / checkpoints.MANIFEST).write_bytes(content)
    with bounded_memory(len(content)):
        try:
            return checkpoints.load(path)
        except CheckpointError as error:
            assert str(error).startswith(f"checkpoint {path}")
    return None


def good_manifest(saved):
    return json.loads((saved / checkpoints.MANIFEST).read_text())


def test_any_manifest(saved):
    good = good_manifest(saved)

    @fuzzed
    @given(mangled([good], ["x", "sha256", "version"]) | SCALARS, st.binary(max_size=4))
    def run(manifest, noise):
        load(saved, manifest)
        load(saved, json.dumps(good).encode() + noise)

    run()
    assert load(saved, good)["p"][3] == "x"


def test_any_manifest_that_calls_itself_whole(saved):
    good = good_manifest(saved)
    files = st.dictionaries(
        st.sampled_from(["p", "q", "../p", "/dev/null", "\x00", "\ud800", "x" * 300]), VALUES
    )

    @fuzzed
    @given(mangled([good], ["x", "p"]).filter(lambda one: isinstance(one, dict)), files)
    def run(manifest, files):
        load(saved, manifest, seal=True)
        load(saved, {**good, "files": files}, seal=True)
        load(saved, {**good, "parts": files}, seal=True)

    run()
    assert load(saved, good, seal=True)["p"][3] == "x"


def test_any_part(saved):
    """As it would be after its manifest was made for it: by hand, or by another version."""
    manifest = good_manifest(saved)
    tree = json.loads((saved / "p.json").read_text())
    spoilt = shutil.copytree(saved, saved.parents[1] / "parts" / saved.name)

    @fuzzed
    @given(mangled([tree], ["$", "name", "items"]) | VALUES, st.binary(max_size=4))
    def run(tree, noise):
        (spoilt / "p.json").write_text(json.dumps(tree))
        (spoilt / "p.safetensors").write_bytes(noise + (saved / "p.safetensors").read_bytes()[len(noise) :])
        files = {name: hashlib.sha256((spoilt / name).read_bytes()).hexdigest() for name in manifest["files"]}
        load(spoilt, {**manifest, "files": files}, seal=True)

    run()


@hostile
def test_hostile_manifests(name, saved):
    assert load(saved, TEXTS[name]) is None


# --- what `plaudit score` remembers ---

FACTS = {"the input's SHA-256": "ab", "--model": ""}
RESULTS = [
    (1, Reward(0.5, -1e-12, 3)),
    (4, ItemFailure("INVALID_ARGUMENT", "pair.response: is empty")),
    (5, Reward(1.5, 0.5, 2**32 - 1, 9, components=(RewardComponent("a", 1.0, 2.0),))),
]


@pytest.fixture
def journal(tmp_path):
    """journal(content) → the results that it goes on behind, or None if it is refused."""
    path = tmp_path / "journal"

    def read(content):
        path.write_bytes(content)
        with bounded_memory(len(content)):
            try:
                with Journal(path, FACTS) as journal:
                    journal.add(journal.after + 1, RESULTS[0][1])
                    found = [*journal.results()]
            except FileError as error:
                assert str(error).startswith(str(path))
                assert path.read_bytes() == content, "a file that isn't ours is left alone"
                return None
        assert [line for line, _ in found] == sorted({line for line, _ in found})
        return found[:-1]

    path.unlink(missing_ok=True)
    with Journal(path, FACTS) as begun:
        for line, result in RESULTS:
            begun.add(line, result)
    read.good = path.read_bytes()
    return read


def test_any_journal(journal):
    head, *lines = journal.good.splitlines(keepends=True)
    rows = [json.loads(line) for line in lines]
    some = mangled(rows, ["x"]).map(lambda row: json.dumps(row).encode() + b"\n")

    @fuzzed
    @given(st.lists(some | st.sampled_from(lines) | st.binary(max_size=20), max_size=4), st.integers(0, 3))
    def run(found, good):
        whole = journal(b"".join([head, *lines[:good], *found]))
        assert whole[:good] == RESULTS[:good]

    run()


def test_any_first_line_of_a_journal(journal):
    @fuzzed
    @given(mangled([FACTS], ["x"]) | SCALARS, st.binary(max_size=20))
    def run(facts, noise):
        journal(json.dumps(facts).encode() + b"\n")
        journal(noise)

    run()
    assert journal(journal.good) == RESULTS


@hostile
def test_hostile_lines_of_a_journal(name, journal):
    journal(TEXTS[name])
    head, *lines = journal.good.splitlines(keepends=True)
    assert journal(head + lines[0] + TEXTS[name] + lines[1]) == RESULTS[: 1 if TEXTS[name] else 2]


# --- keys and tokens ---

KEYS = [signing_key("one"), signing_key("two", "RSA", "PS256"), signing_key("three", "OKP", "EdDSA")]
MEMBERS = ["kid", "alg", "use", "key_ops", "crv", "d", "n", "e", "x", "y", "k", "x5c"]


def keys_of(content):
    with bounded_memory(len(content)), contextlib.suppress(OptionError):
        return parse_keys(content, "here")
    return {}


@fuzzed
@given(mangled([json.loads(key_set(*KEYS))], MEMBERS) | SCALARS)
def test_any_set_of_keys(content):
    for key in keys_of(json.dumps(content).encode()).values():
        assert "PRIVATE" not in key.content
        assert not {"d", "k"} & json.loads(key.content).keys()


@hostile
def test_hostile_sets_of_keys(name):
    assert keys_of(TEXTS[name]) == {}


class Known:
    """The keys of an issuer, as they are."""

    are_current = True

    def __init__(self):
        self._keys = parse_keys(key_set(*KEYS), "here")

    def of(self, kid):
        return self._keys.get(kid)


@pytest.fixture(scope="module")
def issuer():
    return Issuer(ISSUER, AUDIENCE, Known())


def refused(issuer, token):
    """Whether a token is, in the only way that there is."""
    with bounded_memory(len(token)):
        try:
            issuer.identity_of(token)
        except Refused:
            return True
    return False


def test_any_claims_and_any_header_of_a_signed_token(issuer):
    names = ["x", "b64", "crit", "zip", "scp", "jku", "jwk"]
    headers = mangled([{"kid": "one", "typ": "JWT"}], names).filter(lambda one: isinstance(one, dict))

    @fuzzed
    @given(headers, mangled([claims(scope="score")], names) | SCALARS, st.sampled_from(KEYS))
    def run(header, body, key):
        with contextlib.suppress(jwt.PyJWTError, TypeError, ValueError):  # it can't be signed at all
            token = jwt.api_jws.encode(json.dumps(body).encode(), key.private, key.algorithm, header)
            refused(issuer, token)

    run()
    assert not refused(issuer, KEYS[0].sign())


def test_a_damaged_token_is_refused(issuer):
    good = KEYS[0].sign(scope="score")

    @fuzzed
    @given(st.integers(0, len(good) - 1), st.text(max_size=4), st.integers(0, 3))
    def run(at, noise, cut):
        token = good[:at] + noise + good[at + cut :]
        assert token == good or refused(issuer, token)

    run()
