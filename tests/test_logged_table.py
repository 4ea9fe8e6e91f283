import json
import random
import re
from functools import cmp_to_key

import pandas as pd
import pytest

from pipeline.logged_table import FILE, TAG, as_logged_table


def column(*values):
    return [row[0] for row in as_logged_table([{"score": value} for value in values])["data"]]


def viewer(texts):
    """The order of MLflow's viewer (TanStack Table): letter by letter up to ten rows, else with its `alphanumeric`."""

    def compare(first, second):
        a, b = ([part for part in re.split("([0-9]+)", text) if part] for text in (first, second))
        for one, other in zip(a, b, strict=False):
            numbers = [int(part) if part.isdigit() else None for part in (one, other)]
            if numbers == [None, None]:
                if one != other:
                    return 1 if one > other else -1
            elif None in numbers:
                return -1 if numbers[0] is None else 1
            elif numbers[0] != numbers[1]:
                return 1 if numbers[0] > numbers[1] else -1
        return len(a) - len(b)

    return sorted(texts) if len(texts) <= 10 else sorted(texts, key=cmp_to_key(compare))


def test_that_order_is_wrong_for_plain_numbers():
    assert viewer(["0.913", "0.1007", *["2"] * 9])[:2] == ["0.913", "0.1007"]
    assert viewer(["9.65", "104.1"]) == ["104.1", "9.65"]


@pytest.mark.parametrize("count", [8, 40])
@pytest.mark.parametrize("largest", [1, 120, 4000])
def test_numbers_are_written_so_that_it_is_right(count, largest):
    numbers = [largest * random.Random(n).random() for n in range(count)]
    texts = column(*numbers)
    assert viewer(texts) == [f"{number:0{len(texts[0])}.4f}" for number in sorted(numbers)]


def test_whole_numbers_texts_and_what_is_not_defined():
    assert column(*range(1, 12))[:2] == ["01", "02"]
    assert column(0.5, None, 1.0) == ["0.5000", "-", "1.0000"]
    assert column("F", None, "") == ["F", "-", ""]
    assert viewer(column(0.5, None, 0.25, *[1.0] * 9))[0] == "-"


def test_a_column_that_some_rows_lack_is_empty_there():
    table = as_logged_table([{"case": "a", "Dice": 0.5}, {"case": "b", "Dice": None, "picture": "x.png"}])
    assert table == {"columns": ["case", "Dice", "picture"], "data": [["a", "0.5000", ""], ["b", "-", "x.png"]]}


def test_a_point_in_a_name_is_no_path():
    assert as_logged_table([{"Dice v1.2": 1.0}])["columns"] == ["Dice v1_2"]


@pytest.mark.filterwarnings("ignore:.*'str' dtypes are included")
def test_mlflow_itself_writes_and_tags_the_same(tmp_path, empty_store):
    import shutil

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{shutil.copy(empty_store, tmp_path)}")
    run = client.create_run(client.create_experiment("e", tmp_path.as_uri())).info.run_id
    table = as_logged_table([{"case": "a", "Dice": 0.5}, {"case": "b", "Dice": 0.25}])
    client.log_table(run, pd.DataFrame(table["data"], columns=table["columns"]), FILE)
    (written,) = tmp_path.rglob(FILE)
    assert json.loads(written.read_text()) == table
    assert TAG.items() <= client.get_run(run).data.tags.items()
