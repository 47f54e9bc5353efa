"""A seeded fuzz of the inputs: each ends in one `InputError` line or in a sound map.

Every case takes a small sound patient, changes a few things at random (headers, bytes, voxels, tables, options, layout)
and forecasts in this process with a tiny network. Never allowed: another exception, a hang, more than 4 GB, or a map
that is not finite, in [0, 1] and on the grid of the patient's FLAIR. `pytest -s` prints how many were refused, forecast
with a warning, and forecast. A failure names the case; `attack(data_set, forecast, N, folder)` repeats it alone.
"""

import gzip
import io
import json
import resource
import shutil
import signal
from collections import Counter
from contextlib import contextmanager, redirect_stderr
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from conftest import TINY, inference_config
from scipy import ndimage

from bundle.data.bids import find_case
from bundle.data.transforms import LoadCased, RestoreNatived, plain_inputs
from bundle.errors import InputError, input_error
from bundle.outputs.run import forecast_items
from bundle.outputs.summary import ExpectHeatmapd
from bundle.outputs.writers import WritePreviewd

pytestmark = pytest.mark.slow

SHAPE, CASE = (24, 28, 15), "sub-01"
AFFINE = np.array([[6.0, 0, 0, -69], [0, 6, 0, -81], [0, 0, 3, -14], [0, 0, 0, 1]])
SECONDS, BYTES = 60, 4 * 2**30  # of a case, which takes a tenth of a second
FLAIRS = [f"{CASE}/ses-{visit}/anat/{CASE}_ses-{visit}_FLAIR.nii.gz" for visit in ("w000", "w048")]
HEADER = {  # NIfTI-1 field: offset and type
    "dim": (40, np.int16, 8),
    "datatype": (70, np.int16, 1),
    "bitpix": (72, np.int16, 1),
    "pixdim": (76, np.float32, 8),
    "vox_offset": (108, np.float32, 1),
    "scale": (112, np.float32, 2),
    "codes": (252, np.int16, 2),
    "quaternion": (256, np.float32, 6),
    "sform": (280, np.float32, 12),
    "magic": (344, np.uint8, 4),
}
HOSTILE = (0, 1, -1, 2, 3, 7, 1e-3, 1e-30, 1e30, 0.3, 10, 1000, 32767, -32768, np.nan, np.inf, -np.inf, 2**31)
TEXTS = (
    "",
    " ",
    "n/a",
    "3",
    "²",
    '"',
    "'",
    "\t",
    "\n",
    "\0",
    "ocrelizumab",
    "unknown",
    "../..",
    "sub-1",
    "é" * 40,
    "x" * 300,
)


# ---- a sound data set, in memory


def scan(seed):
    """Tissue with a pattern, dark clefts, nothing outside an elliptic brain."""
    x, y, _ = np.indices(SHAPE)
    brain = ((x - 11.5) / 10) ** 2 + ((y - 13.5) / 12) ** 2 < 1
    pattern, clefts = (ndimage.gaussian_filter(n, 1) for n in np.random.default_rng(seed).normal(size=(2, *SHAPE)))
    return np.where(clefts > clefts.std(), 60, 500 + 40 * pattern / pattern.std()) * brain, brain


def packed(values, affine=AFFINE):
    return gzip.compress(nib.Nifti1Image(values, affine).to_bytes(), 1)


def sound_files():
    """Content by path of a data set of two patients, of whom the second has no masks."""
    files = {}
    for number, case in enumerate((CASE, "sub-02")):
        flair, brain = scan(number)
        lesions = np.zeros(SHAPE, np.uint8)
        lesions[9:11, 10:13, 4:6] = 1
        for visit, gain in (("w000", 1), ("w048", 1.4)):
            anat, stem = f"{case}/ses-{visit}/anat", f"{case}_ses-{visit}"
            files[f"{anat}/{stem}_FLAIR.nii.gz"] = packed((flair * gain).astype(np.int16))
            if case == CASE:
                files[f"derivatives/brain/{anat}/{stem}_desc-brain_mask.nii.gz"] = packed(brain.astype(np.uint8))
                for label in ("T2lesion", "Gdlesion", "NET2"):
                    files[f"derivatives/lesions/{anat}/{stem}_label-{label}_mask.nii.gz"] = packed(lesions)
    files["participants.tsv"] = f"participant_id\ttreatment_arm\n{CASE}\tavonex\nsub-02\tplacebo\n".encode()
    items = [{"image": case, "case": case, "arm": "avonex", "active": None} for case in (CASE, "sub-02")]
    files["datalist.json"] = json.dumps({"training": items, "validation": [], "test": [], "left_out": []}).encode()
    files[f"{CASE}/{CASE}_sessions.tsv"] = b"session_id\tmonths\nses-w000\t0\nses-w048\t11\n"
    return files


