"""The servers: `python -m services.policy`, `.reward`, `.reference`."""
