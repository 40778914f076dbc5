"""`plaudit score` again, after an end of any kind: nothing is lost, nothing is there twice."""

import json

import grpc
import pytest
from row_files import GOOD, bad_and_good, lines, side, write_form, write_lines
from toy_reward import TOKENIZER, Bad, ToyReward, serving

from plaudit.v1 import reward_pb2


class Dying(ToyReward):
    """Refuses all further items after `lives` of them, until `lives` is None."""

    lives = 20

    def stream_results(self, items, options):
        results = super().stream_results(items, options)
        if self.lives is None:
            return results
        kept, self.lives = results[-self.lives :] if self.lives else [], max(0, self.lives - len(results))
        return kept

    def ScoreStream(self, requests, context):
        for response in super().ScoreStream(requests, context):
            if response.results:
                yield response
            if self.lives == 0:
                context.abort(grpc.StatusCode.INTERNAL, "the model fell over")


def kept(path):
    """Lines of the rows whose results the journal has."""
    return [json.loads(line)[0] for line in path.read_text().splitlines()[1:]]


@pytest.mark.parametrize("format_", ["jsonl", "csv", "parquet"])
def test_it_goes_on_where_it_ended(run, files, toy, format_):
    path = write_form(files, format_)
    whole, out, journal = (files / f"{name}.{format_}" for name in ("whole", "out", "out"))
    journal = out.with_name(out.name + ".journal")
    assert run("score", path, "-o", whole, "--address", toy.address)[0] == 65
    sent = [text for text in toy.asked if text]
    with serving(dying := Dying()) as address:
        command = ["score", path, "-o", out, "--address", address, "--window", "4"]
        done = 0
        for dying.lives in (0, 1, 7, 3, 20):
            code, _, err = run(*command)
            assert (code, out.exists()) == (70, False)
            assert "the model fell over" in err
            assert "the same command goes on from there" in err
            assert next(text for text in dying.asked if text) == sent[done - bool(done > 29)]
            done = len(kept(journal))
            dying.asked.clear()
        assert 0 < done < len(sent)
        dying.lives = None
        assert run(*command)[0] == 65
        assert len(dying.asked) == len(sent) + 1 - done
    assert out.read_bytes() == whole.read_bytes()
    assert side(out).read_bytes() == side(whole).read_bytes()
    assert not [path for path in files.iterdir() if path.suffix in (".journal", ".partial")]


@pytest.fixture
def half(run, files):
    """A command that was ended in the middle, the server that did it, and what it kept."""
    write_lines(files / "in.jsonl", bad_and_good())
    with serving(dying := Dying()) as address:
        command = ["score", "in.jsonl", "-o", "out.jsonl", "--address", address, "--window", "4"]
        assert run(*command)[0] == 70
        dying.lives = None
        yield command, dying, (files / "out.jsonl.journal").read_bytes()


def test_an_input_that_changed_is_refused(run, files, half):
    command, _, before = half
    rows = bad_and_good()
    rows[-1] = {**rows[-1], "response": "another"}
    write_lines(files / "in.jsonl", rows)
    code, _, err = run(*command)
    assert (code, "the input's SHA-256 was" in err, "--restart" in err) == (64, True, True)
    assert (files / "out.jsonl.journal").read_bytes() == before
    assert run(*command, "--restart")[0] == 65
    assert lines(files / "out.jsonl")[-1]["response"] == "another"
    assert len(lines(files / "out.jsonl")) == 57


def test_another_model_is_refused(run, half):
    command, dying, _ = half
    dying.model = type(dying.model)(model_id="toy", weights_sha256="9" * 64, tokenizer_sha256=TOKENIZER)
    code, _, err = run(*command)
    assert (code, "the model's digest was" in err) == (64, True)
    dying.model = ToyReward().model
    assert run(*command)[0] == 65


@pytest.mark.parametrize(
    "option", [("--truncation", "left"), ("--components",), ("--tokenizer-sha256", TOKENIZER)]
)
def test_other_options_are_refused(run, half, option):
    command, _, _ = half
    code, _, err = run(*command, *option)
    assert (code, f"{option[0]} was" in err) == (64, True)


def test_window_priority_and_timeout_may_change(run, half):
    command, _, _ = half
    assert run(*command[:-2], "--window", "9", "--priority", "high", "--timeout", "30")[0] == 65


def test_an_input_that_changes_meanwhile_makes_no_output(run, files):
    class Meddling(ToyReward):
        def stream_results(self, items, options):
            write_lines(files / "in.jsonl", GOOD[:30])
            return super().stream_results(items, options)

    write_lines(files / "in.jsonl", GOOD)
    with serving(Meddling()) as address:
        code, _, err = run("score", "in.jsonl", "-o", "out.jsonl", "--address", address)
    assert (code, "the input's SHA-256 changed while it was scored" in err) == (64, True)
    assert not (files / "out.jsonl").exists()


