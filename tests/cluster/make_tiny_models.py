"""Makes what the pods serve and read: `python make_tiny_models.py FOLDER`.

FOLDER/sft  FOLDER/prompts.jsonl  FOLDER/reward    reward is made last: others wait for it
"""

import json
import sys
from pathlib import Path

import torch
from tiny_models import CORPUS, tiny_llama, tiny_tokenizer

from lm.heads import reward_model_from
from lm.loading import save_model


def main(folder):
    tokenizer = tiny_tokenizer()
    policy = tiny_llama(tokenizer)
    save_model(policy, tokenizer, folder / "sft")
    starts = sorted({text[:end] for text in CORPUS for end in range(3, len(text))})
    lines = (json.dumps({"prompt": start}) + "\n" for start in starts)
    (folder / "prompts.jsonl").write_text("".join(lines), encoding="utf-8")
    generator = torch.Generator().manual_seed(1)
    reward = reward_model_from(policy, None, tokenizer.pad_token_id, generator)
    reward.config.reward_mean, reward.config.reward_std = 0.0, 1.0
    reward.config.plaudit_pair_format, reward.config.append_eos = "concatenate", True
    save_model(reward, tokenizer, folder / "making-reward")
    (folder / "making-reward").rename(folder / "reward")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
