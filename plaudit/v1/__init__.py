"""Generated from protos/plaudit/v1 by `make protos`; do not edit the modules beside this one."""
