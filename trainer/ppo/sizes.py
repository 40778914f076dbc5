"""What a configuration comes to: the sizes in effect, so that "the same batch" means the same (TRL#2596)."""

import torch

from trainer.examples import LENGTH_COLUMNS, length_row
from trainer.ppo.assembly import Parts
from trainer.ppo.config import PPOConfig
from trainer.progress import show_table


def show_sizes(config: PPOConfig, parts: Parts) -> None:
    """Prints token statistics and effective sizes."""
    rows = [length_row("prompts", [len(prompt.token_ids) for prompt in parts.inputs.prompts])]
    if parts.inputs.heldout:
        rows.append(
            length_row("held-out prompts", [len(prompt.token_ids) for prompt in parts.inputs.heldout])
        )
    show_table("Prompts", LENGTH_COLUMNS, rows)
    show_table("Effective sizes", ("", ""), effective_sizes(config, parts))


def effective_sizes(config: PPOConfig, parts: Parts) -> list[tuple[str, str]]:
    """(what, how much) lines."""
    ppo, prompts = config.ppo, len(parts.inputs.prompts)
    minibatch = ppo.batch_size / ppo.num_mini_batches
    updates = ppo.num_mini_batches * ppo.num_ppo_epochs
    steps = config.total_steps
    episodes = steps * ppo.batch_size
    parameters = list(parts.policy.model.parameters())
    trained = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    return [
        ("prompts", f"{prompts}, dropped: {parts.inputs.dropped}"),
        ("batch", f"{ppo.batch_size} episodes in {ppo.num_mini_batches} minibatches of {minibatch:g}"),
        ("updates", f"{updates} a step ({ppo.num_ppo_epochs} epochs), {updates * steps} in all"),
        ("steps", f"{steps}, {episodes} episodes, {episodes / prompts:.3g} passes over the prompts"),
        ("requests", f"{-(-ppo.batch_size // config.sampling.request_size)} of up to "
                     f"{config.sampling.request_size} prompts a step"),
        ("old log-probabilities", "the generator's" if parts.learner.trusts_generator else "the learner's"),
        ("reward asked in", parts.reward_form),
        ("policy parameters trained", f"{trained:,} of {sum(map(torch.Tensor.numel, parameters)):,}"),
    ]  # fmt: skip
