"""One HTML file a patient that opens offline: images with the heatmap, numbers, sites, inputs and a glossary."""

import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform

from bundle.arms import ARMS, CLASSES
from bundle.data.bids import Case, find_case
from bundle.data.grid import SlabGrid, read_linearly, read_nearest
from bundle.data.transforms import LoadCased
from bundle.data.volumes import read_flair, read_mask, read_volume
from bundle.errors import InputError
from bundle.lesions import Volume
from bundle.outputs.calibration import calibration_sentence, read_calibration
from bundle.outputs.coverage import covered_voxels
from bundle.outputs.notes import NOTICE, horizon, input_lines, provenance
from bundle.outputs.page import AGREED, OLD, SITE
from bundle.outputs.page_images import (
    FLOOR,
    STEP,
    VALUES,
    Frame,
    code_colours,
    frame_of,
    grey_images,
    heat_codes,
    packed,
)
from bundle.outputs.panels import COVERED, LEAST, MOST
from bundle.outputs.summary import chance_note, percent
from bundle.outputs.writers import SCHEMA_VERSION, arm_entity, writable_folder, write_case

LIMIT = 6_000_000  # bytes of a page
PIXEL_MM = 1.0  # of the images; larger where the page would exceed its limit
THRESHOLDS = (1e-4, 2e-4, 5e-4, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5)
COUNTS_SHOWN = 12  # greater numbers of lesions share a line
MARKS = {  # bit, colour and meaning of the masks of a visit; the page's script knows the bits
    "t2": (1, OLD, "T2 lesions of that scan"),
    "gd": (2, "#ff8ad8", "gadolinium-enhancing lesions of that scan"),
    "net2": (4, "#ffd84d", "lesions that were new or enlarging in that scan"),
}
BRAIN, FORECAST = 1, 2  # bits of a place
COLOURS = {kind: colour for kind, (_, colour, _) in MARKS.items()}
COLOURS |= {"consensus": AGREED, "site": SITE, "slab": COVERED, "cursor": "#ffffff"}
RING_MM = 5.0


@dataclass(frozen=True)
class Layers:
    """A forecast on the grid of the patient's FLAIR.

    report: as `bundle.outputs.writers` writes it to JSON.
    heat: (X, Y, Z), codes of `bundle.outputs.page_images.heat_codes`.
    consensus: (X, Y, Z), bool.
    """

    report: Mapping[str, Any]
    heat: np.ndarray
    consensus: np.ndarray


class WritePatientPaged(MapTransform):
    """Writes the page of a case, <case>_desc-net2_forecast.html; where the arms are compared, one page for all.

    Args:
        keys: heatmap (1, X, Y, Z) as `RestoreNatived` leaves it.
        output_dir: gets a folder per case; the dictionary's "output_dir" takes precedence.
        html: whether to write; else data pass unchanged.
        calibration: the calibration.json of an evaluation with the same weights and settings, if there is one.

    It stands after `WriteForecastd` and `CompareArmsd` and sees the arms of a case one after the other; if one of them
    failed there is no page. Adds the page to `files`.

    Raises:
        InputError: the output folder cannot be written, or the calibration not be read.
    """

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        output_dir: str | Path,
        html: bool = True,
        calibration: str | Path | None = None,
    ) -> None:
        super().__init__(keys)
        if not isinstance(html, bool):
            raise InputError(f"html={html!r} is neither True nor False", "correct --html")
        self.output_dir, self.html = writable_folder(output_dir), html
        self.calibration = None if calibration is None else read_calibration(calibration)
        self._case, self._layers = None, []

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        output = dict(data)
        if not self.html:
            return output
        for key in self.key_iterator(output):
            if output["case"] != self._case or "reference_arm" not in output:
                self._case, self._layers = output["case"], []
            native, slab = output[key], output["heatmap"]
            heat = heat_codes(native.numpy()[0].clip(0, 1))
            self._layers.append(Layers(output["forecast"], heat, output["consensus"].numpy()[0] >= 0.5))
            if "reference_arm" in output and "comparison" not in output:
                continue
            path, sessions = native.meta["filename_or_obj"], output["inputs"]["session"]
            case = find_case(path, output.get("dataset_dir"), CLASSES[int(output["arm"])], sessions)
            slab = Volume(np.empty(slab.shape[-3:]), output["image"].affine.numpy())
            page = patient_page(
                case,
                self._layers,
                brain=output["native_brain"].numpy()[0] > 0,
                slab=slab,
                comparison=output.get("comparison"),
                calibration=self.calibration,
            )
            self._layers = []
            output["files"] = [*output["files"], *write_case(self.output_dir, output, {page_name(case.id): page})]
        return output


