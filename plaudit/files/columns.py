"""The columns that a score adds to a row."""

from dataclasses import asdict
from typing import Any

from plaudit.clients import Reward, ScoreOptions


def added_columns(options: ScoreOptions) -> tuple[str, ...]:
    """Their names, in order."""
    added = ["reward", "raw_reward", "token_count"]
    if options.get("truncation", "error") != "error":
        added.append("truncated_tokens")
    if options.get("include_components"):
        added.append("components")
    return tuple(added)


def column_values(reward: Reward, added: tuple[str, ...]) -> dict[str, Any]:
    """Their values for one row; the components are a list of {name, raw_reward, reward}."""
    values = {name: getattr(reward, name) for name in added}
    if "components" in values:
        values["components"] = [asdict(part) for part in reward.components]
    return values
