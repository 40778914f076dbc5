"""`python -m services.policy`: serves the policy and takes its new weights."""

from services.policy.service import policy_service
from services.rpc.command import run_service

if __name__ == "__main__":
    run_service("policy", 50051, policy_service)
