"""Certificates made for a test, as files that a server or a client is given."""

import ssl
from datetime import UTC, datetime, timedelta

import trustme
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from services.rpc.options import Security

SPIFFE = "spiffe://cluster.local/ns/plaudit/sa/trainer"


class Pems:
    """A CA and certificates of it, as files of a folder."""

    def __init__(self, folder):
        self.folder = folder
        self.ca = trustme.CA()
        self.ca_file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(self.ca_file)

    def write(self, name, *identities, **how):
        """Paths of a certificate and its key."""
        if any("://" in identity for identity in identities):
            return self._write(name, *self._issue_for_uri(*identities))
        made = self.ca.issue_cert(*identities, **how)
        return self._write(
            name, b"".join(pem.bytes() for pem in made.cert_chain_pems), made.private_key_pem.bytes()
        )

    def _write(self, name, cert, key):
        paths = self.folder / f"{name}.pem", self.folder / f"{name}.key"
        for path, content in zip(paths, (cert, key), strict=True):
            new = path.with_suffix(".new")
            new.write_bytes(content)
            new.replace(path)
        return paths

    def _issue_for_uri(self, uri):
        """trustme makes certificates for hosts only."""
        issuer = x509.load_pem_x509_certificate(self.ca.cert_pem.bytes())
        signer = serialization.load_pem_private_key(self.ca.private_key_pem.bytes(), None)
        key, now = ec.generate_private_key(ec.SECP256R1()), datetime.now(UTC)
        cert = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([]))
            .issuer_name(issuer.subject)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(days=1))
            .not_valid_after(now + timedelta(days=1))
            .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=True)
            .sign(signer, hashes.SHA256())
        )
        pem = serialization.Encoding.PEM
        pkcs8, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        return cert.public_bytes(pem), key.private_bytes(pem, pkcs8, plain)


def security(pems, name="server", **more):
    return Security(pems.folder / f"{name}.pem", pems.folder / f"{name}.key", **more)


def serial(address):
    """What tells one certificate of a server from another."""
    host, _, port = address.rpartition(":")
    return ssl.get_server_certificate((host, int(port)), timeout=10)
