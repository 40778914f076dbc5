"""What any page says of files, tests, errors and commands is so."""

import ast
import importlib
import pkgutil
import re
from functools import cache

import grpc
import pytest
from doc_pages import DOCS, ROOT, codes, links, pages, rows, sections

import plaudit
import plaudit.clients.errors
import trainer
from services import errors
from services.rpc import server, status
from trainer import __main__ as trainer_main
from trainer.errors import TrainerError

PAGES = pages()
ARCHITECTURE = sections(PAGES["docs/architecture.md"])
ADRS = sorted((DOCS / "adr").glob("*.md"))


def slug(heading):
    """A heading as GitHub links to it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target in links(PAGES[page]):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        found = (ROOT / page).parent / path if path else ROOT / page
        assert found.exists(), target
        if anchor:
            assert anchor in map(slug, sections(found.read_text(encoding="utf-8"))), target


@cache
def definitions(name):
    """ "test_x" and "TestX::test_y" of a test file, found by its name, which is unique."""
    (path,) = (ROOT / "tests").rglob(name)
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        elif isinstance(node, ast.ClassDef):
            found |= {f"{node.name}::{each.name}" for each in node.body if hasattr(each, "name")}
    return found


@pytest.mark.parametrize("page", PAGES)
def test_tests_that_are_named_exist(page):
    for name, test in re.findall(r"`(test_\w+\.py)::([\w:]+)`", PAGES[page]):
        assert test in definitions(name), f"{name}::{test}"


@pytest.mark.parametrize("page", PAGES)
def test_paths_that_are_named_exist(page):
    """`lm/digests.py` and the like, in this repository."""
    top = r"(?:docs|examples|lm|plaudit|protos|services|tests|trainer)"
    for path in codes(PAGES[page]):
        if re.fullmatch(rf"{top}/[\w./-]+\.\w+", path):
            assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES)
def test_make_targets_that_are_named_exist(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE))
    named = {code.split()[1] for code in codes(PAGES[page]) if re.match(r"make [a-z]", code)}
    assert named <= targets


@pytest.mark.parametrize("page", PAGES)
def test_no_page_knows_a_machine(page):
    assert not re.search(r"(?<![\w.])/(work|tmp|root|home|mnt)/", PAGES[page])


def test_every_refusal_is_in_the_table_with_its_status_and_the_clients_exception():
    said = {}
    for raised, code, _, exception in rows(ARCHITECTURE["Errors"])[:-1]:
        for name in codes(raised):
            said[name] = (codes(code)[0], codes(exception)[0])
    by_code = plaudit.clients.errors._BY_CODE
    done = {kind.__name__: (code.name, by_code[code.name].__name__) for kind, code in status._CODES.items()}
    assert said == done


def test_anything_else_is_internal():
    *_, (_, code, _, exception) = rows(ARCHITECTURE["Errors"])
    assert codes(code) == [status.internal("id").code.name] == [grpc.StatusCode.INTERNAL.name]
    assert codes(exception) == ["Internal"]


def test_the_words_of_preconditions_are_those_that_services_raise():
    source = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "services").rglob("*.py"))
    raised = set(re.findall(r'PreconditionFailed\(\s*"([A-Z]+)"', source))
    (cell,) = (row[2] for row in rows(ARCHITECTURE["Errors"]) if errors.PreconditionFailed.__name__ in row[0])
    assert set(codes(cell)) - {"PreconditionFailure"} == raised


def trainer_errors(kind=TrainerError):
    """Every error of the trainer, by name; those of the deploy tool have a table in docs/deploy.md."""
    own = (each for each in kind.__subclasses__() if each.__module__.startswith("trainer."))
    found = {each.__name__: each for each in own if not each.__module__.startswith("trainer.cluster.")}
    return found | {name: each for error in found.values() for name, each in trainer_errors(error).items()}


def test_exit_codes():
    for module in pkgutil.walk_packages(trainer.__path__, "trainer."):
        importlib.import_module(module.name)
    table = rows(ARCHITECTURE["Exit codes"])
    of_trainer = {name: int(code) for code, _, *raised in table if raised for name in codes(raised[0])}
    assert of_trainer == {name: error.exit_code for name, error in trainer_errors().items()}
    by_itself = {0, TrainerError.exit_code, trainer_main.EXIT_INTERRUPTED}
    assert {int(code) for code, _, *raised in table if raised} == {*of_trainer.values(), *by_itself}
    of_services = {int(code) for code, _, *raised in table if not raised}
    assert of_services == {value for name, value in vars(server).items() if name.startswith("EXIT_")}


@pytest.mark.parametrize("path", ADRS, ids=lambda path: path.stem)
def test_a_decision_record_is_short_and_has_its_three_parts(path):
    text = path.read_text(encoding="utf-8")
    assert list(sections(text))[1:] == ["Context", "Decision", "Consequences"]
    assert len(text.splitlines()) <= 45


def test_decision_records_are_numbered_without_gaps():
    assert [int(path.name[:4]) for path in ADRS] == list(range(1, len(ADRS) + 1))


def test_the_changelog_knows_the_version():
    assert plaudit.__version__ in "".join(sections(PAGES["CHANGELOG.md"]))
