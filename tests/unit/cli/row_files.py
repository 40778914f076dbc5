"""Files of rows to score, and what must come of them with a ToyReward."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from toy_reward import CONTEXT, MEAN, STD

LONG = " word" * (CONTEXT + 1)
GOOD = [{"id": n, "prompt": "p", "response": f"answer {n}"} for n in range(60)]


def write_lines(path, rows):
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def right(toy, row):
    """The columns that a row gets."""
    text = f"{row['prompt']} {row['response']}"
    raw = pytest.approx(toy.raw(text), abs=1e-6)
    reward = pytest.approx((toy.raw(text) - MEAN) / STD, abs=1e-6)
    return {**row, "reward": reward, "raw_reward": raw, "token_count": len(text.split(" "))}


def bad_and_good():
    rows = [*GOOD]
    rows[10], rows[30], rows[45] = "broken\n", {"prompt": "p", "response": ""}, "[]\n"
    return rows


def write_form(files, format_):
    """bad_and_good in a format, as far as it can hold it."""
    path = files / f"in.{format_}"
    if format_ == "jsonl":
        return write_lines(path, bad_and_good())
    rows = [row if isinstance(row, dict) else {"prompt": None, "response": "x"} for row in bad_and_good()]
    if format_ == "parquet":
        pq.write_table(pa.Table.from_pylist([{"id": None, **row} for row in rows]), path)
        return path
    body = "".join("one value\n" if row["prompt"] is None else f"p,{row['response']}\n" for row in rows)
    path.write_text("prompt,response\n" + body)
    return path


def side(path):
    return path.with_name(path.name + ".bad.jsonl")
