"""A server that hangs up: what can be known is told, and nothing is said of TLS that may be otherwise."""

import contextlib
import socket
import struct
import threading

import pytest

from plaudit import NotSecure, RewardClient, Unavailable, Unreachable
from plaudit.clients.handshakes import handshake_failure, unreachable

OPENING = "connections to all backends failing; last error: UNAVAILABLE: ipv4:127.0.0.1:4711: "
EMPTY_SETTINGS = bytes.fromhex("000000040000000000")
HANG_UPS = ["Socket closed", "recvmsg:Connection reset by peer (104)"]


@pytest.mark.parametrize("end", HANG_UPS)
def test_without_tls_a_server_may_hang_up_for_any_reason(end):
    assert handshake_failure(OPENING + end, "127.0.0.1:4711", has_tls=False) is None
    words = unreachable(OPENING + end, has_tls=False)
    assert words.startswith("the server hung up while the connection was opened; it may be going down")
    assert "or speak TLS: then give tls_ca (PLAUDIT_TLS_CA)" in words


@pytest.mark.parametrize("end", HANG_UPS)
def test_behind_a_good_handshake_it_is_the_certificate(end):
    words = handshake_failure(OPENING + end, "127.0.0.1:4711", has_tls=True)
    assert "give tls_cert and tls_key of a CA that it trusts" in words


@pytest.mark.parametrize("end", HANG_UPS)
@pytest.mark.parametrize("words", ["Handshake read failed ({})", "Stream removed ({})"])
@pytest.mark.parametrize("has_tls", [False, True])
def test_within_a_handshake_or_a_call_it_is_neither(words, end, has_tls):
    """The one has told nothing yet, and the other was secure."""
    words = words.format(end) if words.startswith("Stream") else OPENING + words.format(end)
    if has_tls or words.startswith("Stream"):
        assert handshake_failure(words, "127.0.0.1:4711", has_tls) is None
        assert end.split(":")[-1].strip(")") in unreachable(words, has_tls)


def test_what_else_ends_a_connection_is_told_in_its_own_words():
    words = f"{OPENING}Failed to connect to remote host: connect: Connection refused (111)"
    assert unreachable(words, has_tls=False) == "Connection refused (111)"
    assert handshake_failure(words, "127.0.0.1:4711", has_tls=True) is None


# --- with sockets ---


@contextlib.contextmanager
def listening(treat):
    """The address of a listener that does `treat` with each connection, and then closes it."""

    def serve():
        with contextlib.suppress(OSError):
            while True:
                with listener.accept()[0] as connection:
                    treat(connection)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def hang_up(connection):
    """As a proxy without a server behind it, and as a server that gets plaintext and wants TLS."""
    connection.recv(100)


def hang_up_in_mid_call(connection):
    connection.sendall(EMPTY_SETTINGS)
    received = b""
    while b"Score" not in received and (more := connection.recv(4096)):
        received += more
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # by RST


def ended(treat):
    with listening(treat) as address, RewardClient(address, timeout=20) as client:
        with pytest.raises(Unavailable) as caught:
            client.score([("a", "b")])
        return caught.value


def test_a_server_that_hangs_up_at_once_is_not_said_to_be_insecure():
    error = ended(hang_up)
    assert isinstance(error, Unreachable)
    assert not isinstance(error, NotSecure)
    assert "it may be going down, or be a proxy that reaches nobody, or speak TLS" in str(error)


def test_a_call_that_is_cut_is_not_said_to_be_insecure():
    error = ended(hang_up_in_mid_call)
    assert not isinstance(error, NotSecure)
    assert "TLS" not in str(error)
