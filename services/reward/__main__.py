"""`python -m services.reward`: serves a reward model."""

from services.packages import brought_by

with brought_by("serve"):
    from services.reward.service import reward_service
    from services.rpc.command import run_service

if __name__ == "__main__":
    run_service(
        "reward", 50052, reward_service, "Hugging Face folder or hub id, or a .toml file of several models."
    )
