import pytest
import torch
from policy_bench import fresh_model, new_weights

from lm.digests import WeightsDigest, effective_tensors
from services.errors import Damaged, PreconditionFailed
from services.policy.interface import TensorSpec

EMBED, HEAD, NORM = "model.embed_tokens.weight", "lm_head.weight", "model.norm.weight"


@pytest.fixture
def model(tiny_policy):
    return fresh_model(tiny_policy, "float32")


def spec(name=NORM, dtype="float32", shape=(32,)):
    return TensorSpec(name, dtype, shape)


def snapshot(model):
    return {name: tensor.clone() for name, tensor in effective_tensors(model.loaded.model)}


def test_facts(model, tiny_policy):
    facts = model.facts
    assert facts.model_id == str(tiny_policy)
    assert (facts.dtype, facts.vocabulary_size, facts.context_length) == ("float32", 300, 128)
    assert facts.eos_token_ids == (2,)
    assert len(facts.tokenizer_sha256) == len(facts.chat_template_sha256) == 64


class TestCheck:
    def test_what_fits(self, model):
        model.weights.check([spec(), spec(EMBED, shape=(300, 32))])
        model.weights.check([spec(HEAD, shape=(300, 32))])
        model.weights.check([])

    @pytest.mark.parametrize(
        ("wrong", "message"),
        [
            (spec("model.nothing"), "name: 'model.nothing' isn't one of the model's; leave it out"),
            (
                spec(dtype="bfloat16"),
                r"dtype: 'model.norm.weight' is bfloat16\[32\]; the model's is float32\[32\]; convert it",
            ),
            (spec(shape=(31,)), r"shape: .* is float32\[31\]; the model's is float32\[32\]; serve the model"),
            (spec(shape=(32, 1)), r"shape: .* is float32\[32, 1\]"),
            (spec(shape=(1 << 60,)), r"shape: .* is float32\[1152921504606846976\]"),
        ],
    )
    def test_what_does_not(self, model, wrong, message):
        with pytest.raises(PreconditionFailed, match=rf"^manifest\.tensors\[1\]\.{message}") as caught:
            model.weights.check([spec(EMBED, shape=(300, 32)), wrong])
        assert caught.value.kind == "MANIFEST"
        assert caught.value.subject == f"manifest.tensors[1].{message.partition(':')[0]}"

    def test_names_the_first_and_counts_the_rest(self, model):
        names = [f"no.{index}" for index in range(9)]
        with pytest.raises(PreconditionFailed, match=r"'no.0'.*'no.4'.*and 4 more"):
            model.weights.check([spec(name) for name in names])

    def test_twice_the_same(self, model):
        with pytest.raises(PreconditionFailed, match=r"tensors\[1\].name: .* is listed twice; list it once"):
            model.weights.check([spec(), spec()])

    def test_twice_a_tied_one(self, model):
        pair = [spec(EMBED, shape=(300, 32)), spec(HEAD, shape=(300, 32))]
        with pytest.raises(PreconditionFailed, match=f"'{HEAD}' is tied to '{EMBED}'; list one"):
            model.weights.check(pair)

    def test_more_tensors_than_the_model_has(self, model):
        with pytest.raises(PreconditionFailed, match="lists 1000 tensors"):
            model.weights.check([spec()] * 1000)


class TestPrepareAndApply:
    def test_nothing_changes_before_apply(self, model):
        before, digest = snapshot(model), model.weights.sha256
        tensors, changed_digest = new_weights(model)
        prepared = model.weights.prepare(tensors, changed_digest)
        assert model.weights.sha256 == digest
        assert all(torch.equal(before[name], now) for name, now in snapshot(model).items())
        model.weights.apply(prepared)
        assert all(torch.equal(dict(tensors)[name], now) for name, now in snapshot(model).items())
        assert model.weights.sha256 == changed_digest

    def test_the_digest_is_that_of_the_model_from_scratch(self, model):
        tensors, digest = new_weights(model, names={NORM, "model.layers.1.mlp.up_proj.weight"})
        assert len(tensors) == 2
        model.weights.apply(model.weights.prepare(tensors, digest))
        assert WeightsDigest(effective_tensors(model.loaded.model)).hexdigest() == digest

    def test_a_tied_tensor_by_its_other_name(self, model):
        ((_, tensor),), digest = new_weights(model, names={EMBED})
        model.weights.apply(model.weights.prepare([(HEAD, tensor)], digest))
        assert torch.equal(model.loaded.model.get_parameter(EMBED), tensor)
        assert torch.equal(model.loaded.model.get_parameter(HEAD), tensor)

    def test_another_digest(self, model):
        tensors, _ = new_weights(model)
        with pytest.raises(Damaged, match="f" * 64):
            model.weights.prepare(tensors, "f" * 64)

    def test_what_does_not_fit(self, model):
        with pytest.raises(PreconditionFailed, match="isn't one of the model's"):
            model.weights.prepare([("other", torch.zeros(2))], "f" * 64)
        with pytest.raises(PreconditionFailed, match=r"torch.int8|int8"):
            model.weights.prepare([(NORM, torch.zeros(32, dtype=torch.int8))], "f" * 64)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_what_is_not_finite(self, model, bad):
        weird = torch.ones(32)
        weird[3] = bad
        hashes = WeightsDigest(effective_tensors(model.loaded.model))
        digest = hashes.with_changed([(NORM, weird)]).hexdigest()
        with pytest.raises(PreconditionFailed, match=f"'{NORM}' holds NaN or infinity"):
            model.weights.prepare([(NORM, weird)], digest)

    def test_an_iterator_that_fails_changes_nothing(self, model):
        def broken():
            yield new_weights(model)[0][0]
            raise RuntimeError("lost")

        before = snapshot(model)
        with pytest.raises(RuntimeError, match="lost"):
            model.weights.prepare(broken(), "f" * 64)
        assert all(torch.equal(before[name], now) for name, now in snapshot(model).items())
