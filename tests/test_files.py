import os

import nibabel as nib
import numpy as np
import pytest

from bundle import files
from bundle.errors import InputError
from bundle.files import check_writable, nifti_bytes, write_together, written_whole


def test_files_appear_together(tmp_path):
    paths = write_together(tmp_path / "new" / "folder", {"a": b"1", "b": b"2"})
    assert [path.read_bytes() for path in paths] == [b"1", b"2"]
    assert sorted(path.name for path in (tmp_path / "new" / "folder").iterdir()) == ["a", "b"]


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_if_one_fails_none_stays_and_neither_does_the_folder(tmp_path, monkeypatch, step):
    calls, real = [], getattr(os, step)

    def failing(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise OSError("disk full")
        return real(*arguments)

    monkeypatch.setattr(os, step, failing)
    with pytest.raises(OSError, match="disk full"):
        write_together(tmp_path / "folder", {"a": b"1", "b": b"2"})
    assert not (tmp_path / "folder").exists()


def test_a_block_that_fails_changes_no_file(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"before")
    with pytest.raises(KeyboardInterrupt):
        with written_whole(path) as file:
            file.write(b"half")
            raise KeyboardInterrupt
    assert [(p.name, p.read_bytes()) for p in tmp_path.iterdir()] == [("a", b"before")]


def test_leftovers_of_killed_processes_are_removed_and_those_of_live_ones_stay(tmp_path):
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)  # its number belongs to nobody now
    dead, alive, foreign = (
        tmp_path / f".a.{files._HOST}-{child}.part",
        tmp_path / f".a.{files._HOST}-{os.getppid()}.part",
        tmp_path / f".a.00000000-{child}.part",
    )
    for path in (dead, alive, foreign):
        path.touch()
    write_together(tmp_path, {"b": b""})
    assert not dead.exists() and alive.exists() and foreign.exists()


@pytest.mark.parametrize("name", ["file/out", "x" * 300, "new/" + "x" * 300, "new/" * 2000])
def test_a_folder_that_cannot_be_made_is_refused_early(tmp_path, name):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot be written: .*; choose another output_dir"):
        check_writable(tmp_path / name)


def test_a_map_has_the_grid_of_its_scan_and_none_of_its_texts(tmp_path):
    for kind in (nib.Nifti1Image, nib.Nifti2Image):
        scan = kind(np.zeros((2, 3, 4), np.int16), np.diag([2.0, 3, 4, 1]))
        scan.header["descrip"] = b"Jane Doe"
        nib.save(scan, tmp_path / "scan.nii.gz")
        (tmp_path / "map.nii.gz").write_bytes(nifti_bytes(np.ones((2, 3, 4), np.float32), tmp_path / "scan.nii.gz"))
        written = nib.load(tmp_path / "map.nii.gz")
        assert type(written) is kind and (written.get_fdata() == 1).all() and written.header["descrip"] == b""
        np.testing.assert_array_equal(written.affine, scan.affine)
        assert (float(written.header["cal_max"]), written.header.get_intent()[0]) == (1, "estimate")
    (tmp_path / "mask.nii.gz").write_bytes(nifti_bytes(np.ones((2, 3, 4), np.uint8), tmp_path / "scan.nii.gz"))
    assert nib.load(tmp_path / "mask.nii.gz").header.get_intent()[0] == "label"
