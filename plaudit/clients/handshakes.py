"""What gRPC says of a connection that couldn't be opened, as what is wrong and what to do."""

_REASONS = (
    ("certificate has expired", "the server's certificate has expired; the server needs a new one"),
    ("certificate is not yet valid", "the server's certificate isn't valid yet; are both clocks right?"),
    (
        "Hostname Verification Check failed",
        "the server's certificate is for another name than {host}; use one that is in it, or give tls_name",
    ),
    (
        "CERTIFICATE_VERIFY_FAILED",
        "the server's certificate is of no CA in tls_ca (PLAUDIT_TLS_CA); give the file of the right one",
    ),
    (
        "WRONG_VERSION_NUMBER",
        "the server speaks plaintext; leave tls_ca (PLAUDIT_TLS_CA) out, or give the server --tls-cert",
    ),
)
"""By what gRPC's words hold; the first that fits counts."""
_HUNG_UP_ON_TLS = (
    "the server hung up as soon as the connection was encrypted; if it asks for a certificate, give tls_cert "
    "and tls_key of a CA that it trusts (PLAUDIT_TLS_CERT, PLAUDIT_TLS_KEY)"
)
_HUNG_UP = (
    "the server hung up while the connection was opened; it may be going down, or be a proxy that reaches "
    "nobody, or speak TLS: then give tls_ca (PLAUDIT_TLS_CA)"
)


def handshake_failure(words: str, target: str, has_tls: bool) -> str | None:
    """Why the connection to `target`, host:port, isn't secure; None if it is about something else.

    A server that refuses a client's certificate says so by hanging up. Without TLS that may have any reason.
    """
    host = target.rpartition(":")[0]
    if has_tls and _hung_up(words) and "Handshake read failed" not in words:
        return _HUNG_UP_ON_TLS
    return next((reason.format(host=host) for part, reason in _REASONS if part in words), None)


def unreachable(words: str, has_tls: bool) -> str:
    """Why there is no connection otherwise.

    Of "failed to connect to all addresses; last error: …: Connection refused" it is the last part.
    """
    return _HUNG_UP if _hung_up(words) and not has_tls else words.rsplit(": ", 1)[-1].strip("[]")


def _hung_up(words: str) -> bool:
    """Whether it was before the connection could be used; not the end of one that a call was on."""
    closed = "Socket closed" in words or "recvmsg:Connection reset" in words
    return closed and "last error" in words
