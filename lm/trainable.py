"""Which parameters a stage trains."""

import re
from collections.abc import Sequence

from torch import nn
from transformers import PreTrainedModel

from lm.errors import InputError

Rule = str | Sequence[str]
""""all", "top:N" (the last N layers and the final norm), or regular expressions over parameter names."""


def select_parameters(model: PreTrainedModel, rule: Rule, field: str = "trainable") -> list[str]:
    """Sets `requires_grad` by the rule and returns the trainable names, in the model's order.

    A scalar head (`score`) always trains. Raises InputError for a rule that selects nothing or isn't one.
    """
    names = [name for name, _ in model.named_parameters()]
    chosen = set(_matching(model, names, rule, field)) | {n for n in names if n.startswith("score.")}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [name for name in names if name in chosen]


def _matching(model: PreTrainedModel, names: list[str], rule: Rule, field: str) -> list[str]:
    if rule == "all":
        return names
    if isinstance(rule, str):
        match = re.fullmatch(r"top:(\d+)", rule)
        if match is None:
            raise InputError(field, f'{rule!r} is no rule; use "all", "top:N" or a list of patterns')
        return _top(model, names, int(match[1]), field)
    for pattern in rule:
        if not any(re.search(pattern, name) for name in names):
            raise InputError(field, f"pattern {pattern!r} matches no parameter, such as {names[-1]!r}")
    return [name for name in names if any(re.search(pattern, name) for pattern in rule)]


def _top(model: PreTrainedModel, names: list[str], count: int, field: str) -> list[str]:
    """The last `count` layers and what stands behind them in the body: the final norm."""
    path, layers = _layers(model, field)
    if not 1 <= count <= len(layers):
        raise InputError(field, f"top:{count} is not in top:1..top:{len(layers)}, the depth of the model")
    first = names.index(next(n for n in names if n.startswith(f"{path}.{len(layers) - count}.")))
    head = model.get_output_embeddings()
    outside = {id(p) for p in head.parameters()} if head is not None else set()
    parameters = dict(model.named_parameters())
    return [name for name in names[first:] if id(parameters[name]) not in outside]


def _layers(model: PreTrainedModel, field: str) -> tuple[str, nn.ModuleList]:
    """The body's list of layers: the module list as long as the configuration says."""
    depth = model.config.get_text_config().num_hidden_layers
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == depth:
            return path, module
    raise InputError(field, 'this architecture has no list of layers; use "all" or a list of patterns')
