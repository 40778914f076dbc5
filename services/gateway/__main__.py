"""`python -m services.gateway`: serves the reward service over HTTP."""

import sys

from services.gateway.command import run_command

if __name__ == "__main__":
    sys.exit(run_command(sys.argv[1:]))
