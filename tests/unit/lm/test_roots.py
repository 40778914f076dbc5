"""What lies below a root, whatever links and dots say."""

from pathlib import Path

import pytest

from lm.errors import InputError
from lm.roots import Roots, is_hub_id


@pytest.fixture
def place(tmp_path, monkeypatch):
    """The working directory: data/ and runs/, which are roots, and outside/, which isn't."""
    for name in ("data", "runs", "outside"):
        (tmp_path / name).mkdir()
    (tmp_path / "data/file").touch()
    (tmp_path / "outside/file").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path.resolve()


@pytest.fixture
def roots(place):
    return Roots([str(place / "data"), "runs"])


@pytest.mark.parametrize(
    "path",
    ["data/file", "data", "./data/../runs/new/deeper", "outside/../data/file", "runs/no/../yet", "data/"],
)
def test_what_lies_below_a_root_relative_or_not_there_yet_or_with_dots(roots, place, path):
    assert roots.misfit(path) is None
    assert roots.misfit(Path(path)) is None
    assert roots.misfit(f"{place}/{path}") is None


@pytest.mark.parametrize(
    "path",
    [
        "outside/file",
        ".",
        "..",
        "/",
        "",
        "data/../outside/file",
        "data/../../etc",
        "runs/../../x",
        "data-of-others",
        "data/\0",
        "/proc/self/environ",
        "~/data",
        "x" * 5000,
    ],
)
def test_what_lies_elsewhere(roots, path):
    assert roots.misfit(path).startswith(f"{path!r} leads to no place below the roots ")


def test_the_message_names_the_path_and_the_roots(roots, place):
    named = f"{place}/data, {place}/runs"
    assert roots.misfit("outside/file") == (
        f"'outside/file' leads to no place below the roots {named} (--roots, PLAUDIT_ROOTS)"
    )


def test_links_count_by_where_they_lead(roots, place):
    (place / "data/out").symlink_to("../outside")
    (place / "data/dangling").symlink_to("../outside/new")
    (place / "data/two").symlink_to("out")
    (place / "outside/in").symlink_to("../data")
    assert roots.misfit("outside/in/file") is None
    for name in ("out", "out/file", "dangling", "dangling/deeper", "two/file", "two/../file"):
        assert roots.misfit(f"data/{name}") is not None, name


def test_a_link_to_itself_is_left_to_who_opens_it(roots, place):
    (place / "data/loop").symlink_to("loop")
    assert roots.misfit("data/loop") is None
    assert roots.misfit("data/loop/../../outside") is not None


def test_a_root_may_be_a_link_or_absent(place):
    (place / "link").symlink_to("data")
    assert Roots(["link"]).find("data/file") == (place / "data", Path("file"))
    assert Roots(["absent"]).find("absent/x/y") == (place / "absent", Path("x/y"))
    assert Roots(["absent"]).misfit("data/file") is not None


def test_the_root_itself_and_the_root_of_all(place):
    assert Roots(["data"]).find("data") == (place / "data", Path())
    assert Roots(["/"]).misfit("/etc/passwd") is None


def test_what_the_option_says(place):
    assert Roots.parse(None) is None
    both = Roots.parse("data:runs")
    assert both is not None
    assert both.misfit("data/file") is None and both.misfit("runs") is None
    assert both.misfit("outside") is not None


@pytest.mark.parametrize("text", ["", ":", "data:", ":data", "data::runs"])
def test_an_empty_entry_would_be_the_working_directory(text):
    with pytest.raises(InputError, match=r"--roots: .*has an empty entry; write DIR or DIR:DIR"):
        Roots.parse(text)


def test_a_hub_id_is_what_is_no_place_here(place):
    (place / "org").mkdir()
    (place / "org/link").symlink_to("nowhere")
    assert all(map(is_hub_id, ("org/model", "gpt2", "HuggingFaceTB/SmolLM2-135M")))
    assert not any(
        map(is_hub_id, ("data", "org", "org/link", "/no/where", "./no", "../no", ".hidden", "a/b/c"))
    )
