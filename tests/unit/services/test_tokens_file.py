"""The tokens file: what it may say, what is refused by name, and how it is read again."""

import asyncio
import contextlib
import logging
import os
from datetime import UTC, date, datetime, timedelta

import pytest
from hypothesis import given, settings, strategies as st

from plaudit.access import SCOPES, new_token, token_digest, token_entry
from services.rpc import reloading
from services.rpc.options import OptionError
from services.rpc.tokens import _KEYS, MOST_ENTRIES, Identity, Quota, _tokens, open_tokens, parse_tokens

ALICE = token_entry("alice", "a-token", ["score", "admin"])
BOB = token_entry("bob", "b-token", ["logprobs"])


def parse(text):
    return parse_tokens(text.encode(), "tokens.toml")


def with_lines(*lines, entry=ALICE):
    return entry + "\n".join(lines) + "\n"


# ---- what it says ----


def test_a_token_is_found_by_its_digest_and_nothing_else():
    tokens = parse(ALICE + BOB)
    assert tokens.of_token("a-token") == Identity("alice", frozenset({"score", "admin"}))
    assert tokens.of_token("b-token").name == "bob"
    for other in ("", "a-toke", "a-token ", "A-token", token_digest("a-token")):
        assert tokens.of_token(other) is None


def test_the_file_holds_no_token():
    token = new_token()
    assert token not in token_entry("alice", token, ["score"])
    assert len({new_token() for _ in range(100)}) == 100


def test_a_caller_may_have_several_tokens_while_they_are_rotated():
    tokens = parse(ALICE + token_entry("alice", "newer", ["score"]))
    assert tokens.of_token("a-token").name == tokens.of_token("newer").name == "alice"


@pytest.mark.parametrize(
    ("written", "expires"),
    [
        ("2027-01-01", datetime(2027, 1, 1, tzinfo=UTC)),
        ("2027-01-01T12:00:00Z", datetime(2027, 1, 1, 12, tzinfo=UTC)),
        ("2027-01-01T12:00:00+02:00", datetime(2027, 1, 1, 10, tzinfo=UTC)),
        ("2027-01-01T12:00:00", datetime(2027, 1, 1, 12, tzinfo=UTC)),
    ],
)
def test_expiry_is_utc_unless_it_says_otherwise(written, expires):
    assert parse(with_lines(f"expires = {written}")).of_token("a-token").expires == expires


def test_a_token_expires_when_its_day_begins():
    today = datetime.now(UTC).date()
    assert parse(token_entry("a", "t", ["score"], today)).of_token("t").is_expired
    tomorrow = today + timedelta(days=2)
    assert not parse(token_entry("a", "t", ["score"], tomorrow)).of_token("t").is_expired
    assert not parse(ALICE).of_token("a-token").is_expired


def test_a_certificate_stands_for_a_caller():
    name = "spiffe://cluster.local/ns/plaudit/sa/trainer"
    tokens = parse(f'[[token]]\nname = "trainer"\ncertificate = "{name}"\nscopes = ["generate"]\n')
    assert tokens.of_certificate(["other", name]).name == "trainer"
    assert tokens.of_certificate(["other"]) is None
    assert tokens.of_certificate([]) is None
    assert tokens.of_token(name) is None


def test_quotas_are_the_callers_own_else_the_default():
    default = "[default]\nrequests_per_second = 5\nin_flight = 2\n"
    tokens = parse(default + with_lines("requests_per_second = 0.5", "tokens_per_second = 100") + BOB)
    assert tokens.of_token("a-token").quota == Quota(0.5, 100, 2)
    assert tokens.of_token("b-token").quota == Quota(5, None, 2)
    assert tokens.default == Quota(5, None, 2)


def test_names_of_others_count_for_those_alone_who_speak_for_them():
    alice = parse(ALICE).of_token("a-token")
    assert not alice.speaks_for_others and alice.name_of("x") == alice.name_of(None) == "alice"
    front = parse(token_entry("front", "f-token", ["score"], speaks_for_others=True)).of_token("f-token")
    assert (front.name_of(None), front.name_of(""), front.name_of("x")) == ("front", "front", "front/x")


def test_nobody_may_be_said():
    assert parse("token = []").of_token("a-token") is None


# ---- what is refused ----


