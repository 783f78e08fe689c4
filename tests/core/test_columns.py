"""What the columns of a frame are taken for."""

import numpy as np
import pandas as pd
import pytest

from bayesvision.core.columns import Columns


def kind(values, **options):
    frame = pd.DataFrame({"a": values, "other": np.arange(len(values))})
    column = Columns.of(frame, **options).columns[0]
    return column.kind, column


def test_a_date_in_writing_may_be_missing_anywhere():
    frame = pd.DataFrame({"when": [None, "1970-01-03", None, "1970-01-05"] * 10})
    codes = Columns.of(frame).encode(frame)[:4, 0]
    np.testing.assert_equal(codes, [np.nan, 2.0, np.nan, 4.0])


def test_a_column_of_dates_without_any_is_dropped():
    frame = pd.DataFrame({"when": pd.to_datetime([None, None, None]), "a": [1.0, 2.0, 3.0]})
    assert [c.kind for c in Columns.of(frame).columns] == ["dropped", "number"]


def test_numbers_text_dates_and_truth_values():
    assert kind([1.5, 2.5, np.nan, 4.0])[0] == "number"
    assert kind(["1", " 2 ", "3.5", None])[0] == "number"
    assert kind([True, False, True, False])[0] in ("number", "category")
    found = kind(["b", "a", "b", None])
    assert found[0] == "category" and found[1].levels == ("b", "a")
    assert kind(["2020-01-02", "2021-03-04", None, "2022-05-06"])[0] == "date"
    assert kind(pd.to_datetime(["2020-01-02", "2021-03-04", "2020-01-02"]))[0] == "date"


def test_what_says_nothing_is_dropped_and_why():
    assert kind([3.0] * 6)[1].why
    assert kind([3.0] * 6)[0] == kind([None] * 6)[0] == kind(["x"] * 6)[0] == "dropped"
    found = kind([f"note {k} of someone" for k in range(60)])
    assert found[0] == "dropped" and "60 different" in found[1].why


def test_the_user_decides():
    assert kind([1, 2, 1, 2], kinds={"a": "category"})[1].levels == ("1", "2")
    assert kind([1, 2, 1, 2], kinds={"a": "dropped"})[0] == "dropped"
    with pytest.raises(ValueError, match=r"kinds names columns that are not there: b"):
        kind([1, 2], kinds={"b": "number"})
    with pytest.raises(ValueError, match="the kind of 'a' must be one of"):
        kind([1, 2], kinds={"a": "numeric"})


def test_codes_and_holes():
    frame = pd.DataFrame(
        {"a": ["x", "y", "x", None], "b": ["1", "2", "", "4"], "c": pd.to_datetime(["1970-01-02"] * 4)}
    )
    frame.loc[1, "c"] = pd.Timestamp("1970-01-03 12:00")
    columns = Columns.of(frame)
    x = columns.encode(frame)
    np.testing.assert_array_equal(x[:, 0], [0, 1, 0, np.nan])
    np.testing.assert_array_equal(x[:, 2], [1, 2.5, 1, 1])
    other = pd.DataFrame({"c": frame["c"], "a": ["z"] * 4, "b": frame["b"]})  # other order, a level that is new
    assert np.isnan(columns.encode(other)[:, 0]).all()
    np.testing.assert_array_equal(columns.encode(other)[:, 2], x[:, 2])


def test_columns_come_back_from_json():
    frame = pd.DataFrame({"a": ["x", "y", "x"], "b": [1.0, 2.0, np.nan]})
    columns = Columns.of(frame)
    assert Columns.from_json(columns.to_json()) == columns


def test_tables_that_are_none():
    with pytest.raises(ValueError, match="two columns of the same name"):
        Columns.of(pd.DataFrame([[1, 2], [3, 4]], columns=["a", "a"]))
    with pytest.raises(ValueError, match="no column is left"):
        Columns.of(pd.DataFrame({"a": [1, 1]}))
    columns = Columns.of(pd.DataFrame({"a": [1, 2], "b": [3, 4]}))
    with pytest.raises(ValueError, match="b"):
        columns.encode(pd.DataFrame({"a": [1, 2]}))
