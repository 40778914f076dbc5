import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from lm.loading import load_tokenizer
from lm.tokenizer import decode, encode_chat
from trainer.data import (
    Context,
    Demonstration,
    Ranking,
    file_digest,
    read_demonstrations,
    read_prompts,
    read_rankings,
    read_texts,
)
from trainer.errors import DataError

USER = {"role": "user", "content": "hi"}
ASSISTANT = {"role": "assistant", "content": "hello"}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write_lines(*lines: Any) -> Path:
        path = tmp_path / "data.jsonl"
        texts = [line if isinstance(line, str) else json.dumps(line, ensure_ascii=False) for line in lines]
        path.write_text("\n".join(texts) + "\n", encoding="utf-8")
        return path

    return write_lines


def test_demonstrations(write: Callable[..., Path]):
    path = write(
        {"prompt": "a", "completion": " b", "source": "book", "id": 7},
        "",
        {"messages": [USER, ASSISTANT, USER, ASSISTANT]},
    )
    plain, chat = read_demonstrations(path)
    assert plain == Demonstration(Context(f"{path} line 1", text="a"), " b")
    assert chat.context == Context(
        f"{path} line 3", messages=(("user", "hi"), ("assistant", "hello"), ("user", "hi"))
    )
    assert chat.completion == "hello"


def test_rankings_and_pairs(write: Callable[..., Path]):
    path = write(
        {"prompt": "p", "completions": ["x", "y", "z"], "ranks": [2, 1, 2], "labeler": "ann"},
        {"prompt": "", "completions": ["x", "y"], "ranks": [1, 2], "labeler": 3},
        {"messages": [USER], "chosen": "good", "rejected": "bad"},
    )
    ranking, bare, pair = read_rankings(path)
    assert ranking == Ranking(Context(f"{path} line 1", text="p"), ("x", "y", "z"), (2, 1, 2), "ann")
    assert bare.context.text == ""
    assert bare.labeler == "3"
    assert pair.completions == ("good", "bad")
    assert pair.ranks == (1, 2)
    assert pair.context.messages == (("user", "hi"),)
    assert pair.labeler is None


def test_prompts_and_texts(write: Callable[..., Path]):
    prompts = read_prompts(write({"prompt": "übel – 好\u2028x"}, {"messages": [USER]}))
    assert [prompt.text for prompt in prompts] == ["übel – 好\u2028x", ""]
    assert read_texts(write({"text": "one"}, {"text": "two"})) == ["one", "two"]


Reader = Callable[[Path], Any]

BAD: list[tuple[Reader, Any, str]] = [
    (read_prompts, [1], "line 1: is a list; each line must be a JSON object"),
    (read_prompts, "3", "line 1: is a number;"),
    (read_prompts, {}, "line 1: prompt: is missing; the line has nothing"),
    (read_prompts, {"text": "x", "b": 1}, "line 1: prompt: is missing; the line has b, text"),
    (read_prompts, {"prompt": ""}, "line 1: prompt: is empty"),
    (read_prompts, {"prompt": 3}, "line 1: prompt: is a number; it must be a text"),
    (read_prompts, {"prompt": None}, "line 1: prompt: is null; it must be a text"),
    (read_prompts, {"prompt": "x", "messages": [USER]}, "line 1: messages: stands beside prompt"),
    (read_prompts, {"messages": [USER, ASSISTANT]}, "line 1: messages: ends in an assistant turn"),
    (read_prompts, {"messages": []}, "line 1: messages: is empty"),
    (read_prompts, {"messages": "hi"}, "line 1: messages: is a text; it must be a list"),
    (read_prompts, {"messages": ["hi"]}, r"line 1: messages\[0\]: must be an object"),
    (read_prompts, {"messages": [USER, {"role": "user"}]}, r"line 1: messages\[1\]: must be an object"),
    (read_prompts, {"messages": [{"role": "user", "content": ""}]}, r"messages\[0\].content: is empty"),
    (read_prompts, {"messages": [{"role": 1, "content": "x"}]}, r"messages\[0\].role: is a number"),
    (read_texts, {"text": True}, "line 1: text: is true or false"),
    (read_demonstrations, {"prompt": "a"}, "line 1: completion: is missing; the line has prompt"),
    (read_demonstrations, {"prompt": "", "completion": "x"}, "line 1: prompt: is empty"),
    (read_demonstrations, {"messages": [USER]}, "line 1: messages: ends in a turn of another role; the last"),
    (read_demonstrations, {"messages": [ASSISTANT]}, "line 1: messages: holds the answer only"),
    (read_demonstrations, {"messages": [USER, ASSISTANT], "prompt": "x"}, "messages: stands beside prompt"),
    (
        read_rankings,
        {"prompt": "p", "completions": ["x"], "ranks": [1]},
        "line 1: completions: has 1; a ranking compares at least two",
    ),
    (
        read_rankings,
        {"prompt": "p", "completions": ["x", "y"], "ranks": [1]},
        "line 1: ranks: has 1 entries for 2 completions",
    ),
    (read_rankings, {"prompt": "p", "completions": ["x", "y"]}, "line 1: ranks: is missing"),
    (
        read_rankings,
        {"prompt": "p", "completions": ["x", "y"], "ranks": [1, 0]},
        r"line 1: ranks\[1\]: is 0; it must be a whole number from 1 \(best\)",
    ),
    (read_rankings, {"prompt": "p", "completions": ["x", "y"], "ranks": [1, 1.5]}, r"ranks\[1\]: is 1.5"),
    (read_rankings, {"prompt": "p", "completions": ["x", "y"], "ranks": [True, 2]}, r"ranks\[0\]: is true"),
    (
        read_rankings,
        {"prompt": "p", "completions": ["x", "y"], "ranks": ["x", 2]},
        r"ranks\[0\]: is a text; it",
    ),
    (
        read_rankings,
        {"prompt": "p", "completions": ["x", ""], "ranks": [1, 2]},
        r"completions\[1\]: is empty",
    ),
    (
        read_rankings,
        {"prompt": "p", "completions": ["x", 1], "ranks": [1, 2]},
        r"completions\[1\]: is a number",
    ),
    (read_rankings, {"completions": ["x", "y"], "ranks": [1, 2]}, "line 1: prompt: is missing"),
    (read_rankings, {"prompt": "p", "chosen": "x"}, "line 1: rejected: is missing"),
    (
        read_rankings,
        {"prompt": "p", "chosen": "x", "rejected": "y", "labeler": [1]},
        "line 1: labeler: is a list",
    ),
]


