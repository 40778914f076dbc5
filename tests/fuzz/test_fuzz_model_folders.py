"""Model folders whose files say anything: one line says why one can't be loaded, and nothing of it runs."""

import json
import shutil

import pytest
import torch
from fuzz_settings import fuzzed
from hostile_json import SCALARS, mangled
from hypothesis import given, strategies as st
from measured_memory import bounded_memory
from tiny_models import tiny_tokenizer

from lm.errors import ModelLoadError
from lm.loading import load_causal_lm, load_reward_model
from lm.placement import choose_placement

FLOAT32 = choose_placement("cpu", "float32", 1)
JSON_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "tokenizer.json")
KEYS = [
    "auto_map",
    "quantization_config",
    "architectures",
    "model_type",
    "num_labels",
    "plaudit_pair_format",
    "x",
]


@pytest.fixture(scope="module", autouse=True)
def imported(tiny_reward):
    """What the first load imports is no folder's doing."""
    load_reward_model(str(tiny_reward), FLOAT32)


@pytest.fixture
def folder(tiny_reward, tmp_path):
    """A model that may be spoilt."""
    return shutil.copytree(tiny_reward, tmp_path / "model")


def load(folder, loader=load_reward_model):
    size = sum(file.stat().st_size for file in folder.iterdir())
    try:
        with bounded_memory(size):
            loader(str(folder), FLOAT32)
    except ModelLoadError as error:
        assert str(error).startswith(str(folder))
        assert "\n" not in str(error)
        return str(error)
    return ""


@pytest.mark.parametrize("name", JSON_FILES[:3])
def test_any_json(name, folder):
    path = folder / name
    good = json.loads(path.read_text()) if path.is_file() else {"eos_token_id": 2}

    @fuzzed
    @given(mangled([good], KEYS) | SCALARS)
    def run(content):
        path.write_text(json.dumps(content))
        load(folder)

    run()


@fuzzed
@given(at=st.floats(0, 1), patch=st.binary(max_size=8), keep=st.booleans(), name=st.sampled_from(JSON_FILES))
def test_damaged_files(at, patch, keep, name, tiny_reward, tmp_path_factory):
    folder = shutil.copytree(tiny_reward, tmp_path_factory.mktemp("damaged") / "model")
    for file in (folder / "model.safetensors", folder / name):
        if file.is_file():
            content = file.read_bytes()
            place = int(at * min(len(content), 4096))
            file.write_bytes(content[:place] + patch + (content[place + len(patch) :] if keep else b""))
    load(folder)


def header(length, text=b""):
    return length.to_bytes(8, "little") + text


def tensor(shape, end, dtype="F32"):
    text = json.dumps({"score.weight": {"dtype": dtype, "shape": shape, "data_offsets": [0, end]}}).encode()
    return header(len(text), text)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        header(2**63),
        header(2**64 - 1, b"{}"),
        header(90_000_000, b"{}"),
        header(2, b"{}"),
        header(200_000, b"[" * 200_000),
        tensor([2**40], 4 * 2**40),
        tensor([2**62, 2**62], 16),
        tensor([4], 16),
        tensor([-1], 16) + bytes(16),
        tensor([0, 2**60], 0),
        tensor([4], 16, "EVIL") + bytes(16),
        b"PK\x03\x04" + bytes(100),
    ],
    ids=range(13),
)
def test_safetensors_that_lie(content, folder):
    (folder / "model.safetensors").write_bytes(content)
    assert load(folder)


@pytest.mark.parametrize(
    ("key", "value", "told"),
    [
        ("vocab_size", 2**40, "the shapes that config.json asks for aren't those of the weights"),
        ("hidden_size", 2**30, "aren't those of the weights"),
        ("num_hidden_layers", 10**6, "config.json says num_hidden_layers = 1000000"),
        ("num_labels", 2**30, "config.json says num_labels = 1073741824"),
        ("text_config", {"num_layers": 10**9}, "config.json says num_layers"),
    ],
)
def test_sizes_that_no_memory_has_are_refused_before_they_are_allocated(key, value, told, folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    assert told in load(folder)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth", "model.ckpt", "model.pkl"])
@pytest.mark.parametrize("loader", [load_reward_model, load_causal_lm])
def test_pickled_weights_are_named_and_never_read(name, loader, folder):
    (folder / "model.safetensors").unlink()
    torch.save({}, folder / name)
    told = load(folder, loader)
    assert name in told
    assert "save_pretrained" in told


def test_code_in_a_folder_never_runs(folder):
    ran = folder / "ran"
    code = f"open({str(ran)!r}, 'w').close()\nclass Evil:\n    pass\n"
    (folder / "evil.py").write_text(code)
    mapped = {"AutoConfig": "evil.Evil", "AutoModelForSequenceClassification": "evil.Evil"}
    for file, more in (
        ("config.json", {"auto_map": mapped, "model_type": "evil"}),
        ("tokenizer_config.json", {"auto_map": {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}}),
    ):
        content = json.loads((folder / file).read_text())
        (folder / file).write_text(json.dumps(content | more))
        load(folder)
        assert not ran.exists()
        (folder / file).write_text(json.dumps(content))
    assert not load(folder)


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{% for i in range(10**12) %}{% endfor %}",
        "{% include '/etc/passwd' %}",
        "{{ 1 / 0 }}",
        "{{ raise_exception(messages) }}",
        "{% if %}",
    ],
)
def test_a_hostile_chat_template_is_an_input_error(template):
    from lm.errors import InputError
    from lm.tokenizer import encode_chat

    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(InputError):
        encode_chat(tokenizer, [("user", "a")], add_generation_prompt=True)
