"""Generated from third_party/inference by `make protos`; do not edit the modules beside this one."""
