"""Every wrong value is named by its path, with what would be right."""

import math
from types import SimpleNamespace

import pytest
from policy_bench import version

from plaudit.v1 import policy_pb2, types_pb2, weights_pb2
from services.batching import CallLimits
from services.errors import InvalidInput
from services.policy import convert, weights_convert
from services.policy.interface import Generated, GenerationRequest, Manifest, PushState, SwapMode, TensorSpec
from services.policy.push import Push

LIMITS = CallLimits(max_items=6, max_tokens=200)


def prompt(*ids, **fields):
    return policy_pb2.Prompt(token_ids=types_pb2.TokenIds(ids=ids), **fields)


def chat(*turns):
    messages = [types_pb2.ChatMessage(role=role, content=content) for role, content in turns]
    return policy_pb2.Prompt(chat=types_pb2.Chat(messages=messages))


def request(*prompts, samples=None, **sampling):
    return policy_pb2.GenerateRequest(
        prompts=prompts,
        samples_per_prompt=samples,
        sampling=policy_pb2.SamplingParams(**{"max_new_tokens": 4, **sampling}),
    )


@pytest.fixture
def convert_(bench):
    return lambda message: convert.generation_request(message, bench.engine, LIMITS, None)


def violations(convert_, message):
    with pytest.raises(InvalidInput) as caught:
        convert_(message)
    return {violation.field: violation.description for violation in caught.value.violations}


class TestGoodRequests:
    async def test_defaults(self, convert_):
        asked = convert_(request(prompt(5, 6, seed=9)))
        assert asked == GenerationRequest(prompts=((5, 6),), seeds=(9,), max_new_tokens=4)

    async def test_everything(self, bench):
        message = request(
            prompt(5, seed=2**64 - 1),
            prompt(6, seed=0),
            samples=3,
            temperature=0.5,
            top_k=7,
            top_p=0.5,
            stop_token_ids=[8, 9],
            stop_strings=["\n", "end"],
        )
        message.deterministic = True
        message.step_exactly = 3
        assert convert.generation_request(message, bench.engine, LIMITS, 12.5) == GenerationRequest(
            prompts=((5,), (6,)),
            seeds=(2**64 - 1, 0),
            max_new_tokens=4,
            samples_per_prompt=3,
            temperature=0.5,
            top_k=7,
            top_p=0.5,
            stop_token_ids=frozenset({8, 9}),
            stop_strings=("\n", "end"),
            deterministic=True,
            step_exactly=3,
            deadline=12.5,
        )

    async def test_step_at_least(self, convert_):
        message = request(prompt(5))
        message.step_at_least = 0
        asked = convert_(message)
        assert (asked.step_at_least, asked.step_exactly) == (0, None)

    async def test_text_and_chat(self, bench, convert_):
        asked = convert_(request(policy_pb2.Prompt(text="the film"), chat(("user", "hi"))))
        assert list(asked.prompts[0]) == bench.engine.encode_text("the film", "")
        assert list(asked.prompts[1]) == bench.engine.encode_chat([("user", "hi")], "")

    async def test_seeds_are_drawn_where_there_is_none(self, convert_):
        asked = convert_(request(prompt(5), prompt(5), prompt(5, seed=0)))
        assert asked.seeds[2] == 0
        assert len({*asked.seeds}) == 3
        assert all(0 <= seed < 2**64 for seed in asked.seeds)

    async def test_exactly_the_context(self, convert_):
        assert len(convert_(request(prompt(*[1] * 124))).prompts[0]) == 124