# ---- changes: each takes the generator, the files and the options, and changes the latter two


def some_volume(rng, files):
    names = [name for name in files if name.endswith((".nii.gz", ".nii"))]
    return FLAIRS[rng.integers(2)] if rng.random() < 0.5 and FLAIRS[0] in files else names[rng.integers(len(names))]


def unpacked(content):
    try:
        return bytearray(gzip.decompress(content))
    except (OSError, EOFError):
        return bytearray(content)


def header_field(rng, files, options):
    name = some_volume(rng, files)
    content = unpacked(files[name])
    offset, dtype, count = HEADER[list(HEADER)[rng.integers(len(HEADER))]]
    which = rng.integers(count)
    with np.errstate(all="ignore"):
        value = np.array(HOSTILE[rng.integers(len(HOSTILE))]).astype(dtype).tobytes()
    start = offset + int(which) * len(value)
    content[start : start + len(value)] = value
    files[name] = gzip.compress(bytes(content), 1)


def header_noise(rng, files, options):
    name = some_volume(rng, files)
    content = unpacked(files[name])
    for _ in range(rng.integers(1, 9)):
        content[rng.integers(min(352, len(content)) or 1)] = rng.integers(256)
    files[name] = gzip.compress(bytes(content), 1)


def raw_bytes(rng, files, options):
    name = list(files)[rng.integers(len(files))]
    content, at = files[name], int(rng.integers(len(files[name]) + 1))
    noise = rng.bytes(int(rng.integers(1, 40)))
    files[name] = [
        content[:at],
        content[:at] + noise + content[at:],
        content[:at] + content[at + 8 :],
        b"",
        b"hello",
        noise,
        content[:at] + noise + content[at + len(noise) :],
        content * 2,
        content[::-1],
    ][rng.integers(9)]


def voxel_bytes(rng, files, options):
    name = some_volume(rng, files)
    content = unpacked(files[name])
    at = int(rng.integers(352, max(353, len(content))))
    content[at:at] = rng.bytes(int(rng.integers(1, 5)))
    files[name] = gzip.compress(bytes(content), 1)


VOXELS = (
    lambda rng, data: data * 0,
    lambda rng, data: data * 0 + 1,
    lambda rng, data: data.max() - data,
    lambda rng, data: -data,
    lambda rng, data: data * 1e30,
    lambda rng, data: data * 1e-30,
    lambda rng, data: np.where(rng.random(data.shape) < 0.01, np.nan, data),
    lambda rng, data: data + np.inf,
    lambda rng, data: rng.normal(size=data.shape),
    lambda rng, data: (rng.random(data.shape) < 0.1) * 1.0,
    lambda rng, data: np.flip(data, rng.integers(3)),
    lambda rng, data: np.roll(data, rng.integers(9), rng.integers(3)),
    lambda rng, data: data.transpose(rng.permutation(3)),
    lambda rng, data: np.stack([data, data], -1),
    lambda rng, data: data[..., None, None],
    lambda rng, data: data[:1],
    lambda rng, data: data[..., :2],
    lambda rng, data: data[:0],
    lambda rng, data: data.ravel(),
    lambda rng, data: data.astype(np.complex64),
    lambda rng, data: data.astype(np.float64),
    lambda rng, data: np.pad(data, rng.integers(1, 5)),
    lambda rng, data: data * (np.indices(data.shape)[rng.integers(3)] > 9),
    lambda rng, data: (data > 0) * 255.0,
)


def voxels(rng, files, options):
    name = some_volume(rng, files)
    try:
        image = nib.Nifti1Image.from_bytes(bytes(unpacked(files[name])))
        data = image.get_fdata()
    except Exception:  # spoilt by an earlier change
        return
    with np.errstate(all="ignore"):
        changed = VOXELS[rng.integers(len(VOXELS))](rng, data)
        changed = changed if changed.dtype.kind == "c" else changed.astype(rng.choice(["f4", "f8"]))
    kind = nib.Nifti2Image if rng.random() < 0.2 else nib.Nifti1Image
    files[name] = gzip.compress(kind(changed, image.affine).to_bytes(), 1)


