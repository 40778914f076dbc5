"""`python -m services.gateway`: serves the reward service over HTTP."""

import sys

from services.packages import brought_by

with brought_by("gateway"):
    from services.gateway.command import run_command

if __name__ == "__main__":
    with brought_by("gateway"):  # FastAPI is imported when the arguments are known to be right
        sys.exit(run_command(sys.argv[1:]))
