"""A tiny random reward model of each architecture that docs/reward-models.md names."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from tiny_models import byte_level_tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    BertTokenizer,
    DebertaV2Tokenizer,
    GemmaTokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
    XLNetTokenizer,
)

from lm.loading import save_model

VOCABULARY = 300
LABELS = {0: "helpfulness", 1: "correctness", 2: "verbosity"}
FULL_AND_SLIDING = {
    kind: {"rope_type": "default", "rope_theta": 1e4} for kind in ("full_attention", "sliding_attention")
}


def bare_tokenizer() -> PreTrainedTokenizerFast:
    """Adds nothing to a text, as GPT-2's and Qwen's."""
    tokenizer = byte_level_tokenizer(VOCABULARY, ["<pad>", "</s>", "<|endoftext|>"])
    tokenizer.pad_token, tokenizer.eos_token = "<pad>", "</s>"
    return tokenizer


def bos_tokenizer() -> PreTrainedTokenizerFast:
    """Begins every text with a BOS, as Llama's and Gemma's."""
    tokenizer = byte_level_tokenizer(VOCABULARY, ["<pad>", "</s>", "<s>"])
    tokenizer.pad_token, tokenizer.eos_token, tokenizer.bos_token = "<pad>", "</s>", "<s>"
    _process(tokenizer, "<s> $A", "<s> $A <s> $B")
    return tokenizer


def bert_tokenizer(inputs=("input_ids", "token_type_ids", "attention_mask")) -> PreTrainedTokenizerFast:
    """[CLS] A [SEP] B [SEP], with token types."""
    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    tokenizer = byte_level_tokenizer(VOCABULARY, specials, model_input_names=list(inputs))
    tokenizer.pad_token, tokenizer.cls_token, tokenizer.sep_token = "[PAD]", "[CLS]", "[SEP]"
    _process(tokenizer, "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1")
    return tokenizer


def untyped_tokenizer() -> PreTrainedTokenizerFast:
    """The same without token types, as DistilBERT's."""
    return bert_tokenizer(("input_ids", "attention_mask"))


def roberta_tokenizer() -> PreTrainedTokenizerFast:
    """<s> A </s></s> B </s>; the pad's id is 1."""
    tokenizer = byte_level_tokenizer(VOCABULARY, ["<s>", "<pad>", "</s>"])
    tokenizer.pad_token = "<pad>"
    tokenizer.bos_token = tokenizer.cls_token = "<s>"
    tokenizer.eos_token = tokenizer.sep_token = "</s>"
    _process(tokenizer, "<s> $A </s>", "<s> $A </s> </s> $B </s>")
    return tokenizer


LETTERS = "abcdefghijklmnopqrstuvwxyz"


def released_tokenizer(name) -> PreTrainedTokenizerBase:
    """One of an architecture's own class, over single letters."""
    if name == "Llama":
        return LlamaTokenizer(_ids("<unk>", "<s>", "</s>", "▁", *LETTERS), [], add_bos_token=True)
    if name == "Gemma2":
        specials = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
        return GemmaTokenizer(_ids(*specials, "▁", *LETTERS), [], add_bos_token=True)
    if name == "Bert":
        inner = [f"##{letter}" for letter in LETTERS]
        return BertTokenizer(_ids("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *inner))
    if name == "DebertaV2":
        pieces = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "▁", *LETTERS, "[MASK]"]
        return DebertaV2Tokenizer([(piece, 0.0 if piece[0] == "[" else -1.0) for piece in pieces], unk_id=3)
    pieces = ["<unk>", "<s>", "</s>", "<cls>", "<sep>", "<pad>", "<mask>", "<eod>", "<eop>", "▁", *LETTERS]
    return XLNetTokenizer([(piece, 0.0 if piece[0] == "<" else -1.0) for piece in pieces])


RELEASED = ("Llama", "Gemma2", "Bert", "DebertaV2", "XLNet")


def _ids(*pieces):
    return {piece: id_ for id_, piece in enumerate(pieces)}


def _process(tokenizer: PreTrainedTokenizerFast, single: str, pair: str) -> None:
    specials = [(token, tokenizer.convert_tokens_to_ids(token)) for token in tokenizer.all_special_tokens]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single, pair, specials)


@dataclass(frozen=True)
class Architecture:
    """How to build one: its tokenizer, and its configuration but for vocabulary, labels and special ids."""

    tokenizer: Callable[[], PreTrainedTokenizerFast]
    config: dict[str, Any]


SIZES = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64, "initializer_range": 0.2,
}  # fmt: skip
GROUPED = SIZES | {"num_key_value_heads": 2}
SIZED = GROUPED | {"head_dim": 8}
GPT = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2}
BART = {
    "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2,
    "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32,
    "max_position_embeddings": 64, "init_std": 0.2,
}  # fmt: skip
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
SLIDING = {"sliding_window": 8}
LINEAR = {
    "num_hidden_layers": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 4,
}  # fmt: skip
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2,
    "image_size": 28, "patch_size": 14,
}  # fmt: skip

