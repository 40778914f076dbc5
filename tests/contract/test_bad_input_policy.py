"""Prompts that hold nothing, or control tokens in a conversation: field, fix, and the next call is served."""

import pytest
from policy_server import policy_server, prompt, refused, violations

from plaudit.v1 import policy_pb2, types_pb2

GOOD = prompt(5, 6, 7)
EMPTY_TEXT = policy_pb2.Prompt(text="")


def chat(*turns):
    messages = [types_pb2.ChatMessage(role=role, content=content) for role, content in turns]
    return policy_pb2.Prompt(chat=types_pb2.Chat(messages=messages))


@pytest.fixture
async def caller(tiny_policy):
    async with policy_server(tiny_policy) as made:
        yield made


@pytest.mark.parametrize(
    ("bad", "field", "fix"),
    [
        (prompt(), "prompts[1].token_ids.ids", "at least one token"),
        (EMPTY_TEXT, "prompts[1].text", "at least one token"),
        (chat(), "prompts[1].chat.messages", "send at least one"),
        (chat(("user", "a"), ("user", "<|end|>")), "prompts[1].chat.messages[1].content", "remove it"),
        (chat(("<|start|>system", "a")), "prompts[1].chat.messages[0].role", "remove it"),
    ],
)
async def test_the_field_and_the_fix(caller, bad, field, fix):
    found = violations(await refused(caller.generating(GOOD, bad)))
    assert fix in found[field]
    assert len((await caller.generate(GOOD, chat(("user", "a")))).sequences) == 2


async def test_two_bad_prompts_are_told_together(caller):
    found = violations(await refused(caller.generating(EMPTY_TEXT, GOOD, prompt(5, 300))))
    assert found.keys() == {"prompts[0].text", "prompts[2].token_ids.ids[1]"}
