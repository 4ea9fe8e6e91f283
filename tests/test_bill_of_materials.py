"""The bill is valid by CycloneDX's own schema, complete, and the same for the same release."""

import json
from importlib.metadata import version

import pytest
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator

from pipeline import bill_of_materials
from pipeline.digests import file_digest


@pytest.fixture(scope="module")
def bill(unpacked):
    return (unpacked / "sbom.cdx.json").read_text()


def test_cyclonedx_finds_no_fault(bill):
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(bill) is None


def test_it_lists_what_is_needed_and_the_release_s_own_files(bill, unpacked):
    found = {part["name"]: part for part in json.loads(bill)["components"]}
    assert {"monai", "torch", "numpy", "pydicom", "mlflow"} < found.keys()
    assert not {"pytest", "ruff", "mypy"} & found.keys()
    assert found["monai"]["purl"] == f"pkg:pypi/monai@{version('monai')}"
    assert found["numpy"]["licenses"][0]["expression"].startswith("BSD-3-Clause")
    (wheel,) = (unpacked / "wheels").iterdir()
    weights = unpacked / "models/model.safetensors"
    assert found["overtile"]["hashes"] == [{"alg": "SHA-256", "content": file_digest(wheel)}]
    assert found["model.safetensors"]["hashes"] == [{"alg": "SHA-256", "content": file_digest(weights)}]
    assert found["model.safetensors"]["type"] == "machine-learning-model"


def test_who_needs_whom_leads_from_the_release_to_every_package(bill):
    content = json.loads(bill)
    needs = {part["ref"]: part.get("dependsOn", []) for part in content["dependencies"]}
    reached, queue = set(), ["release"]
    while queue:
        reached.add(ref := queue.pop())
        queue += [needed for needed in needs[ref] if needed not in reached]
    assert reached == {"release", *(part["bom-ref"] for part in content["components"])}


def test_another_release_has_another_serial_number_and_none_a_date(bill, unpacked, tmp_path):
    (wheel,) = (unpacked / "wheels").iterdir()
    weights = unpacked / "models/model.safetensors"
    bills = []
    for number in ("1.0.0", "1.0.0", "1.0.1"):
        bill_of_materials.write(tmp_path / "bill", name="x", version=number, wheel=wheel, weights=weights)
        bills.append((tmp_path / "bill").read_text())
    assert bills[0] == bills[1]
    assert len({json.loads(text)["serialNumber"] for text in bills}) == 2
    assert "timestamp" not in bill
