"""What gRPC says of a connection that couldn't be secured, as what is wrong and what to do."""

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
    (
        "Socket closed",
        "the server hung up at once; if it speaks TLS, give tls_ca (PLAUDIT_TLS_CA), and if it asks for a "
        "certificate, tls_cert and tls_key of a CA that it trusts (PLAUDIT_TLS_CERT, PLAUDIT_TLS_KEY)",
    ),
)
"""By what gRPC's words hold; the first that fits counts."""


def handshake_failure(words: str, target: str) -> str | None:
    """Why the connection to `target`, host:port, isn't secure; None if it is about something else."""
    host = target.rpartition(":")[0]
    return next((reason.format(host=host) for part, reason in _REASONS if part in words), None)