def test_a_model_that_changes_meanwhile_makes_no_output(run, files):
    class Swapped(ToyReward):
        def stream_results(self, items, options):
            self.model = reward_pb2.GetModelResponse().model
            return super().stream_results(items, options)

    write_lines(files / "in.jsonl", GOOD)
    with serving(Swapped()) as address:
        code, _, err = run("score", "in.jsonl", "-o", "out.jsonl", "--address", address)
    assert (code, "the model's digest changed" in err, (files / "out.jsonl").exists()) == (64, True, False)


def test_ended_while_it_writes_it_writes_again(score, toy, files, monkeypatch):
    write_lines(files / "in.jsonl", bad_and_good())
    with monkeypatch.context() as patched:
        patched.setattr("plaudit.files.jsonl.JsonLinesSink.close", lambda self: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            score("in.jsonl", "-o", "out.jsonl")
    assert {path.name for path in files.iterdir()} == {
        "in.jsonl", "out.jsonl.journal", "out.jsonl.partial", "out.jsonl.bad.jsonl.partial",
    }  # fmt: skip
    asked = len(toy.asked)
    assert score("in.jsonl", "-o", "out.jsonl")[0] == 65
    assert len(toy.asked) == asked
    assert {path.name for path in files.iterdir()} == {"in.jsonl", "out.jsonl", "out.jsonl.bad.jsonl"}
    assert len(lines(files / "out.jsonl")) == 57


def test_what_is_finished_is_not_replaced_unless_asked(score, toy, files):
    write_lines(files / "in.jsonl", ["bad\n", *GOOD])
    assert score("in.jsonl", "-o", "out.jsonl")[0] == 65
    before, asked = (files / "out.jsonl").read_bytes(), len(toy.asked)
    code, _, err = score("in.jsonl", "-o", "out.jsonl")
    assert (code, err) == (
        64,
        "plaudit: out.jsonl: is there already; --restart scores anew and replaces it\n",
    )
    assert ((files / "out.jsonl").read_bytes(), len(toy.asked)) == (before, asked)
    write_lines(files / "in.jsonl", GOOD)
    assert score("in.jsonl", "-o", "out.jsonl", "--restart")[0] == 0
    assert {path.name for path in files.iterdir()} == {"in.jsonl", "out.jsonl"}, "there are no bad rows now"


def test_a_side_file_of_somebody_else_is_not_replaced(score, files):
    write_lines(files / "in.jsonl", GOOD)
    (files / "mine").write_text("mine")
    assert score("in.jsonl", "-o", "out.jsonl", "--bad-rows", "mine")[0] == 64
    assert (files / "mine").read_text() == "mine"


def test_a_service_that_is_away_is_told_and_nothing_is_begun(run, files, unused_address):
    write_lines(files / "in.jsonl", GOOD)
    code, out, err = run("score", "in.jsonl", "-o", "out.jsonl", "--address", unused_address)
    assert (code, out, err.count("\n")) == (69, "", 1)
    assert [path.name for path in files.iterdir()] == ["in.jsonl"]


def test_items_that_a_service_turns_away_in_passing_are_no_bad_rows(run, files):
    class Full(ToyReward):
        full = True

        def item_error(self, bad):
            error = super().item_error(bad)
            error.code = grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
            return error

        def words(self, item, path):
            if self.full and item.pair.response == "answer 7":
                raise Bad("pair", "the queue is full")
            return super().words(item, path)

    write_lines(files / "in.jsonl", GOOD)
    with serving(full := Full()) as address:
        command = ["score", "in.jsonl", "-o", "out.jsonl", "--address", address]
        code, _, err = run(*command)
        assert (code, "the queue is full" in err) == (70, True)
        full.full = False
        assert run(*command)[0] == 0
    assert [row["id"] for row in lines(files / "out.jsonl")] == [*range(60)]


def test_progress_is_shown_if_asked(score, files):
    write_lines(files / "in.jsonl", GOOD)
    code, out, err = score("in.jsonl", "-o", "out.jsonl", "--progress")
    assert (code, out) == (0, "")
    for words in ("scored", "written", "100 %", "60 rows"):
        assert words in err


def test_progress_counts_on_from_where_it_was(run, half):
    command, _, _ = half
    _, _, err = run(*command, "--progress")
    assert "100 %" in err
    assert "60 rows" not in err.split("written")[0]