def moved(rng, files, options):
    """One visit, or all, in another affine: scaled, sheared, turned, shifted or without one."""
    names = [name for name in files if name.endswith(".nii.gz")]
    chosen = [names, [name for name in names if "w000" in name], [some_volume(rng, files)]][rng.integers(3)]
    change = np.eye(4)
    change[:3, :3] = [
        np.diag(rng.choice([-1, 1], 3)),
        np.eye(3) * rng.choice([1e-3, 0.1, 0.5, 0.9, 1.1, 2, 10, 1e3]),
        np.eye(3) + rng.normal(0, rng.choice([0.01, 0.3, 3]), (3, 3)),
        np.eye(3)[rng.permutation(3)],
        np.zeros((3, 3)),
    ][rng.integers(5)]
    change[:3, 3] = rng.normal(0, rng.choice([0, 1, 30, 1e4]), 3)
    unknown = rng.random() < 0.15
    for name in chosen:
        try:
            image = nib.Nifti1Image.from_bytes(bytes(unpacked(files[name])))
            data = np.asanyarray(image.dataobj)
            image = nib.Nifti1Image(data, None if unknown else change @ image.affine, image.header)
            if unknown:
                image.header["sform_code"] = image.header["qform_code"] = 0
            files[name] = gzip.compress(image.to_bytes(), 1)
        except Exception:  # an affine that nibabel does not write, or a file spoilt before
            continue


def table(rng, files, options):
    name = ["participants.tsv", f"{CASE}/{CASE}_sessions.tsv", "datalist.json"][rng.integers(3)]
    if name not in files:
        return
    lines = files[name].decode(errors="replace").split("\n")
    text = TEXTS[rng.integers(len(TEXTS))]
    at = int(rng.integers(len(lines)))
    cells = lines[at].split("\t")
    cells[rng.integers(len(cells))] = text
    lines[at] = [text, lines[at] + text, "\t".join(cells), lines[at] + "\n" + lines[at], text + lines[at]][
        rng.integers(5)
    ]
    files[name] = "\n".join(lines).encode()


def datalist(rng, files, options):
    junk = [None, 3, "x", [], {}, [None], [3], ["a"], [{}], [{"image": "../x", "case": "x"}], "../sub-01", True]
    content = json.loads(sound_files()["datalist.json"])
    value = junk[rng.integers(len(junk))]
    if rng.random() < 0.5:
        content[["training", "validation", "left_out"][rng.integers(3)]] = value
    else:
        content["training"][0][["image", "case", "arm", "active"][rng.integers(4)]] = value
    files["datalist.json"] = json.dumps(content if rng.random() < 0.9 else value).encode()
    options["split"] = ["training", "all", "validation"][rng.integers(3)]


def layout(rng, files, options):
    name = list(files)[rng.integers(len(files))]
    content = files.pop(name)
    files[
        [
            name.replace(CASE, "sub-1"),
            name.replace(CASE, "sub-01_a"),
            name.replace(CASE, "Sub-01"),
            name.replace("ses-w", "ses-"),
            name.replace("_FLAIR", "_acq-3D_FLAIR"),
            name.replace("anat/", ""),
            name.replace(".nii.gz", ".nii"),
            name + "/inside",
            name.replace("label-T2", "label-"),
            f"derivatives/x/{name}",
            name.replace("_ses", "_run-1_ses"),
            name.upper(),
            name.replace("derivatives/", ""),
        ][rng.integers(13)]
    ] = content


def removed(rng, files, options):
    files.pop(list(files)[rng.integers(len(files))])


def twice(rng, files, options):
    name = some_volume(rng, files)
    content = bytes(unpacked(files[name]))
    files[name.replace(".nii.gz", ".nii")] = content if rng.random() < 0.5 else content[:-4] + b"abcd"
    if rng.random() < 0.3:
        files[name.replace("_FLAIR", "_run-2_FLAIR")] = files[name]


def swapped(rng, files, options):
    one, other = (some_volume(rng, files) for _ in range(2))
    files[one], files[other] = files[other], files[one]


def option(rng, files, options):
    name = ["case", "arm", "split", "visits", "drop_visits", "datalist", "dataset_dir"][rng.integers(7)]
    values = [
        *TEXTS,
        CASE,
        "01",
        f"{CASE}/ses-w000",
        1,
        -1,
        3.5,
        True,
        [],
        ["avonex"],
        {},
        {"w000": "ses-w000"},
        {"w000": "ses-01", "w048": "ses-w048"},
        {"w000": 7},
        {"w048": None},
        {"x": "y"},
        ["w048"],
        "w048",
    ]
    options[name] = values[rng.integers(len(values))]


CHANGES = (
    header_field,
    header_noise,
    raw_bytes,
    voxel_bytes,
    voxels,
    moved,
    table,
    datalist,
    layout,
    removed,
    twice,
    swapped,
    option,
)


