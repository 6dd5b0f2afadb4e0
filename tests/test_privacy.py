"""Nothing that identifies a person or a place is in anything written: searched for byte by byte, packed or plain.

A made-up cohort carries canaries in every name, date, number, UID, description, private tag, file and folder. It goes
through the whole of the command line, and every file that came of it is searched, within archives and streams too.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import io
import json
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, PngImagePlugin
from pydicom.dataset import Dataset

from lesionaug.cli import main
from lesionaug.data.store import load_rois
from lesionaug.study.files import load_study, load_truth
from tests.answered_studies import answer_study
from tests.dicom_files import circle_mm, contour, ct_dataset, disc, rtstruct_dataset, segmentation, write

# The searcher

MAX_DEPTH = 6
MAX_INFLATED = 64 << 20


def spellings(token: str) -> set[bytes]:
    """How a text may be written, in lower case: encodings, hexadecimal, base64 at any offset, backwards, escaped."""
    plain = token.casefold()
    found = {json.dumps(plain).strip('"').lower().encode()}
    for one in (token, plain, token.upper()):
        found |= {one[::-1].encode().lower(), one.encode("utf-32-le").lower()}  # NumPy's texts are UTF-32
        utf8 = one.encode()
        found |= {utf8.lower(), utf8.hex().encode(), one.encode("utf-16-le").lower(), one.encode("utf-16-be").lower()}
        found.add(one.encode("latin-1", "replace").lower())
        for offset in range(3):
            packed = base64.b64encode(b"\0" * offset + utf8)[(0, 2, 3)[offset] :].rstrip(b"=")
            found.add(packed[:-1].lower())  # the last digit depends on what follows
    found.add(re.sub(r"[^\x21-\x7e]|[%\s]", lambda m: "".join(f"%{b:02x}" for b in m[0].encode()), plain).encode())
    if token.isdigit() and int(token) < 1 << 31:
        found |= {struct.pack(code, int(token)).lower() for code in ("<i", ">i", "<q", ">q")}
    return {entry for entry in found if len(entry) >= 4}


def packed_in(content: bytes) -> list[bytes]:
    """Whatever is packed in some bytes: gzip, zlib and zip streams, base64, JSON escapes; a PNG without its pixels."""
    inner: list[bytes] = []
    if content.startswith(b"\x89PNG") and b"IDAT" in content:
        return [b"\n".join(kind + chunk for kind, chunk in _png_chunks(content) if kind != b"IDAT")]
    whole = memoryview(content)
    for found in re.finditer(rb"\x1f\x8b\x08", content):
        inner.append(_inflate(whole[found.start() :], 31))
    for found in re.finditer(rb"[\x28\x38\x48\x58\x68\x78][\x01\x5e\x9c\xda]", content):
        if int.from_bytes(found[0], "big") % 31 == 0:
            inner.append(_inflate(whole[found.start() :], 15))
    if b"PK\x03\x04" in content:
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                inner += [archive.read(name) for name in archive.namelist()]
                inner.append(b"\n".join([archive.comment, *(i.comment + i.extra for i in archive.infolist())]))
        except (zipfile.BadZipFile, ValueError, NotImplementedError, RuntimeError, zlib.error):
            pass
        for found in re.finditer(rb"PK\x03\x04.{4}\x08\x00", content, re.DOTALL):  # damaged archives too
            names = content[found.start() + 26 : found.start() + 30]
            if len(names) == 4:
                inner.append(_inflate(whole[found.start() + 30 + sum(struct.unpack("<HH", names)) :], -15))
    for found in re.finditer(rb"base64,([A-Za-z0-9+/=\s]{8,})", content):
        inner.append(base64.b64decode(found[1] + b"==", validate=False))
    if re.search(rb"\\u[0-9a-fA-F]{4}", content):
        inner.append(re.sub(rb"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)).encode("utf-8", "replace"), content))
    return [part for part in inner if part]


def _inflate(content: memoryview, bits: int) -> bytes:
    """What can be inflated, also of a stream that is cut short."""
    inflater = zlib.decompressobj(bits)
    try:
        return inflater.decompress(content, MAX_INFLATED)
    except zlib.error:
        return b""


def _png_chunks(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    at = 8
    while at + 8 <= len(content):
        length = int.from_bytes(content[at : at + 4], "big")
        yield content[at + 4 : at + 8], content[at + 8 : at + 8 + length]
        at += 12 + length


class Search:
    """Looks for tokens in files."""

    def __init__(self, tokens: list[str], raw: list[bytes] = []) -> None:  # noqa: B006
        self._names = {spelling: token for token in tokens for spelling in spellings(token)}
        self._names |= {content.lower(): f"bytes {content[:4].hex()}..." for content in raw}
        self._known: dict[bytes, set[str]] = {}
        self._by_start: dict[bytes, list[bytes]] = {}
        self._starts, self._nexts = np.zeros(1 << 16, bool), np.zeros(1 << 16, bool)
        for spelling in self._names:
            self._by_start.setdefault(spelling[:4], []).append(spelling)
            self._starts[spelling[0] | spelling[1] << 8] = True
            self._nexts[spelling[2] | spelling[3] << 8] = True

    def in_bytes(self, content: bytes, depth: int = 0) -> set[str]:
        """The tokens in some bytes, and in what is packed in them; the same bytes are searched once."""
        key = hashlib.blake2b(content).digest()
        if key not in self._known:
            found = {self._names[spelling] for spelling in self._spelled(content.lower())}
            for part in packed_in(content) if depth < MAX_DEPTH else ():
                found |= self.in_bytes(part, depth + 1)
            self._known[key] = found
        return self._known[key]

    def _spelled(self, content: bytes) -> Iterator[bytes]:
        """The spellings in lower-case bytes; their first four bytes are looked for with tables, all at once."""
        one = np.frombuffer(content, np.uint8).astype(np.uint16)
        pairs = one[:-1] | one[1:] << 8
        for at in np.flatnonzero(self._starts[pairs[:-2]] & self._nexts[pairs[2:]]):
            for spelling in self._by_start.get(content[at : at + 4], ()):
                if content.startswith(spelling, at):
                    yield spelling

    def below(self, folder: Path) -> dict[str, set[str]]:
        """The tokens in every file below a folder, their names and links."""
        found = {}
        for path in sorted(folder.rglob("*")):
            content = os.fsencode(path.relative_to(folder))
            if path.is_symlink():
                content += os.fsencode(os.readlink(path))
            elif path.is_file():
                content += path.read_bytes()
            tokens = self.in_bytes(content)
            if tokens:
                found[path.relative_to(folder).as_posix()] = tokens
        return found


# The canaries

ROOT_UID = "1.2.826.0.1.3680043.10.7474747"
KEY = "5eed" * 16
TEXTS = {
    "PatientName": "Zwetschgerl^Kunigunde",
    "OtherPatientNames": "Zwetschgerl^Geborene",
    "PatientAddress": "Adresskanari 17",
    "PatientTelephoneNumbers": "0555987123",
    "PatientComments": "Patientkommentar-Kanari",
    "AdditionalPatientHistory": "Anamnesekanari",
    "MedicalRecordLocator": "Aktenkanari",
    "AccessionNumber": "ACCKANARI774",
    "StudyID": "STUDKANARI1",
    "InstitutionName": "Klinikkanari am Berg",
    "InstitutionAddress": "Klinikadressekanari",
    "InstitutionalDepartmentName": "Abteilungskanari",
    "StationName": "STATIONKANARI",
    "ReferringPhysicianName": "Zuweiserkanari^Dr",
    "PerformingPhysicianName": "Arztkanari^Dr",
    "OperatorsName": "Bedienerkanari",
    "StudyDescription": "Studienkanari",
    "SeriesDescription": "Serienkanari",
    "ProtocolName": "Protokollkanari",
    "ImageComments": "Bildkommentarkanari",
    "DeviceSerialNumber": "SERIALKANARI9",
    "ManufacturerModelName": "Modellkanari",
    "Manufacturer": "Herstellerkanari",
    "SoftwareVersions": "Softwarekanari",
    "RequestedProcedureDescription": "Prozedurkanari",
    "ContentLabel": "INHALTKANARI",
}
DATES = {
    "PatientBirthDate": "19410203",
    "StudyDate": "19991231",
    "SeriesDate": "19991230",
    "AcquisitionDate": "19991229",
}
TIMES = {"StudyTime": "112233.447711", "AcquisitionTime": "112244.447712"}
NAMES = {
    "source": "Quellordner-Kanari",
    "file": "Dateikanari",
    "labels": "Labelkanari",
    "aliases": "Aliaskanari",
    "roi": "Roikanari",
    "segment": "Segmentkanari",
    "tracking": "Trackingkanari",
    "user": "benutzerkanari",
    "patient": "PATKANARI",
    "private": "Privatkanari",
    "other": "Fremdkanari",
}


def tokens(source: Path) -> list[str]:
    dashed = [f"{date[:4]}-{date[4:6]}-{date[6:]}" for date in DATES.values()]
    parts = [part for text in TEXTS.values() for part in text.split("^") if len(part) > 5]
    uids = [ROOT_UID, ROOT_UID.replace(".", "_")]
    return [*parts, *DATES.values(), *dashed, *TIMES.values(), *NAMES.values(), *uids, KEY, str(source)]


def stamp(dataset: Dataset, number: int) -> Dataset:
    """Put a canary into every identifying element, known and private."""
    for keyword, text in (TEXTS | DATES | TIMES).items():
        setattr(dataset, keyword, text)
    for uid, keyword in enumerate(("StudyInstanceUID", "SeriesInstanceUID", "FrameOfReferenceUID"), 1):
        setattr(dataset, keyword, f"{ROOT_UID}.{number}.{uid}")
    dataset.PatientID = f"{NAMES['patient']}-{number}"
    dataset.private_block(0x0011, "KANARI", create=True).add_new(1, "LO", NAMES["private"])
    return dataset


def cohort(folder: Path, num_patients: int = 6) -> None:
    """Half of the patients with a structure set, half with a segmentation; a broken one, and files of other kinds."""
    rng = np.random.default_rng(0)
    for number in range(1, num_patients + 1):
        own = folder / f"{NAMES['patient']}-{number}"
        picture = rng.normal(60, 20, (64, 64)).round()
        picture[disc(64, 64, 32.5, 32.5, 7 + number % 3)] += 80 * (-1) ** number
        slices = [stamp(ct_dataset(picture.astype(np.int16), z=0.0), number)]
        slices[0].SOPInstanceUID = slices[0].file_meta.MediaStorageSOPInstanceUID = f"{ROOT_UID}.{number}.9"
        write(slices[0], own / f"{NAMES['file']}-{number}.dcm")
        frame = slices[0].FrameOfReferenceUID
        if number % 2:
            drawn = contour(circle_mm(32, 32, 7 + number % 3, 0.0), reference=f"{ROOT_UID}.{number}.9")
            broken = contour(circle_mm(32, 32, 3, 0.0))
            broken.NumberOfContourPoints = 19991231
            rois = {1: (NAMES["roi"], [drawn]), 2: (f"{NAMES['roi']} 2", [broken] if number == 1 else None)}
            margin: Dataset = stamp(rtstruct_dataset(rois, frame=frame), number)
            margin.FrameOfReferenceUID = frame
            margin.StructureSetLabel = NAMES["roi"]
        else:
            mask = disc(64, 64, 32.5, 32.5, 7 + number % 3)[None, ..., None]
            margin = stamp(segmentation(slices, mask, [NAMES["segment"]]), number)
            margin.SegmentSequence[0].TrackingID = NAMES["tracking"]
            margin.SegmentSequence[0].TrackingUID = f"{ROOT_UID}.7"
            margin.SegmentSequence[0].SegmentDescription = NAMES["segment"]
        write(margin, own / f"{NAMES['file']}-margin-{number}.dcm")
    (folder / f"{NAMES['other']}.dcm").write_bytes(b"\0" * 128 + b"DICM" + NAMES["other"].encode())
    (folder / f"{NAMES['other']}.txt").write_text(NAMES["other"])


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home and a source with canaries in their names; what is written goes elsewhere."""
    home = tmp_path / "home" / NAMES["user"]
    source = home / NAMES["source"]
    source.mkdir(parents=True)
    key = home / "keys" / "pseudonyms.key"
    key.parent.mkdir()
    key.write_text(KEY + "\n")
    key.chmod(0o600)
    for name in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(name, str(home))
    for name in ("USER", "LOGNAME", "USERNAME"):
        monkeypatch.setenv(name, NAMES["user"])
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "configuration"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(home / "cache"))
    monkeypatch.setenv("COLUMNS", "200")
    (tmp_path / "out").mkdir()
    return source


