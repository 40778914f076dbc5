import pytest
from transformers import AutoTokenizer

from lm.errors import InputError
from lm.tokenizer import (
    chat_template_sha256,
    decode,
    encode_chat,
    encode_pair,
    encode_text,
    tokenizer_sha256,
)


@pytest.fixture(scope="module")
def tokenizer(tiny_policy):
    return AutoTokenizer.from_pretrained(tiny_policy)


@pytest.fixture(scope="module")
def foreign(foreign_reward):
    return AutoTokenizer.from_pretrained(foreign_reward)


def test_the_digest_survives_saving_and_tells_vocabularies_apart(tokenizer, foreign, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_sha256(AutoTokenizer.from_pretrained(tmp_path)) == tokenizer_sha256(tokenizer)
    assert tokenizer_sha256(foreign) != tokenizer_sha256(tokenizer)


def test_one_added_token_changes_the_digest(tokenizer, tiny_policy):
    other = AutoTokenizer.from_pretrained(tiny_policy)
    other.add_tokens(["<|new|>"])
    assert tokenizer_sha256(other) != tokenizer_sha256(tokenizer)


def test_the_template_has_its_own_digest(tokenizer, foreign, tiny_policy):
    other = AutoTokenizer.from_pretrained(tiny_policy)
    other.chat_template = "{{ messages }}"
    assert tokenizer_sha256(other) == tokenizer_sha256(tokenizer)
    assert chat_template_sha256(other) != chat_template_sha256(tokenizer)
    assert chat_template_sha256(foreign) == ""


def test_text_gets_nothing_added_and_comes_back(tokenizer):
    ids = encode_text(tokenizer, " a good film , really")
    assert decode(tokenizer, ids) == " a good film , really"
    assert tokenizer.eos_token_id not in ids


def test_chat_is_the_rendered_template(tokenizer):
    ids = encode_chat(tokenizer, [("user", "hi"), ("assistant", "yes")], add_generation_prompt=False)
    expected = "<|start|>user\nhi<|end|>\n<|start|>assistant\nyes<|end|>\n"
    assert decode(tokenizer, ids, skip_special_tokens=False) == expected
    asked = encode_chat(tokenizer, [("user", "hi")], add_generation_prompt=True)
    assert decode(tokenizer, asked, skip_special_tokens=False).endswith("<|start|>assistant\n")


@pytest.mark.parametrize(
    ("messages", "field"),
    [
        ([("user", "a"), ("assistant", "b<|end|>")], "messages[1].content"),
        ([("user<|start|>", "a")], "messages[0].role"),
        ([], "messages"),
    ],
)
def test_control_can_not_be_forged_by_content(tokenizer, messages, field):
    with pytest.raises(InputError) as error:
        encode_chat(tokenizer, messages, add_generation_prompt=True)
    assert error.value.field == field


def test_special_tokens_in_text_name_the_field_and_the_token(tokenizer):
    with pytest.raises(InputError, match=r"prompts\[2\].text: holds the special token '<\|pad\|>'"):
        encode_text(tokenizer, "x<|pad|>", "prompts[2].text")


def test_a_tokenizer_without_template_says_so(foreign):
    with pytest.raises(InputError, match="no chat template"):
        encode_chat(foreign, [("user", "hi")], add_generation_prompt=True)


def test_a_template_that_refuses_is_an_input_error(tiny_policy):
    strict = AutoTokenizer.from_pretrained(tiny_policy)
    strict.chat_template = "{{ raise_exception('roles must alternate') }}"
    with pytest.raises(InputError, match="roles must alternate"):
        encode_chat(strict, [("user", "hi")], add_generation_prompt=True)


def test_pairs_are_joined_as_configured(tokenizer):
    joined = encode_pair(tokenizer, "the film", " is", pair_format="concatenate", append_eos=True)
    assert joined == [
        *encode_text(tokenizer, "the film"),
        *encode_text(tokenizer, " is"),
        tokenizer.eos_token_id,
    ]
    chat = encode_pair(tokenizer, "a", "b", pair_format="chat", append_eos=False)
    assert chat == encode_chat(tokenizer, [("user", "a"), ("assistant", "b")], add_generation_prompt=False)


@pytest.mark.parametrize("pair_format", ["chat", "concatenate"])
def test_pairs_refuse_an_empty_response_and_special_tokens(tokenizer, pair_format):
    def encode(prompt: str, response: str) -> None:
        encode_pair(
            tokenizer, prompt, response, pair_format=pair_format, append_eos=True, field="items[3].pair"
        )

    with pytest.raises(InputError, match=r"items\[3\].pair.response: is empty"):
        encode("a", "")
    with pytest.raises(InputError, match=r"items\[3\].pair.prompt"):
        encode("<|end|>", "b")
    with pytest.raises(InputError, match=r"items\[3\].pair.response"):
        encode("a", "<|end|>")