def page_name(case: str) -> str:
    """The file name of a patient's page."""
    return f"{case}_desc-net2_forecast.html"


def page_of_files(folder: Path, dataset_dir: Path, grid: SlabGrid, calibration: str | Path | None = None) -> bytes:
    """The page of forecasts that were written before, as `WritePatientPaged` would have made it.

    Args:
        folder: of one case, with the files of one forecast, or of all arms and their comparison.
        dataset_dir: the BIDS data set with the patient's scans.
        grid: the slab of the forecast.
        calibration: see `WritePatientPaged`.

    Raises:
        InputError: the folder holds no forecast, or a file or a scan cannot be read.
    """
    measured = None if calibration is None else read_calibration(calibration)
    single, compared = f"{folder.name}_desc-net2", f"{folder.name}_desc-arms_comparison.json"
    comparison = _json(folder / compared) if (folder / compared).is_file() else None
    names = [single]
    if comparison is not None:
        names = [f"{folder.name}_arm-{arm_entity(arm)}_desc-net2" for arm in ARMS]
    elif not (folder / f"{single}_forecast.json").is_file():
        fix = "give the folder of one case in output_dir, e.g. forecasts/sub-01"
        raise InputError(f"no {single}_forecast.json", fix, file=folder)
    layers = []
    for name in names:
        report = _json(folder / f"{name}_forecast.json")
        heatmap, consensus = (read_volume(folder / f"{name}_{end}.nii.gz", folder.name) for end in ("probseg", "mask"))
        layers.append(Layers(report, heat_codes(heatmap.values), consensus.values > 0))
    report = layers[-1].report
    sessions = report["inputs"]["session"]
    item = {"image": report["case"], "dataset_dir": str(dataset_dir), "arm": report["arm"], "visits": sessions}
    dropped = [visit for visit in ("w000", "w048") if visit not in sessions]
    read = LoadCased("image", grid, drop_visits=dropped, slab_centre_mm=report["inputs"].get("slab_centre_mm"))(item)
    brain = read["native_brain"].numpy()[0] > 0
    if brain.shape != layers[-1].heat.shape:
        problem = f"its shape is not that of the FLAIR, {brain.shape}"
        fix = "give the data set from which the forecast was made"
        raise InputError(problem, fix, case=report["case"], file=folder / f"{names[-1]}_probseg.nii.gz")
    slab = Volume(np.empty(grid.shape), read["image"].affine.numpy())
    case = find_case(report["case"], dataset_dir, report["arm"], sessions)
    return patient_page(case, layers, brain=brain, slab=slab, comparison=comparison, calibration=measured)


def patient_page(
    case: Case,
    layers: Sequence[Layers],
    *,
    brain: np.ndarray,
    slab: Volume,
    comparison: Mapping[str, Any] | None = None,
    calibration: Mapping[str, Any] | None = None,
) -> bytes:
    """The page as UTF-8 text of at most `LIMIT` bytes.

    Args:
        case: the patient, whose scans are read again.
        layers: one forecast, or one of each arm.
        brain: (X, Y, Z), bool, on the grid of the latest FLAIR.
        slab: the grid that was forecast; its values are not used.
        comparison: of the arms, see `bundle.outputs.comparison.compare`.
        calibration: of `bundle.outputs.calibration.read_calibration`.

    Raises:
        InputError: a scan cannot be read.
    """
    reference = None if comparison is None else comparison["reference_arm"]
    layers = sorted(layers, key=lambda one: one.report["arm"] != reference)  # the reference first
    used = layers[0].report["inputs"]["used"]
    visits = sorted({name.split("_")[1] for name in used if name.startswith("flair_")})
    flairs = {visit: read_flair(case.volumes[f"flair_{visit}"], case.id) for visit in visits}
    latest = flairs[visits[-1]]
    covered = covered_voxels(latest, slab)
    greys, marks = {}, {}
    for visit, flair in flairs.items():
        onto = (flair.affine, latest.affine, latest.values.shape)
        greys[visit] = flair.values if flair is latest else read_linearly(flair.values, *onto)
        marks[visit] = np.zeros(latest.values.shape, np.uint8)
        for kind, (bit, *_) in MARKS.items():
            if f"{kind}_{visit}" in used:
                mask = read_mask(case.volumes[f"{kind}_{visit}"], case.id)
                marks[visit] |= (bit * read_nearest(mask.values.astype(np.uint8), *onto)).astype(np.uint8)
    text = _text(case, layers, visits, comparison, calibration)
    template = _template()
    pixel_mm = PIXEL_MM
    while True:
        frame = frame_of(latest, brain, covered, pixel_mm)
        data = _geometry(frame) | {
            "first": len(frame.levels) // 2,
            "values": [float(f"{value:.5g}") for value in VALUES],
            "thresholds": THRESHOLDS,
            "lut": code_colours(),
            "colours": COLOURS,
            "inside": packed(frame.pixels(BRAIN * brain.astype(np.uint8) + FORECAST * covered.astype(np.uint8))),
            "visits": [
                {"images": grey_images(frame, greys[visit]), "marks": packed(frame.pixels(marks[visit]))}
                for visit in visits
            ],
            "arms": [_arm_data(layer, frame) for layer in layers],
        }
        for arm, drawn in zip(text["arms"], data["arms"]):
            arm["sites"] = drawn["sites"]
        page = template.render(**text, data=data, storage=_storage(frame)).encode()
        if len(page) <= LIMIT:
            return page
        pixel_mm *= 1.25


