"""docs/data-work.md as it stands: its blocks run one after the other, on a real service."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from adapter_cases import rewards, serving

PAGE = (Path(__file__).parents[2] / "docs/data-work.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", PAGE, re.MULTILINE | re.DOTALL)
ANSWERS = [{"prompt": "the film", "response": f" number {number}"} for number in range(11)]
EMPTY = {"prompt": "the film", "response": ""}


@pytest.fixture(scope="module")
def address(tiny_reward):
    with serving(tiny_reward) as address:
        yield address


TELL = """
print(json.dumps({
    "reward": list(scored["reward"]), "why_not": list(scored["why_not"]), "failed": list(failed["response"]),
    "better_half": list(better_half["reward"]), "prompts": prompts, "best_of_n": best_of_n,
    "preferences": preferences, "table": table["reward"].tolist(),
}))
"""


@pytest.fixture
def page(address, tmp_path):
    """What some of the page's names stand for in the end, and what it printed."""
    rows = [*ANSWERS[:5], EMPTY, *ANSWERS[5:]]
    (tmp_path / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "page.py").write_text("\n".join([*BLOCKS, TELL]).replace("127.0.0.1:50052", address))
    done = subprocess.run(
        [sys.executable, "page.py"],
        cwd=tmp_path,
        env={**os.environ, "HF_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    *printed, told = done.stdout.splitlines()
    return json.loads(told), "\n".join(printed)


@pytest.mark.slow
def test_the_page_does_what_it_says(page, address):
    names, printed = page
    expected = rewards(address, [(row["prompt"], row["response"]) for row in ANSWERS])

    assert names["reward"].pop(5) is None
    assert names["reward"] == pytest.approx(expected, abs=1e-5)
    assert "is empty" in names["why_not"].pop(5)
    assert set(names["why_not"]) == {None}
    assert names["failed"] == [""]
    assert sorted(names["better_half"]) == pytest.approx(sorted(expected)[5:], abs=1e-5)
    assert "1 of 12 have no reward; 6 are in the better half" in printed

    choices = [" a joy.", " a bore.", " fine."]
    by_prompt = {
        prompt: rewards(address, [(prompt, each) for each in choices]) for prompt in names["prompts"]
    }
    first = by_prompt["The film was"]
    assert f"{choices[np.argmax(first)]!r} with reward {max(first):.2f}" in printed
    assert names["best_of_n"] == [choices[np.argmax(each)] for each in by_prompt.values()]
    assert names["preferences"] == [
        {"prompt": prompt, "chosen": choices[np.argmax(each)], "rejected": choices[np.argmin(each)]}
        for prompt, each in by_prompt.items()
    ]
    assert f"mean reward {np.mean(expected):.3f} of 11 answers" in printed
    in_order = [reward for each in by_prompt.values() for reward in each]
    assert names["table"] == pytest.approx(in_order, abs=1e-5)
    assert "token_count" in printed


def test_the_page_opens_its_client_where_processes_share_nothing():
    assert BLOCKS[0].index("def add_reward") < BLOCKS[0].index("RewardClient(")
    assert "num_proc=2" in BLOCKS[0]
