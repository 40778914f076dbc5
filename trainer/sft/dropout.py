"""Dropout by kind, where the architecture has it; everything else of it off."""

from torch import nn
from transformers import PreTrainedModel

from trainer.errors import ConfigError

# Names that architectures give them in config.json.
NAMES = {
    "residual_dropout": ("resid_pdrop", "resid_dropout", "residual_dropout", "hidden_dropout"),
    "attention_dropout": ("attn_pdrop", "attention_dropout"),
}


def with_dropout(model: PreTrainedModel, rates: dict[str, float]) -> PreTrainedModel:
    """`model` built anew with these rates ("residual_dropout", "attention_dropout"), in training mode.

    The same weights, not copied; its configuration stays as it was, so that it saves unchanged.
    Without any rate above 0 it is `model` itself in evaluation mode.
    Raises ConfigError if the architecture has no such dropout.
    """
    asked = {_config_name(model, key): rate for key, rate in rates.items() if rate > 0}
    if not asked:
        model.eval()
        return model
    config = type(model.config).from_dict(model.config.to_dict())
    for name, value in config.to_dict().items():
        if ("dropout" in name or "pdrop" in name) and isinstance(value, float):
            setattr(config, name, 0.0)
    for name, rate in asked.items():
        setattr(config, name, rate)
    fresh: PreTrainedModel = type(model)(config)
    fresh.load_state_dict(model.state_dict(), assign=True)
    fresh.tie_weights()
    fresh.config = model.config
    fresh.train()
    nn.Module.to(fresh, model.device)  # its buffers: what isn't in the state dict was made on the CPU
    return fresh


def _config_name(model: PreTrainedModel, key: str) -> str:
    found = [name for name in NAMES[key] if hasattr(model.config, name)]
    if not found:
        other = next((o for o, names in NAMES.items() if any(hasattr(model.config, n) for n in names)), None)
        hint = f"; use sft.{other}" if other else ""
        raise ConfigError.at(f"sft.{key}", f"architecture {model.config.model_type!r} has none{hint}")
    return found[0]
