"""`plaudit score` on files: what comes out, and what goes to the side."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from row_files import GOOD, LONG, lines, right, write_lines
from toy_reward import CONTEXT, TOKENIZER, ToyEnsemble, ToyReward, serving

from plaudit.v1 import reward_pb2

# --- what comes out ---


def test_json_lines(score, toy, files):
    write_lines(files / "in.jsonl", GOOD)
    assert score("in.jsonl", "-o", "out.jsonl") == (0, "", "plaudit: scored 60 rows\n")
    assert lines(files / "out.jsonl") == [right(toy, row) for row in GOOD]
    assert {path.name for path in files.iterdir()} == {"in.jsonl", "out.jsonl"}


def test_csv(score, toy, files):
    body = "".join(f'{row["id"]},"{row["prompt"]}",{row["response"]}\n' for row in GOOD)
    (files / "in.csv").write_text("id,prompt,response\n" + body)
    assert score("in.csv", "-o", "out.csv")[0] == 0
    header, *records = (files / "out.csv").read_text().splitlines()
    assert header == "id,prompt,response,reward,raw_reward,token_count"
    for record, row in zip(records, GOOD, strict=True):
        *kept, reward, raw, tokens = record.split(",")
        assert kept == [str(row["id"]), '"p"', row["response"]]
        assert (float(reward), float(raw), int(tokens)) == (*[*right(toy, row).values()][3:],)


def test_parquet(score, toy, files):
    pq.write_table(pa.Table.from_pylist(GOOD), files / "in.parquet")
    assert score("in.parquet", "-o", "out.parquet")[0] == 0
    assert pq.read_table(files / "out.parquet").to_pylist() == [right(toy, row) for row in GOOD]


def test_an_empty_file(score, files):
    write_lines(files / "in.jsonl", [])
    assert score("in.jsonl", "-o", "out.jsonl") == (0, "", "plaudit: scored 0 rows\n")
    assert (files / "out.jsonl").read_bytes() == b""


def test_chats_and_ids(score, files, toy):
    rows = [
        {"messages": [{"role": "user", "content": "a b"}]},
        {"prompt": "x", "response": "y", "token_ids": [4, 5]},
    ]
    write_lines(files / "in.jsonl", rows)
    assert score("in.jsonl", "-o", "out.jsonl", "--tokenizer-sha256", TOKENIZER)[0] == 0
    assert [row["raw_reward"] for row in lines(files / "out.jsonl")] == [
        pytest.approx(toy.raw("user a b"), abs=1e-6),
        pytest.approx(toy.raw("4 5"), abs=1e-6),
    ]


def test_ids_of_another_tokenizer_end_it(score, files):
    write_lines(files / "in.jsonl", [{"token_ids": [4]}])
    code, _, err = score("in.jsonl", "-o", "out.jsonl", "--tokenizer-sha256", "0" * 64)
    assert (code, "tokenizer_sha256: is another" in err) == (70, True)


def test_truncation_has_a_column(score, files):
    write_lines(files / "in.jsonl", [{"prompt": "p", "response": LONG}, GOOD[0]])
    assert score("in.jsonl", "-o", "out.jsonl", "--truncation", "left")[0] == 0
    assert [row["truncated_tokens"] for row in lines(files / "out.jsonl")] == [3, 0]
    assert lines(files / "out.jsonl")[0]["token_count"] == CONTEXT


def test_components_have_a_column(run, files):
    write_lines(files / "in.jsonl", GOOD[:1])
    with serving(ToyEnsemble()) as address:
        assert run("score", "in.jsonl", "-o", "out.jsonl", "--components", "--address", address)[0] == 0
    (row,) = lines(files / "out.jsonl")
    assert [part["name"] for part in row["components"]] == ["left", "right"]
    assert {*row["components"][0]} == {"name", "raw_reward", "reward"}


def test_options_reach_the_service(run, files):
    class Listening(ToyReward):
        names = ("first", "second")

        def stream_results(self, items, options):
            self.options = options
            return super().stream_results(items, options)

    write_lines(files / "in.jsonl", GOOD[:1])
    with serving(toy := Listening()) as address:
        options = ["--model", "second", "--priority", "low", "--truncation", "right"]
        assert run("score", "in.jsonl", "--address", address, *options)[0] == 0
    assert (toy.options.model, toy.options.priority) == ("second", reward_pb2.PRIORITY_LOW)
    assert toy.options.truncation == reward_pb2.TRUNCATION_RIGHT


# --- bad rows ---


def test_bad_rows_go_to_the_side_with_line_and_reason(score, toy, files):
    empty = {"id": "e", "prompt": "p", "response": ""}
    rows = [
        GOOD[0],
        '{"prompt": broken\n',
        GOOD[1],
        "\n",
        empty,
        {"x": 1},
        GOOD[2],
        {"prompt": "p", "response": LONG},
    ]
    write_lines(files / "in.jsonl", rows)
    code, out, err = score("in.jsonl", "-o", "out.jsonl")
    assert (code, out) == (65, "")
    assert err == (
        "plaudit: scored 3 rows; 4 without a score in out.jsonl.bad.jsonl, such as "
        "line 2: is no JSON: Expecting value (character 12)\n"
    )
    assert lines(files / "out.jsonl") == [right(toy, row) for row in GOOD[:3]]
    bad = lines(files / "out.jsonl.bad.jsonl")
    assert [row["line"] for row in bad] == [2, 5, 6, 8]
    assert [row["row"] for row in bad] == ['{"prompt": broken', empty, {"x": 1}, rows[-1]]
    assert bad[1]["reason"] == "response: is empty; send text"
    assert "needs prompt and response" in bad[2]["reason"]
    assert f"has {CONTEXT + 3} tokens" in bad[3]["reason"]


def test_reasons_name_the_rows_own_columns(run, files):
    class WithPaths(ToyReward):
        has_chat_template = False

        def stream_results(self, items, options):
            """As our service has it: paths begin at the StreamItem."""
            return [
                reward_pb2.StreamResult(item_id=one.item_id, result=self.result(one.item, "item.", options))
                for one in items
            ]

    rows = [
        {"prompt": "p", "response": ""},
        {"prompt": "p", "response": LONG},
        {"messages": [{"role": "user", "content": "a"}]},
        {"token_ids": [4, 99_999]},
    ]
    write_lines(files / "in.jsonl", rows)
    with serving(WithPaths()) as address:
        run("score", "in.jsonl", "-o", "out.jsonl", "--tokenizer-sha256", TOKENIZER, "--address", address)
    assert [row["reason"] for row in lines(files / "out.jsonl.bad.jsonl")] == [
        "response: is empty; send text",
        f"has {CONTEXT + 3} tokens; shorten it",
        "there is no template; send a pair",
        "token_ids[1]: is too large; use ids of this model",
    ]


def test_the_side_file_may_have_a_name(score, files):
    write_lines(files / "in.jsonl", ["nothing\n"])
    assert score("in.jsonl", "-o", "out.jsonl", "--bad-rows", "bad.jsonl")[0] == 65
    assert [row["line"] for row in lines(files / "bad.jsonl")] == [1]
    assert (files / "out.jsonl").read_bytes() == b""


def test_bad_rows_of_csv_and_parquet(score, files):
    (files / "in.csv").write_text("prompt,response\np,\np,good\nonly one\n")
    assert score("in.csv", "-o", "out.csv")[0] == 65
    assert [(row["line"], row["row"]) for row in lines(files / "out.csv.bad.jsonl")] == [
        (2, {"prompt": "p", "response": ""}), (4, "only one"),
    ]  # fmt: skip
    pq.write_table(
        pa.table({"prompt": ["p", None], "response": ["", "x"], "data": [b"\xff", b"y"]}), "in.parquet"
    )
    assert score("in.parquet", "-o", "out.parquet")[0] == 65
    found = [(row["line"], row["row"]) for row in lines(files / "out.parquet.bad.jsonl")]
    assert found == [
        (1, {"prompt": "p", "response": "", "data": "b'\\xff'"}),
        (2, {"prompt": None, "response": "x", "data": "b'y'"}),
    ]


def test_a_reward_that_is_no_number_is_none(run, files):
    class Broken(ToyReward):
        def fill(self, message, text, with_components):
            super().fill(message, text, with_components)
            if text.endswith("1"):
                message.reward = float("nan")

    write_lines(files / "in.jsonl", GOOD[:3])
    with serving(Broken()) as address:
        assert run("score", "in.jsonl", "-o", "out.jsonl", "--address", address)[0] == 65
    assert [row["id"] for row in lines(files / "out.jsonl")] == [0, 2]
    assert "nan, which is no reward" in lines(files / "out.jsonl.bad.jsonl")[0]["reason"]


def test_columns_that_would_be_lost(score, files):
    write_lines(files / "in.jsonl", [{**GOOD[0], "reward": 1}])
    assert score("in.jsonl", "-o", "out.jsonl")[0] == 65
    (files / "in.csv").write_text("prompt,response,token_count\np,r,1\n")
    code, _, err = score("in.csv", "-o", "out.csv")
    assert (code, "in.csv: has a column 'token_count' already" in err) == (64, True)


# --- what can't be ---


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["none.jsonl", "-o", "out.jsonl"], "none.jsonl: no such file"),
        (["The film was"], "The film was: no such file (of one response both are needed: PROMPT RESPONSE)"),
        (["in.jsonl", "-o", "in.jsonl"], "must be different files"),
        (["in.jsonl", "-o", "out.jsonl", "--bad-rows", "./out.jsonl"], "must be different files"),
        (["in.jsonl", "-o", "nowhere/out.jsonl"], "there is no folder nowhere"),
        (["in.jsonl", "-o", "."], "no regular file"),
        (["in.jsonl", "-o", "out.csv"], "the output has the format of the input, jsonl"),
        (["in.txt", "-o", "out.txt"], "unknown suffix"),
        (["in.jsonl", "-o", "out.jsonl", "--json"], "is for one response"),
        (["in.jsonl", "-o", "out.jsonl", "--chat"], "is for one response"),
        (["in.jsonl", "answer", "-o", "out.jsonl"], "is for files"),
        (["p", "r", "--format", "csv"], "is for files"),
        (["in.jsonl", "-o", "out.jsonl", "--window", "0"], "--window"),
        (["-", "--format", "csv"], "stdin is read as JSON lines"),
        (["in.parquet"], "Parquet isn't written to a pipe"),
    ],
)
def test_what_can_not_be_is_said(score, files, arguments, words):
    write_lines(files / "in.jsonl", GOOD[:1])
    (files / "in.txt").write_text("x")
    pq.write_table(pa.table({"prompt": ["p"], "response": ["r"]}), files / "in.parquet")
    before = {path.name for path in files.iterdir()}
    code, out, err = score(*arguments)
    assert (code, out) == (64, "")
    assert words in err
    assert {path.name for path in files.iterdir()} == before


def test_a_format_may_be_named(score, files):
    write_lines(files / "in.txt", GOOD[:2])
    assert score("in.txt", "-o", "out.dat", "--format", "jsonl")[0] == 0
    assert len(lines(files / "out.dat")) == 2