class TestBadRequests:
    async def test_no_prompts(self, convert_):
        assert violations(convert_, request()) == {"prompts": "is empty; send at least one"}

    async def test_no_samples(self, convert_):
        assert violations(convert_, request(prompt(5), samples=0)) == {
            "samples_per_prompt": "is 0; use 1 or more"
        }

    async def test_too_many_responses(self, convert_):
        found = violations(convert_, request(prompt(5), prompt(6), samples=4))
        assert found == {"prompts": "ask for 8 responses, a call may for 6; split it"}

    async def test_too_many_tokens(self, convert_):
        found = violations(convert_, request(prompt(*[5] * 50), samples=4))
        assert "216 tokens, a call at most 200; split it" in found["prompts"]

    async def test_no_input(self, convert_):
        assert (
            "set token_ids, text or chat" in violations(convert_, request(policy_pb2.Prompt()))["prompts[0]"]
        )

    @pytest.mark.parametrize(
        ("empty", "field"),
        [
            (prompt(), "prompts[1].token_ids.ids"),
            (policy_pb2.Prompt(text=""), "prompts[1].text"),
            (chat(), "prompts[1].chat.messages"),
        ],
    )
    async def test_empty_prompts(self, convert_, empty, field):
        assert list(violations(convert_, request(prompt(5), empty))) == [field]

    @pytest.mark.parametrize("id_", [300, 2**32 - 1])
    async def test_an_id_outside_the_vocabulary(self, convert_, id_):
        ids = [5] * 17 + [id_, 5]
        found = violations(convert_, request(prompt(5), prompt(5), prompt(5), prompt(*ids)))
        assert found == {"prompts[3].token_ids.ids[17]": f"is {id_}, the vocabulary ends at 299"}

    async def test_beyond_the_context(self, convert_):
        found = violations(convert_, request(prompt(5), prompt(*[5] * 125)))
        assert found == {
            "prompts[1]": "holds 125 tokens, with 4 new ones 1 more than the context of 128; "
            "shorten it, or lower sampling.max_new_tokens"
        }

    async def test_the_largest_max_new_tokens(self, convert_):
        assert list(violations(convert_, request(prompt(5), max_new_tokens=2**32 - 1))) == ["prompts[0]"]

    @pytest.mark.parametrize("wrong", [-1.0, -0.5, math.nan, math.inf, 1e-30, 1e-5])
    async def test_temperature(self, convert_, wrong):
        found = violations(convert_, request(prompt(5), temperature=wrong))
        assert list(found) == ["sampling.temperature"]
        assert "use 0 for the likeliest token, or 0.0001 or more" in found["sampling.temperature"]

    @pytest.mark.parametrize("wrong", [0.0, -0.1, 1.01, math.nan, math.inf])
    async def test_top_p(self, convert_, wrong):
        found = violations(convert_, request(prompt(5), top_p=wrong))
        assert "use a number above 0 and at most 1" in found["sampling.top_p"]

    async def test_no_new_tokens(self, convert_):
        assert violations(convert_, request(prompt(5), max_new_tokens=0)) == {
            "sampling.max_new_tokens": "is 0; use 1 or more"
        }
        assert list(violations(convert_, policy_pb2.GenerateRequest(prompts=[prompt(5)]))) == [
            "sampling.max_new_tokens"
        ]

    async def test_stops(self, convert_):
        found = violations(convert_, request(prompt(5), stop_token_ids=[1, 300], stop_strings=["a", ""]))
        assert list(found) == ["sampling.stop_token_ids[1]", "sampling.stop_strings[1]"]

    async def test_special_tokens_in_text_and_chat(self, convert_):
        wrong = request(
            policy_pb2.Prompt(text="a<|end|>"), chat(("user", "fine"), ("assistant", "<|start|>"))
        )
        found = violations(convert_, wrong)
        assert list(found) == ["prompts[0].text", "prompts[1].chat.messages[1].content"]
        assert "'<|end|>'" in found["prompts[0].text"]

    async def test_all_faults_up_to_eight(self, bench):
        prompts = [prompt(999) for _ in range(20)]
        with pytest.raises(InvalidInput) as caught:
            convert.generation_request(request(*prompts), bench.engine, CallLimits(), None)
        assert len(caught.value.violations) == 8


