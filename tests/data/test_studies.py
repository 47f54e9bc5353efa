import shutil

from bundle.data.bids import find_case
from bundle.data.studies import link_studies


def test_each_patient_has_a_link_that_leads_back_to_the_data_set(make_patient, tmp_path):
    patients = [make_patient(f"sub-{number}") for number in range(3)]
    patients[1].path("flair_w048").unlink()
    shutil.rmtree(patients[2].folder / "ses-w000")
    shutil.rmtree(patients[2].folder / "ses-w048")
    root = patients[0].folder.parent
    links = link_studies(root, root / "derivatives/viewer")
    assert [link.name for link in links] == ["sub-0.nii.gz", "sub-1.nii.gz"]
    assert links[0].resolve() == patients[0].path("flair_w048").resolve()
    assert links[1].resolve() == patients[1].path("flair_w000").resolve()
    assert find_case(links[0].resolve()) == find_case(patients[0].folder)


def test_links_follow_the_data_set_and_other_files_stay(make_patient, tmp_path):
    first, second = make_patient("sub-0"), make_patient("sub-1")
    root, folder = first.folder.parent, tmp_path / "links"
    link_studies(root, folder)
    (folder / "labels").mkdir()
    shutil.rmtree(first.folder)
    plain = second.path("flair_w048").with_suffix("")
    second.path("flair_w048").rename(plain)
    links = link_studies(root, folder)
    assert [link.name for link in links] == ["sub-1.nii"] and links[0].resolve() == plain.resolve()
    assert sorted(path.name for path in folder.iterdir()) == ["labels", "sub-1.nii"]


def test_a_patient_that_cannot_be_read_and_an_empty_data_set_are_no_obstacle(make_patient, tmp_path, capsys):
    patient = make_patient("sub-0")
    scan = patient.path("flair_w048")
    shutil.copy(scan, scan.with_name(scan.name.replace("_FLAIR", "_run-1_FLAIR")))
    make_patient("sub-1")
    assert [link.name for link in link_studies(scan.parents[3], tmp_path / "links")] == ["sub-1.nii.gz"]
    assert "sub-0" in capsys.readouterr().err
    (tmp_path / "empty").mkdir()
    assert link_studies(tmp_path / "empty", tmp_path / "none") == []
    assert "no sub-* folder" in capsys.readouterr().err
