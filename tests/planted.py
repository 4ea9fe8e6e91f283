"""Phantom patients with a known identity: in headers, in names of files and folders, and burnt into the air."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from pydicom import dcmread

from pipeline.dicom import read_series
from pipeline.seg import write_segmentation
from pipeline.synthetic_projection import write_projection
from pipeline.synthetic_series import write_series

SIDE, SLICES = 96, 8
"""Pixels of a slice, 1 mm each, and slices, 3 mm apart."""

BODY_MM, BODY_VALUE, TEXT_VALUE = 33, 400, 900
"""Radius and intensity of the body; intensity of the text in the air around it."""

CLASS_NAMES = ("anterior", "posterior")

BURNT = "KNOBLAUCH"
"""What stands above and below the body in every slice, beside each patient's own name."""

UIDS = "1.2.276.0.99887766"
"""How every planted UID begins."""

SITE = "Studie Zwiebelacker der Knoblauchklinik Öhrlingsfurt"
"""Name of the dataset's root folder."""

SHARED = (
    "Zwiebel", "Quirin", "QZX4711", "OPX8852", "ACX3319", "Knoblauch", "Öhrlingsfurt", "Tassilo", "Rübengasse",
    "GERX5520", UIDS,
)  # fmt: skip
"""Parts that the planted texts of all patients share: whoever finds one of these has found a trace."""

HEADER_ONLY = ("OPX8852", "ACX3319", "Tassilo", "Rübengasse", "GERX5520", UIDS)
"""Those that stand in headers alone, in no name of a file."""


@dataclass(frozen=True)
class Person:
    """One patient, number from 0."""

    number: int

    @property
    def family(self):
        return "Zwiebel" + ("acker", "bach", "mann", "stein", "huber", "wirt")[self.number]

    @property
    def born(self):
        return f"193702{13 + self.number}"

    @property
    def studied(self):
        return f"199912{13 + self.number}"

    @property
    def patient_id(self):
        return f"QZX4711-{self.number + 1}"

    def uid(self, *numbers):
        return ".".join(map(str, (UIDS, self.number + 1, *numbers)))

    @property
    def header(self):
        """Attributes by keyword."""
        return {
            "SpecificCharacterSet": "ISO_IR 192",
            "PatientName": f"{self.family}^Quirina",
            "PatientID": self.patient_id,
            "OtherPatientIDs": f"OPX8852-{self.number}",
            "PatientBirthDate": self.born,
            "PatientSex": "FM"[self.number % 2],
            "PatientAge": f"06{self.number}Y",
            "PatientAddress": f"Rübengasse {self.number}",
            "PatientComments": f"{self.family}, Quirina",
            "AccessionNumber": f"ACX3319-{self.number}",
            "InstitutionName": "Knoblauchklinik Öhrlingsfurt",
            "ReferringPhysicianName": "Knoblauch^Tassilo",
            "DeviceSerialNumber": "GERX5520",
            "StudyDate": self.studied,
            "StudyDescription": f"Kopf {self.family}",
            "StudyInstanceUID": self.uid(1),
            "SeriesInstanceUID": self.uid(2),
            "FrameOfReferenceUID": self.uid(3),
        }


def texts():
    """Every text to look for."""
    people = [Person(number) for number in range(6)]
    dates = [date for person in people for date in (person.born, person.studied)]
    spelt = [f"{date[:4]}-{date[4:6]}-{date[6:]}" for date in dates]
    german = [f"{date[6:]}.{date[4:6]}.{date[:4]}" for date in dates]
    return [*SHARED, *dates, *spelt, *german]


def written(text):
    """A text as it is burnt in: (H, W) bool."""
    font = ImageFont.load_default(9)
    left, top, right, bottom = font.getbbox(text)
    picture = Image.new("1", (int(right - left) + 1, int(bottom - top) + 1))
    ImageDraw.Draw(picture).text((-left, -top), text, fill=1, font=font)
    return np.asarray(picture)


def burn(picture, family):
    """Write the texts into the air of an (H, W) picture, rows first: the clinic above, the family below."""
    for text, below in ((BURNT, False), (family.upper(), True)):
        glyphs = written(text)
        row = picture.shape[0] - 2 - glyphs.shape[0] if below else 2
        picture[row : row + glyphs.shape[0], 2 : 2 + glyphs.shape[1]][glyphs] = TEXT_VALUE


def write_mr(root, people=6):
    """Series of MR with a reference each, under folders and files that say who it is."""
    for person in map(Person, range(people)):
        volume, label = _head(person)
        home = root / f"{person.patient_id} {person.family}, Quirina" / f"{person.studied} Öhrlingsfurt"
        files = write_series(
            volume, home / "MR", spacing_mm=(1, 1, 3), patient_id=person.patient_id, modality="MR",
            attributes=person.header,
        )  # fmt: skip
        for number, file in enumerate(files):
            dataset = dcmread(file)
            dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = person.uid(4, number + 1)
            dataset.save_as(file.with_name(f"{person.family}_{person.born}_{number:03d}.dcm"))
            file.unlink()
        write_segmentation(
            label, read_series(home / "MR"), home / f"SEG {person.family}.dcm", class_names=CLASS_NAMES, version="1"
        )
    return root


def write_dx(root, people=6):
    """One X-ray each with its mask, under folders and files that say who it is."""
    for person in map(Person, range(people)):
        volume, label = _head(person)
        name = f"{person.family}_{person.born}"
        picture, header = volume[:, :, 0].T.astype(np.uint16), person.header
        del header["FrameOfReferenceUID"], header["SeriesInstanceUID"]
        write_projection(
            picture, root / f"{person.patient_id} {person.family}" / f"{name}.dcm", patient_id=person.patient_id,
            detector_spacing_mm=(1, 1), attributes=header,
        )  # fmt: skip
        mask = root / "masks" / f"{person.patient_id}.png"
        mask.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((255 * (label[:, :, 0].T > 0)).astype(np.uint8)).save(mask)
    return root


def _head(person):
    """Volume and label, (X, Y, Z) as stored: X to the patient's left, Y to the back."""
    rng = np.random.default_rng(person.number)
    x, y, _ = np.meshgrid(np.arange(SIDE), np.arange(SIDE), np.arange(SLICES), indexing="ij")
    middle = (SIDE - 1) / 2
    body = np.hypot(x - middle, y - middle) < BODY_MM
    core = np.hypot(x - middle, y - middle) < 10 + person.number
    label = (core * np.where(y < middle, 1, 2)).astype(np.uint8)
    noise = rng.normal(size=body.shape)
    volume = np.where(body, BODY_VALUE + 200 * (label == 1) - 150 * (label == 2) + 20 * noise, 4 * np.abs(noise))
    volume = np.clip(volume, 0, 1000).round().astype(np.int16)
    for number in range(SLICES):
        burn(volume[:, :, number].T, person.family)
    return volume, label
