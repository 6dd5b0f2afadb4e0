"""From names to classes: which rule of a map wins, and what an error says about names without one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from lesionaug.data.labels import LabelFile, LabelMap, LesionTerms, assign_labels, read_labels
from lesionaug.data.slices import Finding, Lesion, Margin, SourceFile
from lesionaug.errors import ConfigError

SOURCE = SourceFile(1, Path("a.dcm"), "a.dcm")


def lesion(name: str, number: int = 1, also_named: tuple[str, ...] = (), margin: Margin | None = None) -> Lesion:
    margin = margin or Margin(
        SOURCE, f"a.dcm ROI {number}", number, str(number), name, "ann", [], also_named=also_named
    )
    return Lesion(
        lesion_id="0" * 16,
        hu=np.zeros((1, 1), dtype=np.int16),
        mask=np.ones((1, 1), dtype=np.bool_),
        center=(0.5, 0.5),
        diameter_px=1.0,
        spacing_mm=(1.0, 1.0),
        origin=(0, 0),
        outside_fraction=0.0,
        num_parts=1,
        margin=margin,
        slice_source=SOURCE,
    )


def assign(lesions: list[Lesion], *rules: str) -> tuple[list[str | None], list[Finding]]:
    findings: list[Finding] = []
    return assign_labels(lesions, None, LabelMap.parse(rules), findings), findings


@pytest.mark.parametrize(
    ("name", "label"),
    [("livertumor01", "tumour"), ("LIVERTUMOR", "tumour"), ("portalvein", "-"), ("", "-"), ("livertumor07", "cyst")],
)
def test_a_star_alone_is_the_rule_of_last_resort(name, label):
    for rules in (
        ["livertumor*=tumour", "*=-", "livertumor07=cyst"],
        ["*=-", "livertumor07=cyst", "livertumor*=tumour"],
    ):
        assert LabelMap.parse(rules).find(name) == label


def test_a_star_yields_to_a_rule_for_any_of_the_names():
    rules = LabelMap.parse(["*=-", "SCT:1=cyst"])
    assert rules.find("mass", "SCT:1") == "cyst"
    assert rules.find("mass", "SCT:2") == "-"
    assert rules.leaves_out("mass")
    assert not LabelMap.parse(["x=y"]).leaves_out("mass")
    with pytest.raises(ConfigError, match="several classes"):
        LabelMap.parse(["m*=a", "*s=b", "*=-"]).find("mass")
    with pytest.raises(ConfigError, match="two classes"):
        LabelMap.parse(["*=-", "*=cyst"])


def test_one_error_lists_all_names_without_a_rule_and_what_was_found_with_counts():
    lesions = [
        lesion("Mass", 1, ("SCT:1", "lesion")),
        lesion("Mass", 2, ("lesion",)),
        lesion("cyst", 3),
        lesion("", 4),
    ]
    labels, findings = assign(lesions, "cyst=cyst")
    assert labels == [None, None, "cyst", None]
    error, *notes = findings
    assert (error.severity, error.where) == ("error", "--label-map")
    assert error.rule == (
        "the map has no rule for 'Mass' (2), (no name) (1); found here: 'Mass' (2), (no name) (1), 'cyst' (1); "
        "also called 'lesion' (2), 'SCT:1' (1)"
    )
    assert "'Mass=CLASS'" in error.fix
    assert "'*=-'" in error.fix
    assert [(note.number, note.severity, note.reason) for note in notes] == [
        (number, "info", "its name is not in the label map") for number in (1, 2, 4)
    ]
    assert "'*=-'" in assign([lesion("")], "cyst=cyst")[1][0].fix


def test_a_margin_with_several_lesions_counts_once():
    margin = lesion("Mass").margin
    labels, findings = assign([lesion("", margin=margin), lesion("", margin=margin)], "cyst=cyst")
    assert labels == [None, None]
    assert len(findings) == 2
    assert "'Mass' (1)" in findings[0].rule


def test_long_lists_of_names_are_cut():
    _, findings = assign([lesion(f"name {n:03d}", n) for n in range(500)], "cyst=cyst")
    assert findings[0].rule.count("'name ") == 60
    assert "and 470 more names" in findings[0].rule


def test_a_csv_and_a_json_are_told_apart(tmp_path):
    (tmp_path / "labels.csv").write_text("patient_id,label\nann,cyst\n")
    (tmp_path / "labels.json").write_text('[{"lesion_idx": 1, "expanded_terms": ["liver", "cyst"]}]')
    assert isinstance(read_labels(tmp_path / "labels.csv", LabelMap(())), LabelFile)
    assert isinstance(read_labels(tmp_path / "labels.json", LabelMap(())), LesionTerms)


def test_terms_label_lesions_by_key_and_say_when_places_differ():
    terms = LesionTerms("l.json", {"1": "cyst", "2": "cyst", "9": "cyst"}, 4)
    findings: list[Finding] = []
    labels = assign_labels([lesion("liver", 1), lesion("lung", 2), lesion("bone", 3)], terms, LabelMap(()), findings)
    assert labels == ["cyst", "cyst", None]
    assert "3 lesions have one class alone, 2 of them are here; 4 with several classes" in findings[0].rule
    assert findings[1].severity == "warning"
    assert "'bone' (1), 'lung' (1)" in findings[1].rule
