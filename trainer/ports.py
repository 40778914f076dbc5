"""How the command line says that the trainer's ports are to be reached."""

from services.rpc.options import Security
from trainer.config import RunOptions


def security(told: RunOptions) -> Security:
    """Who may reach TrainerService and metrics, and over what."""
    return Security(
        told.tls_cert,
        told.tls_key,
        told.tls_client_ca,
        told.tokens,
        told.oidc_issuer,
        told.oidc_audience,
        told.oidc_jwks,
    )
