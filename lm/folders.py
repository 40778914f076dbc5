"""What a model's folder holds, looked at before anything is built of it."""

import json
from collections.abc import Iterator
from pathlib import Path

from safetensors import safe_open

from lm.errors import ModelLoadError

PICKLED = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
"""Suffixes of weights that are Python pickles."""
COUNTS = frozenset(
    {
        "num_hidden_layers",
        "num_layers",
        "n_layer",
        "n_layers",
        "encoder_layers",
        "decoder_layers",
        "num_labels",
    }
)
"""Keys of config.json that make a model large before its weights are read."""
MOST_LAYERS = 1000
"""Of a model with fewer tensors than that; so many are built in seconds."""
MOST_LABELS = 1 << 16


def check_folder(model_id: str) -> None:
    """Raises ModelLoadError for a folder that no model should be built of.

    What isn't there may be a hub id, whose files the hub has looked at.
    """
    folder = Path(model_id)
    if not folder.is_dir():
        if folder.is_absolute() or model_id.startswith("."):
            raise ModelLoadError(f"{model_id}: no such folder")
        return
    if not (folder / "config.json").is_file():
        raise ModelLoadError(f"{model_id}: no config.json in this folder; is it a Hugging Face model?")
    if any(folder.glob("*.safetensors")):
        _check_counts(model_id, folder)
        return
    for pickled in sorted(each.name for each in folder.iterdir() if each.suffix in PICKLED):
        raise ModelLoadError(
            f"{model_id}: no *.safetensors in this folder, and pickled weights are not read: {pickled} could "
            "run any code; where you trust it, write the model again with save_pretrained"
        )
    raise ModelLoadError(f"{model_id}: no *.safetensors in this folder; were the weights copied?")


def _check_counts(model_id: str, folder: Path) -> None:
    """A configuration of a million layers would be built for hours, to find that the files hold ten."""
    file = folder / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        tensors = 0
        for file in folder.glob("*.safetensors"):
            with safe_open(file, "pt") as opened:
                tensors += len(opened.keys())
    except Exception as error:  # files that lie, or are none
        reason = first_line(error)
        raise ModelLoadError(f"{model_id}: {file.name} is damaged: {reason}; was it copied whole?") from error
    for key, count in _counts(config):
        most = MOST_LABELS if key == "num_labels" else max(tensors, MOST_LAYERS)
        if count > most:
            raise ModelLoadError(
                f"{model_id}: config.json says {key} = {count}, for {tensors} tensors at most {most}"
            )


def _counts(config: object) -> Iterator[tuple[str, int]]:
    """Of layers and labels, which cost time and memory before any tensor is looked at."""
    for key, value in config.items() if isinstance(config, dict) else ():
        if key in COUNTS and isinstance(value, int):
            yield key, value
        yield from _counts(value)


def first_line(error: BaseException) -> str:
    """What a library says of a failure, short enough for a line of ours."""
    if "ignore_mismatched_sizes" in str(error):  # what transformers says of it is for its own callers
        return "the shapes that config.json asks for aren't those of the weights"
    if "trust_remote_code" in str(error):
        return (
            "needs Python that comes with it (auto_map), and such code doesn't run unless it is trusted; a "
            "service that was started with --trust-remote-code loads it"
        )
    if "backend tokenizer" in str(error):
        return "no tokenizer.json, nor files that make one; were the tokenizer's files copied?"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
