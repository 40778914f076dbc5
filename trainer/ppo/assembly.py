"""Puts a run together: models, data, services. The one place where roles become clients."""

import logging
from dataclasses import dataclass

import torch

from lm.digests import WeightsDigest, effective_tensors
from lm.loading import LoadedLM, LoadedReward, load_causal_lm, load_reward_model
from lm.placement import Placement, apply_threads, choose_placement, parse_dtype
from lm.tokenizer import tokenizer_sha256
from trainer.config import ModelSection
from trainer.disk import Disk
from trainer.errors import ConfigError
from trainer.evaluate.judges import load_judges
from trainer.identity import source_digests
from trainer.ppo.config import PPOConfig
from trainer.ppo.critic import ValueCritic
from trainer.ppo.heldout import HeldOut
from trainer.ppo.inputs import Inputs
from trainer.ppo.kl import KLController, make_controller
from trainer.ppo.learner import Learner
from trainer.ppo.patience import Patience
from trainer.ppo.preflight import Clients, Found, Needs, ask, check, describe
from trainer.ppo.remote import Form, RemoteReference, RemoteReward, reward_form
from trainer.ppo.remote_policy import RemotePolicy
from trainer.ppo.roles import Roles
from trainer.progress import waiting
from trainer.sampler import derived_seed
from trainer.stopping import StopSignal

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Parts:
    """Everything a run is made of."""

    run_id: str
    """What pushes are made under."""
    policy: LoadedLM
    """The model that learns."""
    inputs: Inputs
    learner: Learner
    critic: ValueCritic
    kl: KLController
    remote_policy: RemotePolicy
    patience: Patience
    """With the services, in the middle of the run."""
    served: torch.dtype
    """What the policy servers compute in, and pushes are in."""
    roles: Roles
    reward_form: Form
    heldout: HeldOut
    digests: dict[str, str]
    """Of what the run is made from, by configuration key."""


def assemble(config: PPOConfig, run_id: str, clients: Clients, stop: StopSignal, disk: Disk) -> Parts:
    """Loads, reads and asks; nothing is trained or pushed. `stop` ends the waits for services.

    Raises ConfigError, DataError, ModelLoadError, ServiceUnreachable, Stopped, JudgeError.
    """
    placement = _placement(config.model, config)
    apply_threads(placement)
    with waiting(f"loading {config.model.path}"):
        policy = load_causal_lm(config.model.path, placement)
    inputs = Inputs.read(config, policy)
    needs = inputs.needs(config, policy)
    critic = _load_critic(config, needs)
    critic_sha256 = WeightsDigest(effective_tensors(critic.model)).hexdigest()
    with waiting("waiting for the services"):
        found = ask(clients, Patience(config.services.connect_timeout, stop))
    check(found, clients, needs)
    for line in (f"learner: {config.model.path}, {placement}", *describe(found, clients, needs)):
        logger.info("%s", line)
    patience = Patience(config.services.patience, stop)
    remote_policy, roles = _roles(config, run_id, clients, found, needs, policy, patience)
    return Parts(
        run_id,
        policy,
        inputs,
        _learner(config, policy, placement, found, inputs),
        ValueCritic(critic, config.critic, _placement(config.critic, config), config.ppo.gamma),
        make_controller(config.ppo.kl_coef, config.ppo.adap_kl_ctrl, config.ppo.target, config.ppo.horizon),
        remote_policy,
        patience,
        parse_dtype(found.dtype),
        roles,
        reward_form(found.reward, needs.tokenizer_sha256),
        HeldOut(
            inputs.heldout,
            roles,
            load_judges(
                config.evaluation.judges,
                placement,
                "evaluation.judges",
                patience,
                config.services.call_timeout,
            ),
            config.evaluation,
            folder=config.run.folder,
            disk=disk,
            seed=config.run.seed,
            tokenizer_sha256=needs.tokenizer_sha256,
        ),
        _digests(config, policy, critic_sha256, found),
    )


def _placement(model: ModelSection, config: PPOConfig) -> Placement:
    return choose_placement(model.device, model.dtype, config.run.threads)


def _load_critic(config: PPOConfig, needs: Needs) -> LoadedReward:
    """The reward model that the critic starts from, if it reads the learner's tokens."""
    path = config.critic.path
    with waiting(f"loading {path}"):
        reward = load_reward_model(path, _placement(config.critic, config))
    if tokenizer_sha256(reward.tokenizer) != needs.tokenizer_sha256:
        raise ConfigError.at(
            "critic.path", f"{path} has another tokenizer than model.path; use one that has the same"
        )
    if reward.context_length < needs.longest:
        raise ConfigError.at(
            "critic.path",
            f"{path} reads {reward.context_length} tokens at most; prompt and response need {needs.longest}",
        )
    return reward


def _roles(
    config: PPOConfig,
    run_id: str,
    clients: Clients,
    found: Found,
    needs: Needs,
    policy: LoadedLM,
    patience: Patience,
) -> tuple[RemotePolicy, Roles]:
    remote_policy = RemotePolicy(
        clients.fleet,
        config.sampling,
        patience,
        run_id,
        lambda: effective_tensors(policy.model),
        parse_dtype(found.dtype),
    )
    reward = RemoteReward(
        clients.reward, found.reward, clients.reward_endpoint, patience, needs.tokenizer_sha256
    )
    reference = RemoteReference(
        clients.reference, found.reference, clients.reference_endpoint, patience, config.sampling.temperature
    )
    return remote_policy, Roles(remote_policy, reward, reference)


def _learner(
    config: PPOConfig, policy: LoadedLM, placement: Placement, found: Found, inputs: Inputs
) -> Learner:
    return Learner(
        policy,
        config.ppo,
        trainable=config.model.trainable,
        placement=placement,
        generator_dtype=parse_dtype(found.dtype),
        temperature=config.sampling.temperature,
        seed=derived_seed(config.run.seed, "minibatches"),
        pretraining=inputs.pretraining,
    )


def _digests(config: PPOConfig, policy: LoadedLM, critic_sha256: str, found: Found) -> dict[str, str]:
    """What may not change when a run is resumed; its place may, so services go by their weights."""
    files = {
        "data.prompts": config.data.prompts,
        "data.pretraining": config.data.pretraining,
        "evaluation.prompts": config.evaluation.prompts,
    }
    return {
        **source_digests(policy, files),
        "critic.path": critic_sha256,
        "services.reference": found.reference.model.weights_sha256,
        "services.reward": found.reward.model.weights_sha256,
    }
