"""Damaged CSV files: each is one line that names file, line, what was expected and what came."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from steelyard.benchmarks.estimators import read_games
from steelyard.csv_rows import read_rows
from steelyard.errors import UserError
from steelyard.report.records import read_metrics, read_records, read_scores

SCORES = "round,client,evaluator,value,std_error,validation_std_error,calls,evaluated,seconds\n"
METRICS = "round,accuracy,loss,participants,missing,weights,suspicion,seconds,model_sha256\n"
ROW = "1,0,sv,0.5,0.0,0.0,2,1,0.5\n"
GOOD = "1,0.5,0.5,0 1,,0:0.5 1:0.5,0:1.0:0.1 1:1.0:0.1,1.0,abc\n"


def test_rows_are_read_with_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text('a,b\n1,"x\ny"\n\n2,nan\n', encoding="utf-8")
    first, second = read_rows(path, ("b",))
    assert (first.whole("a"), first["b"], first.line) == (1, "x\ny", 3)
    assert (str(second.number("b")), second.line) == ("nan", 5)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "line 1: columns a, b expected, a is not among none: the file is empty"),
        (b"b,c\n1,2\n", "line 1: columns a, b expected, a is not among b, c"),
        (b"a,b\n1,2\n3\n", "line 3: 2 cells expected, got 1; is it cut?"),
        (b"a,b\n1,2,3\n", "line 2: 2 cells expected, got 3"),
        (b'a,b\n1,2\n3,"4', "line 4: a row of CSV in UTF-8 expected"),
        (
            b"a,b\n1,2\n3,4",
            "line 3: an end of the line expected, got none: the file may be cut; if it is whole, end its last line",
        ),
        (
            b"a,b",
            "line 1: an end of the line expected, got none: the file may be cut; if it is whole, end its last line",
        ),
        (b"a,b\n1,\xff\n", "a row of CSV in UTF-8 expected"),
    ],
)
def test_what_is_no_table_of_the_columns(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes(text)
    with pytest.raises(UserError) as raised:
        read_rows(path, ("a", "b"))
    assert str(raised.value).startswith(f"{path}")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SCORES, "a row per round, client and evaluator expected, got none"),
        (SCORES + ROW.replace("0.5,0.0", "x,0.0"), "line 2: a number as value expected, got 'x'"),
        (SCORES + ROW.replace("1,0", "one,0", 1), "line 2: a whole number as round expected, got 'one'"),
        (SCORES + ROW[:-8], "line 2: 9 cells expected, got 7"),
        (SCORES + ROW[:-2], "line 2: an end of the line expected, got none"),
    ],
)
def test_damaged_scores(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "scores.csv"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        read_scores(path)
    assert str(raised.value).startswith(f"{path}")
    assert message in str(raised.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (GOOD[:20], "line 2: 9 cells expected, got 6"),
        (GOOD.replace("1,0.5", "2,0.5", 1), "line 2: round 1 expected, got 2"),
        (GOOD.replace("0:0.5 1", "0 1"), "line 2: client:number or client:number:number in weights expected, got '0'"),
        (GOOD.replace("0:1.0:0.1", "0:1.0"), "in suspicion expected, got '0:1.0'"),
        (GOOD.replace("0:1.0:0.1", "0:1.0:x"), "in suspicion expected, got '0:1.0:x'"),
        (GOOD.replace("0 1,", "0 b,"), "line 2: clients' numbers in participants expected, got '0 b'"),
    ],
)
def test_damaged_metrics(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "metrics.csv").write_text(METRICS + text, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        read_metrics(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / 'metrics.csv'}")
    assert message in str(raised.value)


def test_scores_and_metrics_of_different_rounds(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text(json.dumps({}), encoding="utf-8")
    (tmp_path / "events.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "metrics.csv").write_text(METRICS + GOOD, encoding="utf-8")
    (tmp_path / "scores.csv").write_text(SCORES + ROW, encoding="utf-8")
    assert len(read_records(tmp_path).metrics) == 1
    (tmp_path / "metrics.csv").write_text(METRICS, encoding="utf-8")
    with pytest.raises(UserError, match=r"as many rounds in scores.csv as in metrics.csv expected, got 1 of sv and 0"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "line 1: columns coalition, value expected"),
        ("a,b\n1,2\n", "line 1: columns coalition, value expected"),
        ("coalition,value\n", "2^n rows expected, one per coalition of n players, got 0"),
        ("coalition,value\n0,0\n1,0.1\n2,0.2\n", "2^n rows expected, one per coalition of n players, got 3"),
        ("coalition,value\n0,0\n2,0.1\n", "line 3: coalition 1 expected, got 2"),
        ("coalition,value\n0,0\n1,x\n", "line 3: a number as value expected, got 'x'"),
        ("coalition,value\n0,0\n1,nan\n", "line 3: a finite value expected, got nan"),
        ("coalition,value\n0,0\n1", "line 3: 2 cells expected, got 1"),
    ],
)
def test_damaged_games(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "game.csv").write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as raised:
        read_games(tmp_path)
    assert str(raised.value).startswith(f"{tmp_path / 'game.csv'}")
    assert message in str(raised.value)
