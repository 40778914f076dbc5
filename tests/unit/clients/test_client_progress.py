"""The bar of score_many: on stderr, only if asked for, and gone when the results are."""

import threading

import pytest
from scripted_servers import REWARD
from scripted_streams import Streams, expected, pairs, score_many_async, score_many_sync


@pytest.fixture
def address(serve):
    return serve(REWARD, {"ScoreStream": [Streams().answer]}).address


@pytest.fixture(params=[score_many_sync, score_many_async], ids=["sync", "async"])
def score_many(request):
    return request.param


def test_no_bar_unless_asked_for(address, score_many, capsys):
    assert list(score_many(address, pairs(5))) == expected(5)
    assert capsys.readouterr() == ("", "")


def test_a_bar_of_known_length(address, score_many, capsys):
    assert list(score_many(address, pairs(5), progress=True)) == expected(5)
    out, err = capsys.readouterr()
    assert out == ""
    assert "5/5" in err
    assert "failed" not in err


def test_a_bar_of_unknown_length(address, score_many, capsys):
    assert list(score_many(address, iter(pairs(5)), progress=True)) == expected(5)
    assert "5/?" in capsys.readouterr().err


def test_failures_are_counted(address, score_many, capsys):
    results = list(score_many(address, ["text", *pairs(3), None], progress=True))
    assert len(results) == 5
    err = capsys.readouterr().err
    assert "5/5" in err
    assert "2 failed" in err


def test_leaving_ends_the_bar(address, score_many, capsys):
    before = threading.active_count()
    results = score_many(address, pairs(50), progress=True, window=5)
    assert [next(results) for _ in range(3)] == expected(3)
    results.close()
    assert "3/50" in capsys.readouterr().err
    for thread in threading.enumerate():
        if "Refresh" in type(thread).__name__:
            thread.join(20)
            assert not thread.is_alive()
    assert threading.active_count() <= before + 3, "the server's pool"
