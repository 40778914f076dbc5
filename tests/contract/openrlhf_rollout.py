"""Run by a Python that has openrlhf (test_adapters_openrlhf.py): prints what it makes of a reward, as JSON.

python openrlhf_rollout.py REMOTE_URL MODEL CASES.json

OpenRLHF's own executor fetches the rewards of all cases at once, as its rollout workers do, and its own code
makes experiences of them. Only what needs a GPU is left out: the package's __init__ files, which import
deepspeed, and vLLM, whose answers are the cases.
"""

import asyncio
import json
import sys
import types
from importlib.util import find_spec
from pathlib import Path
from unittest.mock import MagicMock

from transformers import AutoTokenizer

ROOT = Path(find_spec("openrlhf").origin).parent
for package in ("utils", "trainer", "trainer.ppo_utils"):
    module = types.ModuleType(f"openrlhf.{package}")
    module.__path__ = [str(ROOT / package.replace(".", "/"))]
    sys.modules[module.__name__] = module
for needs_gpu in ("vllm", "openrlhf.trainer.ray", "openrlhf.trainer.ray.vllm_engine"):
    sys.modules[needs_gpu] = MagicMock()

from openrlhf.trainer.ppo_utils.samples_generator import SamplesGenerator  # noqa: E402
from openrlhf.utils.agent import SingleTurnAgentExecutor  # noqa: E402


class Engine:
    """Answers as vLLM does, with the ids of a text that is known before."""

    def __init__(self, tokenizer, response):
        ids = tokenizer(response)["input_ids"] + [tokenizer.eos_token_id]
        output = types.SimpleNamespace(token_ids=ids, finish_reason="stop", logprobs=None)
        self.answer = types.SimpleNamespace(outputs=[output])

    async def generate(self, *_, **__):
        return self.answer


async def roll_out(remote_url, tokenizer, cases):
    executor = SingleTurnAgentExecutor(remote_url.split(","))
    sampling = types.SimpleNamespace(max_tokens=32, logprobs=None)
    return await asyncio.gather(
        *(
            executor.execute(
                case["prompt"], case["label"], sampling, 128, tokenizer, Engine(tokenizer, case["response"])
            )
            for case in cases
        )
    )


def seen(experience):
    """What training sees of a reward."""
    if experience.rewards is None:
        return None
    return {
        "reward": experience.rewards.item(),
        "score": experience.scores[0].item(),
        "logged": {name: experience.info[name].item() for name in ("reward", "score")},
        "empty": experience.info["empty_response"].item(),
    }


if __name__ == "__main__":
    remote_url, model, cases = sys.argv[1:]
    tokenizer = AutoTokenizer.from_pretrained(model)
    outputs = asyncio.run(roll_out(remote_url, tokenizer, json.loads(Path(cases).read_text())))
    generator = SamplesGenerator.__new__(SamplesGenerator)
    made = [generator._process_response_into_experience(output, max_len=128) for output in outputs]
    print(json.dumps([seen(experience) for experience in made]))
