"""`python -m services.reference`: serves a frozen reference model."""

from services.packages import brought_by

with brought_by("serve"):
    from services.reference.service import reference_service
    from services.rpc.command import run_service

if __name__ == "__main__":
    run_service("reference", 50053, reference_service)
