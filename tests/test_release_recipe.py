"""What a release says of how its dataset was indexed."""

import pytest
import yaml

from pipeline.errors import InputError
from pipeline.release_recipe import write


@pytest.mark.parametrize(
    ("said", "held"),
    [
        ({"name": "site"}, {"name": "site"}),  # a folder of DICOM, read by its headers
        ({"name": "site", "dicom": {"channels": {"T1": {"Modality": "MR"}}}}, None),
        ({"name": "site", "image": "{patient}/i.tif", "patient": "Doe", "listed": "mine.txt"}, None),
    ],
)
def test_how_but_not_whom(said, held, tmp_path):
    (tmp_path / "given.yaml").write_text(yaml.safe_dump(said))
    write(tmp_path / "given.yaml", tmp_path / "out.yaml")
    expected = held or {key: value for key, value in said.items() if key not in ("patient", "listed")}
    assert yaml.safe_load((tmp_path / "out.yaml").read_text()) == expected


def test_no_recipe_at_all(tmp_path):
    (tmp_path / "given.yaml").write_text("name: site\npatterns: none\n")
    with pytest.raises(InputError, match=r"given.yaml.*patterns"):
        write(tmp_path / "given.yaml", tmp_path / "out.yaml")