def _template() -> Any:
    from jinja2 import Environment, PackageLoader  # here: inference without a page starts sooner

    return Environment(loader=PackageLoader("bundle.outputs"), autoescape=True, trim_blocks=True).get_template(
        "patient_page.html"
    )


def _geometry(frame: Frame) -> dict[str, Any]:
    """Where the pixels of the page lie in the file and in the world."""
    width, height = (len(places) * size for places, size in zip((frame.columns, frame.rows), frame.pixel_mm))
    return {
        "shape": [len(frame.levels), len(frame.rows), len(frame.columns)],
        "height_over_width": round(height / width, 4),
        "levels": frame.levels.tolist(),
        "numbers": [frame.view.slice_number(level) for level in frame.levels.tolist()],
        "fractions": frame.view.fractions[frame.levels].round(4).tolist(),
        "origin": [int(frame.columns[0]), int(frame.rows[0])],
        "step": list(frame.step),
        "affine": frame.view.affine[:3].round(5).tolist(),
        "ring": round(RING_MM / frame.pixel_mm[0], 3),
    }


def _arm_data(layer: Layers, frame: Frame) -> dict[str, Any]:
    sites = []
    for rank, site in enumerate(layer.report["likely_sites"], start=1):
        centre = ", ".join(f"{x:.0f}" for x in site["centre_mm"])
        region = f", {site['region']}" if site["region"] else ""
        text = f"{percent(site['probability'])} within {site['radius_mm']:.0f} mm{region} (x, y, z: {centre} mm)"
        place = dict(zip(("slice", "row", "column"), frame.nearest(np.array(site["centre_mm"])) or (None,) * 3))
        sites.append({"rank": rank, "text": text, **place})
    heat, agreed = (packed(frame.pixels(values)) for values in (layer.heat, layer.consensus))
    return {"name": layer.report["arm"], "heat": heat, "agreed": agreed, "sites": sites}


def _text(
    case: Case,
    layers: Sequence[Layers],
    visits: Sequence[str],
    comparison: Mapping[str, Any] | None,
    calibration: Mapping[str, Any] | None,
) -> dict[str, Any]:
    """All that the template shows but for the images."""
    report = layers[0].report
    used = report["inputs"]["used"]
    kinds = [kind for kind in MARKS if any(f"{kind}_{visit}" in used for visit in visits)]
    legend = [{"colour": MARKS[kind][1], "text": MARKS[kind][2]} for kind in kinds]
    legend += [
        {"colour": AGREED, "text": "consensus: most samples agree on these voxels"},
        {"colour": SITE, "text": "likely sites, by rank"},
        {"colour": COVERED, "text": "border of the slab that is forecast", "dashed": True},
    ]
    shown = (VALUES >= LEAST) & (VALUES <= MOST)
    colours = np.array(code_colours())[shown][::8]
    return {
        "case": case.id,
        "notice": NOTICE,
        "horizon": horizon(report),
        "warnings": report["warnings"],
        "inputs": [line.strip() for line in input_lines(report["inputs"])],
        "field_of_view": report["field_of_view"]["statement"],
        "arms": [_arm_text(layer.report, calibration) for layer in layers],
        "comparison": None if comparison is None else _comparison_text(comparison),
        "visits": [{"title": f"Week {int(visit.removeprefix('w'))}"} for visit in visits],
        "thresholds": THRESHOLDS,
        "threshold": THRESHOLDS.index(LEAST),
        "gradient": ", ".join(f"rgb({red} {green} {blue})" for red, green, blue in colours),
        "legend": legend,
        "provenance": f"How it was made: {provenance(report)}.",
    }