@pytest.mark.parametrize(("reader", "line", "message"), BAD)
def test_what_is_wrong_is_named(write: Callable[..., Path], reader: Reader, line: Any, message: str):
    path = write(json.dumps(line) if not isinstance(line, str) else line)
    with pytest.raises(DataError, match=message) as caught:
        reader(path)
    assert str(caught.value).startswith(f"{path} line 1: ")
    assert caught.value.exit_code == 64


WORD = "kestrel"
MIXED_UP = [
    (read_rankings, {"prompt": "p", "completions": ["x", "y"], "ranks": [WORD, 2]}),
    (read_rankings, {"prompt": "p", "completions": ["x", "y"], "ranks": [[WORD], 2]}),
    (read_rankings, {"prompt": "p", "completions": ["x", "y"], "ranks": [{WORD: WORD}, 2]}),
    (read_rankings, {"prompt": "p", "completions": WORD, "ranks": [1, 2]}),
    (read_rankings, {"prompt": "p", "chosen": "x", "rejected": "y", "labeler": [WORD]}),
    (read_demonstrations, {"messages": [USER, {"role": WORD, "content": "hello"}]}),
    (read_prompts, {"messages": [WORD]}),
    (read_prompts, {"prompt": f"{WORD}\ud800"}),
    (read_prompts, f'{{"prompt": "{WORD}"'),
    (read_prompts, f'"{WORD}"'),
]


@pytest.mark.parametrize(("reader", "line"), MIXED_UP)
def test_what_people_wrote_is_in_no_error(write: Callable[..., Path], reader: Reader, line: Any):
    with pytest.raises(DataError) as caught:
        reader(write(line if isinstance(line, str) else json.dumps(line)))
    assert WORD not in str(caught.value)


def test_line_37_is_line_37(write: Callable[..., Path]):
    path = write(*[{"prompt": "x"}] * 36, '{"prompt": "x"', {"prompt": "x"})
    with pytest.raises(
        DataError, match=r"data\.jsonl line 37: not JSON: .*each line must be one JSON object"
    ):
        read_prompts(path)


def test_files_that_hold_nothing_or_are_not_there(tmp_path: Path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n \n")
    with pytest.raises(DataError, match=r"empty\.jsonl: holds no line"):
        read_prompts(empty)
    with pytest.raises(DataError, match=r"none\.jsonl: can't be read: No such file"):
        read_prompts(tmp_path / "none.jsonl")
    empty.write_bytes(b'{"prompt": "x"}\n{"prompt": "\xff"}\n')
    with pytest.raises(DataError, match=r"empty\.jsonl line 2: not UTF-8"):
        read_prompts(empty)


def test_digest_is_of_the_bytes(write: Callable[..., Path]):
    path = write({"prompt": "x"})
    assert file_digest(path) == hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_prompt_becomes_ids(tiny_policy: Path):
    tokenizer = load_tokenizer(str(tiny_policy))
    ids = Context("w", text="the film").encode(tokenizer)
    assert decode(tokenizer, ids) == "the film"
    chat = Context("w", messages=(("user", "hi"),)).encode(tokenizer)
    assert chat == encode_chat(tokenizer, [("user", "hi")], add_generation_prompt=True)
    assert decode(tokenizer, chat, skip_special_tokens=False).endswith("<|start|>assistant\n")


def test_a_completion_ends_in_eos(tiny_policy: Path):
    tokenizer = load_tokenizer(str(tiny_policy))
    ids = Context("w", text="the").encode_completion(tokenizer, " film", "completion")
    assert ids[-1] == tokenizer.eos_token_id
    assert decode(tokenizer, ids) == " film"
    tokenizer.eos_token = None
    with pytest.raises(DataError, match="w: the tokenizer has no EOS token"):
        Context("w", text="the").encode_completion(tokenizer, " film", "completion")


def test_special_tokens_in_text_are_refused_with_file_and_line(tiny_policy: Path):
    tokenizer = load_tokenizer(str(tiny_policy))
    with pytest.raises(DataError, match=r"f line 2: prompt: holds the special token '<\|end\|>'"):
        Context("f line 2", text="a <|end|> b").encode(tokenizer)
    with pytest.raises(DataError, match=r"f line 2: messages\[0\]\.content: holds the special token"):
        Context("f line 2", messages=(("user", "<|pad|>"),)).encode(tokenizer)
    with pytest.raises(DataError, match=r"f line 2: completions\[1\]: holds the special token"):
        Context("f line 2", text="a").encode_completion(tokenizer, "<|start|>", "completions[1]")


def test_a_conversation_needs_a_template(foreign_reward: Path):
    with pytest.raises(DataError, match=r"f line 1: messages: .*has no chat template"):
        Context("f line 1", messages=(("user", "hi"),)).encode(load_tokenizer(str(foreign_reward)))