def call(*arguments: object) -> int:
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    assert isinstance(caught.value.code, int)
    return caught.value.code


def run_import(source: Path, out: Path) -> None:
    """Import the cohort with everything that may name somebody."""
    labels, aliases = source.parent / f"{NAMES['labels']}.csv", source.parent / f"{NAMES['aliases']}.csv"
    patients = [f"{NAMES['patient']}-{n}" for n in range(1, 1 + len(list(source.glob(NAMES["patient"] + "*"))))]
    rows = [f"{patient},{('cyst', 'metastasis')[n % 2]}" for n, patient in enumerate(patients)]
    labels.write_text("\n".join(["patient_id,label", *rows]) + "\n")
    aliases.write_text(f"patient_id,same_as\n{NAMES['aliases']},{patients[0]}\n")
    key = source.parent / "keys" / "pseudonyms.key"
    options = ("--labels", labels, "--patient-aliases", aliases, "--skip-faulty", "--pseudonym-key", key)
    assert call("data", "import", source, out / "rois", *options) == 0


def read_a_study(rois: Path, run: Path, out: Path) -> None:
    """A reader study of some of the lesions, answered by two readers, analysed, and shown in the run's report."""
    study, few = out / "study", ("--real", 4, "--fake", 4, "--practice", 2)
    assert call("study", "new", rois, study, "--synthetic", out / "samples", *few) == 0
    made = load_study(study)
    answer_study(
        study, load_truth(made).items, lambda reader, task, item, _: made.design.choices(task)[(reader + item.item) % 2]
    )
    assert call("study", "export", study, out / "answers", "--truth", out / "study.truth.json") == 0
    assert call("study", "analyse", study, out / "analysis", "--run", run) == 0
    assert call("report", run, "--rois", rois) == 0


