"""`python -m services.policy`: serves the policy and takes its new weights."""

from services.packages import brought_by

with brought_by("serve"):
    from typer.core import TyperOption

    from services.policy.service import policy_service
    from services.rpc.command import ModelOptions, run_service
    from services.rpc.server import Service

_roots: list[str] = []
WEIGHTS_ROOT = TyperOption(
    param_decls=["--weights-root"],
    metavar="DIR",
    multiple=True,
    expose_value=False,
    callback=lambda context, option, folders: _roots.extend(folders),
    help="Folder of safetensors files that LoadFromUri may load; again for each. None without it.",
)


def build(options: ModelOptions) -> Service:
    """The service with the weights roots of the command line."""
    return policy_service(options, weights_roots=_roots)


if __name__ == "__main__":
    run_service("policy", 50051, build, more=[WEIGHTS_ROOT])