def _arm_text(report: Mapping[str, Any], calibration: Mapping[str, Any] | None) -> dict[str, Any]:
    count, volume, samples = report["count"], report["volume_ml"], report["num_members"]
    from_members = report["count_source"] == "members"
    few, many = (count["quantiles"][q] for q in ("5", "95"))
    little, much = (volume["members"]["quantiles"][q] for q in ("5", "95"))
    return {
        "name": report["arm"],
        "title": _title(report["arm"]),
        "chance": percent(report["p_active"]),
        "chance_note": chance_note(report),
        "from_members": from_members,
        "lesions": f"{count['mean']:.1f}",
        "lesions_range": f"90 % {'of samples' if from_members else 'interval'}: {few} to {many}",
        "counts_of": f"Fraction of {samples} sample{'s' * (samples > 1)}" if from_members else "Probability",
        "volume": f"{volume['mean']:.2f} ml",
        "volume_range": f"{little:.2f} to {much:.2f} ml",
        "differences": report["differences"],
        "counts": count_lines(count["histogram"]),
        "calibration": calibration_sentence(calibration, report),
    }


def count_lines(histogram: Mapping[str, float]) -> list[tuple[str, str, float]]:
    """Label, fraction as text and length of the bar in per cent of each number of lesions; great ones share a line."""
    fractions = {int(count): fraction for count, fraction in histogram.items()}
    lines = {str(count): fractions.get(count, 0.0) for count in range(min(max(fractions), COUNTS_SHOWN - 1) + 1)}
    if max(fractions) >= COUNTS_SHOWN:
        lines[f"{COUNTS_SHOWN} or more"] = sum(x for count, x in fractions.items() if count >= COUNTS_SHOWN)
    return [(label, percent(fraction), round(100 * fraction, 1)) for label, fraction in lines.items()]


def _comparison_text(comparison: Mapping[str, Any]) -> dict[str, Any]:
    def span(values: Mapping[str, Any], form: str) -> str:
        ends = values["interval"]
        return f"{values['mean']:{form}}" + ("" if ends is None else f" ({ends[0]:{form}} to {ends[1]:{form}})")

    lines = []
    for arm, numbers in comparison["arms"].items():
        change = numbers["difference"]
        is_reference = arm == comparison["reference_arm"]
        differences = [span(change["lesions"], "+.1f"), f"{round(change['volume_ml'], 2) + 0.0:+.2f} ml"]  # never -0
        ends = numbers["p_active_interval"]
        interval = "" if ends is None else f" ({percent(ends[0])} to {percent(ends[1])})"
        cells = [f"{percent(numbers['p_active'])}{interval}", span(numbers["expected_lesions"], ".1f")]
        cells += [f"{numbers['expected_volume_ml']:.2f} ml", *(["reference", ""] if is_reference else differences)]
        lines.append({"name": arm, "title": _title(arm), "cells": cells})
    return {"reference": _title(comparison["reference_arm"]), "statement": comparison["statement"], "lines": lines}


def _storage(frame: Frame) -> str:
    """What the page shows less exactly than the file."""
    some = "every voxel" if frame.step == (1, 1) else f"one of {frame.step[0]} x {frame.step[1]} voxels"
    return (
        f"Images show {some} of the slices that hold a part of the forecast, pixels of {frame.pixel_mm[0]:.2g} x "
        f"{frame.pixel_mm[1]:.2g} mm. Chances are stored in steps of {100 * STEP:.1f} % of their value, so each is "
        f"within {50 * STEP:.1f} % of that in the NIfTI file; those below {100 * FLOOR:g} % are stored as 0. "
        "Grey values are compressed with loss and are for orientation only."
    )


def _title(arm: str) -> str:
    return arm.replace("_", " ")


def _json(file: Path) -> dict[str, Any]:
    """A JSON file of a forecast.

    Raises:
        InputError: it cannot be read, or another version of the bundle wrote it in another form.
    """
    fix = "forecast the case again"
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"cannot be read: {getattr(error, 'strerror', None) or error}", fix, file=file) from error
    version = content.get("schema_version") if isinstance(content, Mapping) else None
    if version != SCHEMA_VERSION:
        raise InputError(f"has schema_version {version!r}, not {SCHEMA_VERSION!r}", fix, file=file)
    return content