ARCHITECTURES = {
    "Llama": Architecture(bos_tokenizer, SIZED),
    "Mistral": Architecture(bos_tokenizer, SIZED | SLIDING),
    "Qwen2": Architecture(
        bare_tokenizer, GROUPED | SLIDING | {"use_sliding_window": True, "max_window_layers": 1}
    ),
    "Qwen3": Architecture(bare_tokenizer, SIZED),
    "Qwen3Moe": Architecture(bare_tokenizer, SIZED | EXPERTS | {"num_experts": 4}),
    "Qwen3_5Text": Architecture(bare_tokenizer, SIZED | LINEAR),
    "Gemma": Architecture(bos_tokenizer, SIZED),
    "Gemma2": Architecture(bos_tokenizer, SIZED | SLIDING),
    "Gemma3Text": Architecture(bos_tokenizer, SIZED | SLIDING),
    "Gemma3": Architecture(
        bos_tokenizer, {"text_config": SIZED | SLIDING, "vision_config": VISION, "mm_tokens_per_image": 4}
    ),
    "GPTNeoX": Architecture(bare_tokenizer, SIZES),
    "GPT2": Architecture(bare_tokenizer, GPT),
    "Phi3": Architecture(bare_tokenizer, GROUPED),
    "Olmo2": Architecture(bare_tokenizer, GROUPED),
    "OPT": Architecture(bare_tokenizer, SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.2}),
    "Bloom": Architecture(bare_tokenizer, GPT),
    "Falcon": Architecture(bare_tokenizer, SIZES),
    "GptOss": Architecture(bare_tokenizer, SIZED | SLIDING | EXPERTS | {"num_local_experts": 4}),
    "CTRL": Architecture(bare_tokenizer, GPT | {"dff": 48}),
    "CohereCompassText": Architecture(
        bare_tokenizer,
        SIZED
        | {"pooling": "mean", "layer_types": ["full_attention"] * 2, "rope_parameters": FULL_AND_SLIDING},
    ),
    "Bert": Architecture(bert_tokenizer, SIZES),
    "Electra": Architecture(bert_tokenizer, SIZES | {"embedding_size": 32}),
    "Albert": Architecture(untyped_tokenizer, SIZES | {"embedding_size": 16}),
    "Deberta": Architecture(bert_tokenizer, SIZES | {"type_vocab_size": 2}),
    "DebertaV2": Architecture(
        bert_tokenizer,
        SIZES
        | {
            "relative_attention": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 16,
            "max_relative_positions": -1, "norm_rel_ebd": "layer_norm", "share_att_key": True,
            "position_biased_input": False, "type_vocab_size": 0,
        },
    ),
    "DistilBert": Architecture(
        untyped_tokenizer,
        {"dim": 32, "hidden_dim": 48, "n_layers": 2, "n_heads": 4, "initializer_range": 0.2}
        | {"max_position_embeddings": 64},
    ),
    "ModernBert": Architecture(untyped_tokenizer, SIZES | {"local_attention": 8}),
    "Roberta": Architecture(roberta_tokenizer, SIZES | {"type_vocab_size": 1}),
    "XLMRoberta": Architecture(roberta_tokenizer, SIZES | {"type_vocab_size": 1}),
    "MPNet": Architecture(roberta_tokenizer, SIZES),
    "FNet": Architecture(bert_tokenizer, SIZES),
    "XLNet": Architecture(
        bert_tokenizer, {"d_model": 32, "n_layer": 2, "n_head": 4, "d_inner": 48, "initializer_range": 0.2}
    ),
    "Bart": Architecture(roberta_tokenizer, BART),
    "T5": Architecture(
        roberta_tokenizer,
        {"d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4, "decoder_start_token_id": 1},
    ),
}  # fmt: skip
"""By the name in front of "ForSequenceClassification"."""


def save_reward_model(name, folder, labels=1, tokenizer=None, pad=True, **config):
    """Writes one; several `labels` have the names in LABELS; without `pad` there is no pad token anywhere."""
    tokenizer = tokenizer or ARCHITECTURES[name].tokenizer()
    if not pad:
        tokenizer.pad_token = None
    made = _config(name, labels, tokenizer, config)
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForSequenceClassification")(made)
    save_model(model.eval(), tokenizer, folder)


def _config(name, labels, tokenizer, more):
    ids = {
        f"{each}_token_id": getattr(tokenizer, f"{each}_token_id")
        for each in ("pad", "bos", "eos", "cls", "sep")
    }
    values = ARCHITECTURES[name].config
    if "text_config" in values:
        values = values | {"text_config": values["text_config"] | ids | {"vocab_size": VOCABULARY}}
    else:
        values = values | {"vocab_size": VOCABULARY}
    names = LABELS if labels > 1 else {0: "LABEL_0"}
    labelled = {"num_labels": labels, "id2label": names, "label2id": {v: k for k, v in names.items()}}
    return getattr(transformers, f"{name}Config")(**{**values, **ids, **labelled, **more})