def search(source: Path) -> Search:
    return Search(tokens(source), [bytes.fromhex(KEY)[:16]])


def test_an_import_names_nobody(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cohort(place)
    out = place.parents[2] / "out"
    run_import(place, out)
    capfd.readouterr()  # the import's own words are for the terminal, and may name files of the source
    looked = search(place)
    assert looked.below(place), "the canaries are not in the source, so the test proves nothing"
    assert len(load_rois(out / "rois")) == 6
    assert "no,broken contour data" in (out / "rois" / "import_report.csv").read_text()
    assert call("augment", out / "rois", out / "sheet.png", "--sheet") == 0
    assert call("data", "folds", out / "rois", "--out", out / "folds.json") == 0
    said = "".join(capfd.readouterr())
    assert looked.below(out) == {}
    assert looked.in_bytes(said.encode()) == set()
    (out / "planted.txt").write_text(NAMES["roi"].upper())
    assert looked.below(out) == {"planted.txt": {NAMES["roi"]}}


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_whole_run_names_nobody(place: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cohort(place, 18)
    out = place.parents[2] / "out"
    run_import(place, out)
    capfd.readouterr()
    rois, run = out / "rois", out / "run"
    assert call("run", rois, run, "--preset", "tiny") == 0
    assert call("report", run, "--rois", rois) == 0
    assert call("report", run, "--share") == 0
    assert call("status", run) == 0
    assert call("audit", run, "--rois", rois) == 0
    assert call("augment", rois, out / "augmented", "--per-lesion", 2) == 0
    assert call("augment", rois, out / "sheet.png", "--sheet") == 0
    assert call("gan", "train", rois, out / "gans", "--preset", "tiny") == 0
    assert call("gan", "sample", out / "gans", out / "samples", "--per-class", 4) == 0
    read_a_study(rois, run, out)
    assert call("status", out / "nowhere") != 0
    assert call("run", place, out / "failed", "--preset", "tiny") != 0  # no store: the error must not be kept anywhere
    said = "".join(capfd.readouterr())
    looked = search(place)
    files = [path for path in out.rglob("*") if path.is_file()]
    assert {".html", ".png", ".svg", ".pdf", ".json", ".csv", ".safetensors"} <= {path.suffix for path in files}
    assert looked.below(out) == {}
    said = said.replace(str(place), "").replace(place.name, "")  # the last command was given it
    assert looked.in_bytes(said.encode()) == set()


def test_the_canary_file_of_the_shared_data(shared_data: Path, place: Path) -> None:
    out = place.parents[2] / "out"
    canary = place / "phi_canary.dcm"
    canary.write_bytes((shared_data / "awkward" / "phi_canary.dcm").read_bytes())
    from pydicom import dcmread

    dataset = dcmread(canary, stop_before_pixels=True)
    uids = [str(element.value) for element in dataset.iterall() if element.VR == "UI" and "." in str(element.value)]
    own = [uid for uid in uids if not uid.startswith("1.2.840.10008.")]
    assert own
    table = place / "lesions.csv"
    table.write_text(
        f'image,patient_id,label,polygon_xy\n{canary.name},{dataset.PatientID},cyst,"4,4 14,4 14,14 4,14"\n'
    )
    key = place.parent / "keys" / "pseudonyms.key"
    assert call("data", "import", table, out / "rois", "--pseudonym-key", key) == 0
    assert call("augment", out / "rois", out / "sheet.png", "--sheet") == 0
    looked = Search(["LEAKCANARY", "19410203", "19991231", "phi_canary", str(place), NAMES["user"], KEY, *own])
    assert looked.below(place)
    assert looked.below(out) == {}


# The searcher itself


def _png(token: str, packed: bool) -> bytes:
    info, stream = PngImagePlugin.PngInfo(), io.BytesIO()
    (info.add_itxt if packed else info.add_text)("Comment", token, zip=True)
    Image.new("L", (2, 2)).save(stream, "PNG", pnginfo=info)
    return stream.getvalue()


def _npz(token: str) -> bytes:
    stream = io.BytesIO()
    np.savez_compressed(stream, names=np.array([token]))
    return stream.getvalue()


def _torch(token: str) -> bytes:
    import torch

    stream = io.BytesIO()
    torch.save({token: torch.zeros(2)}, stream)
    return stream.getvalue()


def _safetensors(token: str) -> bytes:
    from safetensors.numpy import save

    return save({"a": np.zeros(2)}, metadata={"from": token})


def _pdf(token: str) -> bytes:
    from matplotlib.figure import Figure

    stream = io.BytesIO()
    figure = Figure()
    figure.savefig(stream, format="pdf", metadata={"Title": token})
    return stream.getvalue()


CONTAINERS = {
    "plain": str.encode,
    "another case": lambda token: token.swapcase().encode(),
    "backwards": lambda token: token[::-1].encode(),
    "UTF-16": lambda token: b"x" + token.encode("utf-16-le"),
    "hexadecimal": lambda token: token.encode().hex().encode(),
    "base64": lambda token: b"A" + base64.b64encode(b"ab" + token.encode() + b"cd"),
    "data URI": lambda token: b'<img src="data:image/png;base64,' + base64.b64encode(_png(token, True)) + b'">',
    "gzip": lambda token: b"front" + gzip.compress(token.encode()),
    "gzip cut short": lambda token: gzip.compress(token.encode() + os.urandom(5000))[:-2000],
    "zlib": lambda token: b"front" + zlib.compress(token.encode()),
    "PNG text": lambda token: _png(token, False),
    "PNG packed text": lambda token: _png(token, True),
    "npz": _npz,
    "npz in gzip": lambda token: gzip.compress(_npz(token)),
    "torch": _torch,
    "safetensors": _safetensors,
    "PDF": _pdf,
    "JSON escapes": lambda token: "".join(f"\\u{ord(c):04x}" for c in token).encode(),
}


@pytest.mark.parametrize(
    ("container", "token"),
    [(container, token) for container in CONTAINERS for token in ("Zwetschgerl", "19410203", "Geheim-Ölbaum")],
)
def test_the_searcher_finds_a_canary_in_everything(container: str, token: str, tmp_path: Path) -> None:
    looked = Search([token, "SOMETHINGELSE"])
    (tmp_path / "file").write_bytes(CONTAINERS[container](token))
    assert looked.below(tmp_path) == {"file": {token}}
    (tmp_path / "file").write_bytes(CONTAINERS[container]("nothing of that kind"))
    assert looked.below(tmp_path) == {}


def test_the_searcher_sees_names_links_numbers_and_bytes(tmp_path: Path) -> None:
    looked = Search(["Zwetschgerl", "19410203"], [bytes.fromhex(KEY)])
    (tmp_path / "zwetschgerl.txt").touch()
    (tmp_path / "link").symlink_to("/home/Zwetschgerl")
    (tmp_path / "number").write_bytes(np.array([1, 19410203], dtype="<i4").tobytes())
    (tmp_path / "key").write_bytes(b"x" + bytes.fromhex(KEY))
    assert looked.below(tmp_path).keys() == {"zwetschgerl.txt", "link", "number", "key"}