class TestResponses:
    async def test_a_response(self, bench):
        asked = GenerationRequest(prompts=((5, 6),), seeds=(9,), max_new_tokens=4)
        generated = Generated(
            0, 1, (7, 8), "text", "stop_string", (-0.5, -1.0), (-0.25, -2.0), ((3, 0, 1), (4, 1, 2)), 9
        )
        message = convert.generate_response(asked, [generated], bench.engine.facts, version(4, "ab"))
        (sequence,) = message.sequences
        assert (sequence.prompt_index, sequence.sample_index, sequence.seed) == (0, 1, 9)
        assert (list(sequence.token_ids), sequence.text) == ([7, 8], "text")
        assert list(sequence.logprobs) == [-0.5, -1.0]
        assert list(sequence.logprobs_temperature_1) == [-0.25, -2.0]
        assert sequence.finish_reason == policy_pb2.FINISH_REASON_STOP_STRING
        spans = [(span.step, span.start, span.end) for span in sequence.version_spans]
        assert spans == [(3, 0, 1), (4, 1, 2)]
        assert [list(ids.ids) for ids in message.prompt_token_ids] == [[5, 6]]
        assert (message.model.run_id, message.model.step, message.model.weights_sha256) == ("run", 4, "ab")
        assert message.model.tokenizer_sha256 == bench.engine.facts.tokenizer_sha256

    async def test_the_policy(self, bench):
        queue = SimpleNamespace(waiting_items=3, waiting_tokens=70, waiting_bytes=9)
        message = convert.get_policy_response(bench.engine.facts, bench.engine.version, LIMITS, queue)
        assert (message.queue.items, message.queue.tokens, message.queue.bytes) == (3, 70, 9)
        assert message.dtype == types_pb2.DATA_TYPE_F64
        assert (message.vocabulary_size, message.context_length) == (300, 128)
        assert (message.engine, list(message.eos_token_ids)) == ("torch", [2])
        assert message.has_chat_template
        assert (message.model.run_id, message.model.step) == ("", 0)
        assert list(message.swap_modes) == [policy_pb2.SWAP_MODE_IN_PLACE, policy_pb2.SWAP_MODE_DRAIN]
        assert (message.limits.max_items, message.limits.max_tokens) == (6, 200)
        assert message.limits.max_message_bytes == 64 * 1024 * 1024
        assert message.limits.max_request_bytes == LIMITS.max_bytes == 16 * 1024 * 1024


class TestPushes:
    def message(self, **changes):
        tensors = [weights_pb2.TensorSpec(name="a", dtype=types_pb2.DATA_TYPE_BF16, shape=[2, 3])]
        fields = {
            "run_id": "r", "base_step": 1, "new_step": 2, "tensors": tensors, "weights_sha256": "ab",
            "encoding": weights_pb2.PUSH_ENCODING_FULL,
        }  # fmt: skip
        return weights_pb2.PushManifest(**{**fields, **changes})

    def test_a_manifest(self):
        assert weights_convert.manifest(self.message()) == Manifest(
            "r", 1, 2, (TensorSpec("a", "bfloat16", (2, 3)),), "ab"
        )
        assert weights_convert.manifest(self.message()).nbytes == 12

    @pytest.mark.parametrize("encoding", [weights_pb2.PUSH_ENCODING_UNSPECIFIED, 77])
    def test_unknown_encodings(self, encoding):
        with pytest.raises(InvalidInput, match=r"manifest.encoding: .*PUSH_ENCODING_FULL"):
            weights_convert.manifest(self.message(encoding=encoding))

    @pytest.mark.parametrize("dtype", [types_pb2.DATA_TYPE_UNSPECIFIED, 77])
    def test_unknown_types(self, dtype):
        wrong = weights_pb2.TensorSpec(name="a", dtype=dtype, shape=[2])
        with pytest.raises(InvalidInput, match=r"manifest.tensors\[1\].dtype"):
            weights_convert.manifest(self.message(tensors=[self.message().tensors[0], wrong]))

    def test_modes(self):
        assert weights_convert.swap_mode(policy_pb2.SWAP_MODE_UNSPECIFIED) is SwapMode.IN_PLACE
        assert weights_convert.swap_mode(policy_pb2.SWAP_MODE_IN_PLACE) is SwapMode.IN_PLACE
        assert weights_convert.swap_mode(policy_pb2.SWAP_MODE_DRAIN) is SwapMode.DRAIN
        with pytest.raises(InvalidInput, match="mode: is 77"):
            weights_convert.swap_mode(77)

    def test_every_state_has_a_number_and_every_number_a_state(self):
        numbers = set(weights_pb2.PushState.values()) - {weights_pb2.PUSH_STATE_UNSPECIFIED}
        for state in PushState:
            manifest = Manifest("r", 1, 2, (TensorSpec("a", "float32", (2,)),), "ab")
            push = Push(manifest, received=3, state=state)
            message = weights_convert.get_push_response(push)
            assert (message.push_id, message.received_bytes, message.total_bytes) == (push.id, 3, 8)
            assert message.expires_in_seconds == 0
            numbers.remove(message.state)
        assert not numbers
