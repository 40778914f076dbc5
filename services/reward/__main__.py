"""`python -m services.reward`: serves a reward model."""

from services.packages import brought_by

with brought_by("serve"):
    from typer.core import TyperOption

    from lm.roots import Roots
    from services.reward.service import reward_service
    from services.rpc.arguments import ROOTS_HELP, ROOTS_KEY
    from services.rpc.command import ModelOptions, run_service
    from services.rpc.server import Service

_given: list[str | None] = []
ROOTS = TyperOption(
    param_decls=["--roots"],
    metavar="DIR:DIR",
    envvar=ROOTS_KEY,
    expose_value=False,
    callback=lambda context, option, text: _given.append(text),
    help=ROOTS_HELP,
)


def build(options: ModelOptions) -> Service:
    """The service with the roots of the command line. Raises InputError."""
    return reward_service(options, roots=Roots.parse(_given[-1]))


if __name__ == "__main__":
    model_help = "Hugging Face folder or hub id, or a .toml file of several models."
    run_service("reward", 50052, build, model_help, more=[ROOTS])
