"""Run by a Python that has verl (test_adapters_verl.py): prints what it makes of our functions, as JSON.

python verl_loop.py MODEL CASES.json WAYS.json

MODEL is the policy's folder, for its tokenizer. A case is a response and its extra_info. Ways are named:
each is "workers" (verl's RewardLoopManager with its Ray actors), "batch" (its BatchRewardManager) or
"manager" (the configured reward manager, all cases at once), with overrides in verl's own words.
"""

import asyncio
import json
import sys
from pathlib import Path

import numpy as np
import torch
import verl
from hydra import compose, initialize_config_dir
from transformers import AutoTokenizer
from verl import DataProto
from verl.experimental.reward_loop import RewardLoopManager, migrate_legacy_reward_impl
from verl.trainer.ppo.reward import get_custom_reward_fn, load_reward_manager
from verl.workers.reward_manager import BatchRewardManager


def configuration(model, overrides):
    folder = Path(verl.__file__).parent / "trainer/config"
    with initialize_config_dir(str(folder), version_base=None):
        config = compose("ppo_trainer", [f"actor_rollout_ref.model.path={model}", *overrides])
    return migrate_legacy_reward_impl(config)


def rollout(tokenizer, cases):
    """The cases as verl's rollout leaves them: prompts padded on the left, responses on the right."""
    responses = [tokenizer(case["response"])["input_ids"] + [tokenizer.eos_token_id] for case in cases]
    width = max(map(len, responses))
    padded = [ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids in responses]
    mask = [[0, 1] + [1] * len(ids) + [0] * (width - len(ids)) for ids in responses]
    return DataProto.from_dict(
        tensors={
            "prompts": torch.tensor([[tokenizer.pad_token_id, 3]] * len(cases)),
            "responses": torch.tensor(padded),
            "attention_mask": torch.tensor(mask),
        },
        non_tensors={
            "data_source": objects("films" for _ in cases),
            "reward_model": objects({"ground_truth": ""} for _ in cases),
            "extra_info": objects(dict(case["extra_info"]) for case in cases),
        },
    )


def objects(values):
    values = list(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def by_workers(config, tokenizer, data):
    import ray

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        scored = RewardLoopManager(config).compute_rm_score(data)
    finally:
        ray.shutdown()
    return scored.batch["rm_scores"].sum(-1), scored.non_tensor_batch["empty_response"]


def by_manager(config, tokenizer, data):
    async def run():
        manager = load_reward_manager(config, tokenizer)
        return await asyncio.gather(*(manager.run_single(data[i : i + 1]) for i in range(len(data))))

    scored = asyncio.run(run())
    extra = [each["reward_extra_info"] for each in scored]
    return [each["reward_score"] for each in scored], [each.get("empty_response") for each in extra]


def by_batch(config, tokenizer, data):
    scored = BatchRewardManager(tokenizer, 0, get_custom_reward_fn(config))(data, return_dict=True)
    return scored["reward_tensor"].sum(-1), scored["reward_extra_info"]["empty_response"]


def outcome(way, *arguments):
    try:
        rewards, empty = way(*arguments)
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}
    return {"rewards": [float(reward) for reward in rewards], "empty": list(empty)}


if __name__ == "__main__":
    model, cases, ways = sys.argv[1], *(json.loads(Path(path).read_text()) for path in sys.argv[2:])
    tokenizer = AutoTokenizer.from_pretrained(model)
    by = {"workers": by_workers, "batch": by_batch, "manager": by_manager}
    outcomes = {}
    for name, (kind, overrides) in ways.items():
        config = configuration(model, overrides)
        outcomes[name] = outcome(by[kind], config, tokenizer, rollout(tokenizer, cases))
    print(json.dumps(outcomes))
