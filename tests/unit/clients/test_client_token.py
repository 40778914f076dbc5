"""The token of a client: of the environment or an argument, and of a file that changes."""

import threading

import pytest
from scripted_servers import SCORED

from plaudit import InvalidArgument, RewardClient
from plaudit.clients import token as client_token
from plaudit.clients.token import Token, open_token


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    monkeypatch.delenv("PLAUDIT_TOKEN", raising=False)
    monkeypatch.delenv("PLAUDIT_TOKEN_FILE", raising=False)
    return monkeypatch


@pytest.fixture
def at_once(monkeypatch):
    """The file is looked at by every call."""
    monkeypatch.setattr(client_token, "CHECK_S", 0.0)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "token"
    path.write_text("first\n")
    return path


def sent(server):
    return [heard.metadata.get("authorization") for heard in server.heard]


@pytest.mark.parametrize("where", ["argument", "environment"])
def test_the_first_line_of_the_file_goes_with_every_call(serve_reward, score, environment, file, where):
    file.write_text("new \nold\n")
    if where == "environment":
        environment.setenv("PLAUDIT_TOKEN_FILE", str(file))
    server = serve_reward(SCORED)
    score(server.address, client={"token_file": file} if where == "argument" else {})
    assert sent(server) == ["Bearer new"]


def test_an_argument_counts_more_than_the_environment(serve_reward, score, environment, file):
    server = serve_reward(SCORED, SCORED, SCORED)
    environment.setenv("PLAUDIT_TOKEN_FILE", str(file))
    score(server.address, client={"token": "given"})
    score(server.address, client={"token": ""})
    environment.delenv("PLAUDIT_TOKEN_FILE")
    environment.setenv("PLAUDIT_TOKEN", "of the environment")
    score(server.address, client={"token_file": file})
    assert sent(server) == ["Bearer given", None, "Bearer first"]


def test_two_at_a_time_are_refused_by_their_names(environment, file):
    with pytest.raises(InvalidArgument, match=r"^token: and token_file are both given"):
        RewardClient("127.0.0.1:1", token="a", token_file=file)
    environment.setenv("PLAUDIT_TOKEN", "secret")
    environment.setenv("PLAUDIT_TOKEN_FILE", str(file))
    with pytest.raises(InvalidArgument, match="PLAUDIT_TOKEN and PLAUDIT_TOKEN_FILE are both set") as caught:
        RewardClient("127.0.0.1:1")
    assert "secret" not in str(caught.value) and "first" not in str(caught.value)
    environment.setenv("PLAUDIT_TOKEN", "")
    assert open_token(None, None).now() == "first", "what is empty isn't set"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "should hold a token on its first line"),
        (b"\nsecond", "should hold a token on its first line"),
        (b"two words", "should hold a token on its first line"),
        (b"\x00", "should hold a token on its first line"),
        (b"t\xc3\xb6ken", "other characters than ASCII"),
    ],
)
def test_a_file_without_a_token_is_refused_and_nothing_of_it_shown(file, content, words):
    file.write_bytes(content)
    with pytest.raises(InvalidArgument, match=words) as caught:
        RewardClient("127.0.0.1:1", token_file=file)
    assert f"token_file: {file}" in str(caught.value)
    assert "words" not in str(caught.value).replace(words, "")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidArgument, match=r"token_file: .*/token can't be read: No such file"):
        RewardClient("127.0.0.1:1", token_file=tmp_path / "token")


def test_a_token_of_a_file_does_not_go_over_the_network_in_plaintext_either(file):
    with pytest.raises(InvalidArgument, match=r"would go to far.example.org:1 for all on the way"):
        RewardClient("far.example.org:1", token_file=file)
    RewardClient("far.example.org:1", token_file=file, insecure=True).close()


def test_a_client_that_is_open_shows_the_new_token(serve_reward, file, at_once):
    server = serve_reward(*[SCORED] * 4)
    with RewardClient(server.address, token_file=file) as client:
        for content in ("first", "second", "", "third"):  # an empty one leaves things as they are
            file.write_text(content)
            client.score([("the film", " is good")])
        file.unlink()
        client.score([("the film", " is good")])
    assert sent(server) == [f"Bearer {each}" for each in ("first", "second", "second", "third", "third")]


def test_an_async_client_and_what_it_has_threads_do_show_the_same(file, at_once):
    async def tokens():
        from plaudit import AsyncRewardClient

        async with AsyncRewardClient("127.0.0.1:1", token_file=file) as client:
            file.write_text("second")
            return client._token.now(), client._streaming._token.now()

    import asyncio

    assert asyncio.run(tokens()) == ("second", "second")


def test_the_file_is_looked_at_every_ten_seconds_only(file, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(client_token.time, "monotonic", lambda: now[0])
    token = Token(file=file)
    file.write_text("second")
    for seconds, expected in ((9.9, "first"), (0.1, "second")):
        now[0] += seconds
        assert token.now() == expected


def test_threads_may_ask_while_the_file_changes(file, at_once):
    token, seen = Token(file=file), set()
    threads = [threading.Thread(target=lambda: seen.update(token.now() for _ in range(200))) for _ in "abc"]
    for each in threads:
        each.start()
    for number in range(50):
        new = file.with_suffix(".new")
        new.write_text(f"token-{number}")
        new.replace(file)
    for each in threads:
        each.join()
    assert seen <= {"first", *(f"token-{number}" for number in range(50))}
    assert token.now() == "token-49"


def test_no_token_is_in_a_repr(file):
    assert repr(RewardClient("127.0.0.1:1", token_file=file)) == "RewardClient(127.0.0.1:1)"
    assert "first" not in repr(Token(file=file))