def long_file():
    return "".join(token_entry("a", str(number), ["score"]) for number in range(MOST_ENTRIES + 1))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", r"should hold up to 1000 \[\[token\]\] tables, or `token = \[\]` for nobody"),
        ("token = 3", "should hold up to"),
        ("token = [3]", r"token\[0\] should be a table"),
        ("[[token", "isn't TOML"),
        ("\xff".encode("latin-1"), "isn't TOML"),
        ("x = " + "[" * 100_000, "isn't TOML"),
        ("tokn = []", "tokn is unknown; did you mean token?"),
        ("default = 3\ntoken = []", "default should be a table"),
        ("[default]\nrps = 3\n" + ALICE, "default.rps is unknown; use requests_per_second"),
        (with_lines("scope = []"), r"token\[0\].scope is unknown; did you mean scopes?"),
        (ALICE.replace('"alice"', '"a b"'), r"token\[0\].name is 'a b'; use 1 to 100 letters"),
        (ALICE.replace('"alice"', '"a/b"'), "use 1 to 100 letters"),
        (ALICE.replace('"alice"', "3"), "use 1 to 100 letters"),
        (ALICE.replace('"score"', '"scores"'), "'scores' is no scope; did you mean score?"),
        (ALICE.replace('["score", "admin"]', "[]"), r"token\[0\].scopes is \[\]; use a list of score"),
        (ALICE.replace('["score", "admin"]', "[[]]"), r"\[\] is no scope"),
        (ALICE.replace("sha256", "certificate") + ALICE, None),
        (with_lines('certificate = "x"'), "either sha256, of a token, or certificate"),
        ('[[token]]\nname = "a"\nscopes = ["score"]', "either sha256, of a token, or certificate"),
        (ALICE.replace(token_digest("a-token"), "a-token"), "isn't 64 lower-case hex digits"),
        (ALICE + ALICE, r"token\[1\].sha256 is another entry's already"),
        (with_lines('expires = "2027-01-01"'), "use a date without quotes"),
        (with_lines("expires = 10:00:00"), "use a date without quotes"),
        (with_lines('speaks_for_others = "yes"'), "speaks_for_others is 'yes'; use true or false"),
        (with_lines("in_flight = 1.5"), "in_flight is 1.5; use a whole number above 0"),
        (with_lines("in_flight = true"), "in_flight is True; use a whole number"),
        (with_lines("requests_per_second = 0"), "is 0; use a number above 0; without one there is no limit"),
        (with_lines("tokens_per_second = nan"), "is nan; use a number above 0"),
        (with_lines("tokens_per_second = inf"), "is inf; use a number above 0"),
        (with_lines(f"tokens_per_second = 1{'0' * 30}"), "use a number above 0"),
        (ALICE + with_lines("in_flight = 3", entry=token_entry("alice", "x", ["score"])), "share one"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(text, words):
    content = text if isinstance(text, bytes) else text.encode()
    if words is None:
        parse_tokens(content, "tokens.toml")
        return
    with pytest.raises(OptionError, match=r"^tokens\.toml") as caught:
        parse_tokens(content, "tokens.toml")
    with pytest.raises(OptionError, match=words):
        raise caught.value


def test_more_entries_than_a_call_can_be_held_against():
    with pytest.raises(OptionError, match="up to 1000"):
        parse(long_file())


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates() | st.datetimes(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(_KEYS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@given(st.fixed_dictionaries({"token": st.lists(anything)}, optional={"default": anything}))
@settings(max_examples=50)
def test_whatever_a_file_says_it_is_read_or_refused(tables):
    with contextlib.suppress(OptionError):
        _tokens(tables)


@given(st.binary())
@settings(max_examples=100)
def test_whatever_bytes_a_file_holds(content):
    with contextlib.suppress(OptionError):
        parse_tokens(content, "tokens.toml")


# ---- the token of the environment ----


def test_the_shared_token_may_do_everything_and_names_nobody():
    tokens = open_tokens(None, " shared\n").value
    assert tokens.of_token("shared") == Identity("", frozenset(SCOPES))
    assert tokens.of_token("") is None


def test_the_shared_token_stands_beside_the_file(tmp_path):
    file = tmp_path / "tokens.toml"
    file.write_text(ALICE)
    tokens = open_tokens(file, "shared").value
    assert tokens.of_token("shared").name == ""
    assert tokens.of_token("a-token").name == "alice"


# ---- reading again ----


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "tokens.toml"
    path.write_text(ALICE)
    return path


@pytest.fixture
def opened(file):
    return open_tokens(file, None)


def names(opened):
    return {identity.name for identity in opened.value.by_digest.values()}


def test_a_change_holds_at_once_and_no_change_does_nothing(file, opened):
    heard = []
    opened.on_read = heard.append
    opened.refresh()
    assert heard == []
    file.write_text(ALICE + BOB)
    opened.refresh()
    assert names(opened) == {"alice", "bob"}
    file.write_text(BOB)
    opened.refresh()
    assert names(opened) == {"bob"}
    assert heard == [True, True]


def test_a_change_is_seen_that_keeps_time_size_and_inode(file, opened):
    before = file.stat()
    file.write_text(ALICE.replace("alice", "celia"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    opened.refresh()
    assert names(opened) == {"celia"}


@pytest.mark.parametrize("bad", ["", "[[token", "x = 1", None])
def test_a_file_that_becomes_bad_keeps_the_last_good_one_and_says_so(file, opened, bad, caplog):
    heard = []
    opened.on_read = heard.append
    if bad is None:
        file.unlink()
    else:
        file.write_text(bad)
    for _ in range(3):
        opened.refresh()
    assert names(opened) == {"alice"}
    assert heard == [False]
    (record,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert str(file) in record.getMessage() and "the last good version stays" in record.getMessage()
    file.write_text(BOB)
    opened.refresh()
    assert names(opened) == {"bob"}
    assert heard == [False, True]


def test_a_folder_that_kubernetes_swaps_by_a_symlink(tmp_path):
    """As the kubelet does it: the data are in a hidden folder, and a symlink to it is replaced."""
    for version, text in (("..1", ALICE), ("..2", BOB)):
        (tmp_path / version).mkdir()
        (tmp_path / version / "tokens.toml").write_text(text)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / "tokens.toml").symlink_to("..data/tokens.toml")
    opened = open_tokens(tmp_path / "tokens.toml", None)
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").replace(tmp_path / "..data")
    opened.refresh()
    assert names(opened) == {"bob"}


async def test_it_is_looked_at_all_the_time(file, opened, monkeypatch):
    monkeypatch.setattr(reloading, "RELOAD_S", 0.001)
    watching = asyncio.create_task(opened.watch())
    file.write_text(BOB)
    async with asyncio.timeout(10):
        while names(opened) != {"bob"}:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
    watching.cancel()


@pytest.mark.parametrize("content", [None, "[[token"])
def test_a_file_that_is_bad_at_the_start_is_refused(tmp_path, content):
    file = tmp_path / "tokens.toml"
    if content is not None:
        file.write_text(content)
    with pytest.raises(OptionError, match=f"--tokens {file}"):
        open_tokens(file, "shared")


# ---- what makes the lines ----


def test_the_lines_of_a_token_are_those_that_are_read():
    last = date(2030, 5, 6)
    tokens = parse(token_entry("team.a@x-y_z", "t", list(SCOPES), last))
    expected = Identity("team.a@x-y_z", frozenset(SCOPES), datetime(2030, 5, 6, tzinfo=UTC))
    assert tokens.of_token("t") == expected


# ---- the file of tokens that may do everything ----


def test_each_line_of_the_shared_file_may_do_everything(tmp_path):
    shared, file = tmp_path / "token", tmp_path / "tokens.toml"
    shared.write_text("old\n\n  new \r\n")
    file.write_text(ALICE)
    tokens = open_tokens(file, None, shared).value
    for token in ("old", "new"):
        assert tokens.of_token(token) == Identity("", frozenset(SCOPES))
    assert tokens.of_token("a-token").name == "alice"
    assert tokens.of_token("") is None and tokens.of_token("old\n") is None


def test_the_shared_file_is_read_again_and_a_bad_one_changes_nothing(tmp_path, caplog):
    shared = tmp_path / "token"
    shared.write_text("old")
    tokens = open_tokens(None, None, shared)
    shared.write_text("new")
    tokens.refresh()
    assert tokens.value.of_token("new") and tokens.value.of_token("old") is None
    shared.write_text("")
    tokens.refresh()
    assert tokens.value.of_token("new")
    assert f"PLAUDIT_TOKEN_FILE {shared} should hold a token on each line" in caplog.text


@pytest.mark.parametrize("content", [b"", b" \n", b"two words", b"good\nt\xc3\xb6ken", b"\x00"])
def test_a_shared_file_without_a_token_is_an_error_that_shows_nothing_of_it(tmp_path, content):
    shared = tmp_path / "token"
    shared.write_bytes(content)
    with pytest.raises(OptionError, match="in ASCII without spaces") as caught:
        open_tokens(None, None, shared)
    assert "two words" not in str(caught.value) and "good" not in str(caught.value)


def test_a_shared_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OptionError, match=f"PLAUDIT_TOKEN_FILE.*{tmp_path}/token can't be read"):
        open_tokens(None, None, tmp_path / "token")
