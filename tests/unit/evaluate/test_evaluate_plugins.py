"""Judge plug-ins: found, made, and told apart from broken ones."""

import pytest

from trainer.errors import ConfigError
from trainer.evaluate.plugins import JudgeError, load_plugin

PLUGIN = '''
class Longest:
    """Judges by length times a factor."""

    def __init__(self, factor=1.0):
        self.factor = factor

    def __call__(self, prompts, responses):
        return [self.factor * len(r) for r in responses]

def count_word(prompts, responses, word="good"):
    return [r.split().count(word) for r in responses]

not_callable = 3
'''


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "judge_of_mine.py"
    path.write_text(PLUGIN)
    return str(path)


def test_a_class_is_made_with_its_options(plugin):
    assert load_plugin(f"{plugin}:Longest", {"factor": 2.0})(["p", "p"], ["a", "abc"]) == [2.0, 6.0]


def test_a_function_is_called_with_its_options(plugin):
    assert load_plugin(f"{plugin}:count_word", {"word": "fine"})(["p"], ["fine fine good"]) == [2.0]


def test_a_file_is_imported_once_for_all_its_judges(plugin):
    first = load_plugin(f"{plugin}:Longest", {})
    second = load_plugin(f"{plugin}:Longest", {})
    assert type(first) is type(second)


def test_a_module_name_works_too():
    assert load_plugin("operator:concat", {})(["a"], ["b"]) == ["a", "b"]


@pytest.mark.parametrize(
    ("reference", "says"),
    [
        ("no_colon", "write it as"),
        (":Name", "write it as"),
        ("no/such/file.py:Name", "can't be imported"),
        ("no_such_module_here:Name", "can't be imported"),
        ("operator:no_such_name", "no 'no_such_name'"),
    ],
)
def test_a_reference_that_leads_nowhere_says_so(reference, says):
    with pytest.raises(JudgeError, match=says) as caught:
        load_plugin(reference, {})
    assert caught.value.exit_code == ConfigError.exit_code


def test_what_cannot_be_called_or_made_says_so(plugin):
    with pytest.raises(JudgeError, match="not_callable"):
        load_plugin(f"{plugin}:not_callable", {})
    with pytest.raises(JudgeError, match="unexpected keyword"):
        load_plugin(f"{plugin}:Longest", {"colour": "red"})


def test_a_file_that_fails_to_import_can_be_mended_and_imported(tmp_path):
    path = tmp_path / "broken.py"
    path.write_text("import this_is_not_installed")
    with pytest.raises(JudgeError, match="this_is_not_installed"):
        load_plugin(f"{path}:judge", {})
    path.write_text("def judge(prompts, responses):\n    return [1.0]\n")
    assert load_plugin(f"{path}:judge", {})(["p"], ["r"]) == [1.0]