# ---- the attack


class Hang(BaseException):
    """A case that takes too long."""


@contextmanager
def time_limit(seconds):
    def stop(*_):
        raise Hang

    previous = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)


@pytest.fixture(scope="module")
def data_set():
    return sound_files()


@pytest.fixture(scope="module")
def forecast(tiny_weights):
    """What makes the map of a patient from the options of the command, into a folder."""
    config = inference_config(**TINY, weights=str(tiny_weights), progress=False)
    grid, network, inferer = (config.get_parsed_content(name) for name in ("grid", "network", "inferer"))

    def run(root, out, drop_visits=(), **options):
        """Warnings and the written files of all patients that can be forecast; the messages of those that cannot."""
        warnings, written, refused = [], [], []
        options = {"dataset_dir": root} | options
        load = LoadCased(grid=grid, drop_visits=drop_visits)
        steps = [
            load,
            ExpectHeatmapd(network=network, inferer=inferer),
            RestoreNatived("heatmap"),
            WritePreviewd(output_dir=out, inferer=inferer),
        ]
        for item in forecast_items(**options):
            try:
                for step in steps:
                    item = step(item)
            except Exception as error:
                if input_error(error) is None:
                    raise
                refused.append(str(input_error(error)))
            else:
                warnings += plain_inputs(item)[1]
                written.append((item["native_brain"].meta["filename_or_obj"], item["files"][0]))
        return warnings, written, refused

    return run


def attack(data_set, forecast, number, folder):
    """Runs case `number`; returns what became of it and the names of the changes."""
    rng = np.random.default_rng((16, number))
    files, options = dict(data_set), {}
    changes = [CHANGES[number % len(CHANGES)], *rng.choice(CHANGES, rng.integers(0, 3))]
    with np.errstate(all="ignore"):
        for change in changes:
            if files:
                change(rng, files, options)
    root = folder / "data"
    for name, content in files.items():
        try:
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        except OSError:  # a file is in the way of a folder, or the other way round
            continue
    root.mkdir(exist_ok=True)
    errors = io.StringIO()
    try:
        with redirect_stderr(errors), time_limit(SECONDS), np.errstate(all="ignore"):
            warnings, written, refused = forecast(root, folder / "out", **options)
    except InputError as error:
        warnings, written, refused = [], [], [str(error)]
    assert all("\n" not in line and len(line) < 2000 for line in (*refused, *warnings))
    printed = errors.getvalue().splitlines()
    assert all(line.startswith("warning: ") for line in printed), printed
    warnings += printed
    for flair, path in written:
        assert root in Path(flair).parents
        map_, flair = nib.load(path), nib.load(flair)
        values = map_.get_fdata()
        assert np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1
        assert values.shape == tuple(n for n in flair.shape[:3]) and np.array_equal(map_.affine, flair.affine)
    outcome = "refused" if refused else "warned" if warnings else "forecast"
    return outcome, [change.__name__ for change in changes], refused


def attack_many(data_set, forecast, numbers, tmp_path):
    outcomes, failures = Counter(), []
    for number in numbers:
        folder = tmp_path / str(number)
        try:
            outcome, names, _ = attack(data_set, forecast, number, folder)
            outcomes[outcome] += 1
        except (Exception, Hang) as error:
            failures.append(f"case {number}: {type(error).__name__}: {error}")
        shutil.rmtree(folder, ignore_errors=True)
    used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(f"\n{len(numbers)} cases: {dict(outcomes)}, {len(failures)} failures, at most {used / 2**30:.1f} GiB")
    assert not failures, "\n".join(failures)
    assert used < BYTES
    return outcomes


def test_the_patient_is_sound(data_set, forecast, tmp_path):
    for name, content in data_set.items():
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_bytes(content)
    warnings, written, refused = forecast(tmp_path / "data", tmp_path / "out")
    assert (warnings, len(written), refused) == ([], 2, [])
    assert set(find_case(tmp_path / "data" / CASE).volumes) >= {"flair_w000", "t2_w000", "net2_w048"}


def test_a_few_changed_inputs(data_set, forecast, tmp_path):
    assert sum(attack_many(data_set, forecast, range(26), tmp_path).values()) == 26


@pytest.mark.slow
def test_many_changed_inputs(data_set, forecast, tmp_path):
    outcomes = attack_many(data_set, forecast, range(26, 326), tmp_path)
    assert min(outcomes[kind] for kind in ("refused", "warned", "forecast")) > 7  # the attack reaches everything
