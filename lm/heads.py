"""Scalar heads: a reward model out of a language model."""

import math

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification, PreTrainedModel

from lm.errors import InputError, ModelLoadError


def init_scalar_head(head: nn.Linear, generator: torch.Generator) -> None:
    """Normal weights with std 1/sqrt(d + 1), bias 0 (Huang et al. 2023, detail R2)."""
    std = 1.0 / math.sqrt(head.in_features + 1)
    with torch.no_grad():
        weight = torch.randn(head.weight.shape, generator=generator, dtype=torch.float32) * std
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.zero_()


def reward_model_from(
    policy: PreTrainedModel, layers: int | None, pad_token_id: int, generator: torch.Generator
) -> PreTrainedModel:
    """The policy's body, its first `layers` layers (all for None), under a new scalar head.

    In Hugging Face's sequence-classification format (`num_labels=1`), so it saves and loads like any
    other reward model. The unembedding is dropped (Ouyang et al. 2022, section 3.5). The final norm is
    kept. The body is copied, not shared; it is on the policy's device.
    Raises InputError for a depth the model hasn't, ModelLoadError for an architecture without such a head.
    """
    config = type(policy.config).from_dict(policy.config.to_dict())
    depth = config.num_hidden_layers
    if layers is not None and not 1 <= layers <= depth:
        raise InputError("layers", f"{layers} is not in 1..{depth}, the depth of the model")
    config.num_hidden_layers = layers or depth
    if getattr(config, "layer_types", None):
        config.layer_types = config.layer_types[: config.num_hidden_layers]
    config.num_labels = 1
    config.pad_token_id = pad_token_id
    try:
        reward: PreTrainedModel = AutoModelForSequenceClassification.from_config(config, dtype=policy.dtype)
    except ValueError as error:
        raise ModelLoadError(f"no scalar head for this architecture: {error}") from error
    kept = {
        name: tensor
        for name, tensor in policy.base_model.state_dict().items()
        if name in reward.base_model.state_dict()
    }
    reward.base_model.load_state_dict(kept, strict=True)
    head = reward.get_submodule("score")
    if not isinstance(head, nn.Linear):
        raise ModelLoadError(f"the scalar head of {config.model_type!r} isn't one linear layer")
    init_scalar_head(head, generator)
    reward.eval()
    nn.Module.to(reward, policy.device)  # the method's own types are lost in a wrapper of transformers
    return reward
