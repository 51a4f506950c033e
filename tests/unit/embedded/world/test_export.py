"""The files of embedded/data are those that the code writes, within the size limit."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image

from embedded import world
from embedded.world.export import DATA, files, main


def test_shipped_data_equal_the_exported_data():
    """Compare images as pixels: a PNG's bytes may change with zlib."""
    expected = dict(files())
    shipped = {path.relative_to(DATA).as_posix() for path in DATA.rglob("*") if path.is_file()}
    assert shipped == set(expected)
    for name, content in expected.items():
        if isinstance(content, str):
            assert (DATA / name).read_text() == content, name
        else:
            assert np.array_equal(np.asarray(Image.open(DATA / name)), content), name


def test_export_is_complete_and_small(tmp_path):
    assert main(tmp_path) <= 2_800_000
    assert sum(1 for path in tmp_path.rglob("*") if path.is_file()) == len(dict(files()))


def test_samples_mix_kinds_and_note_what_is_wrong():
    entries = json.loads((DATA / "samples/samples.json").read_text())
    assert len(entries) == 24
    assert {entry["concept"]["kind"] for entry in entries if "concept" in entry} == {"person", "animal", "object"}
    assert {entry["geneval"]["tag"] for entry in entries if "geneval" in entry} == set(world.GENEVAL_TASKS)
    assert sum("note" in entry for entry in entries) == 4
    heldout = {prompt.text for prompt in world.PROMPTS_HELDOUT}
    for entry in entries:
        assert entry["prompt"] in heldout
        for name in [entry["image"], *entry.get("references", [])]:
            assert (DATA / "samples" / name).is_file()
        assert ("concept" in entry) == ("reasoning" in entry) == ("references" in entry) != ("geneval" in entry)
