"""The same patient under each treatment arm: one table and one page (MONAI dictionary transform)."""

from collections.abc import Hashable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure, SubFigure
from monai.config import KeysCollection
from monai.transforms import MapTransform
from scipy.stats import t

from bundle.arms import ARMS, NULL_ARM
from bundle.data.bids import CONDITION
from bundle.lesions import Volume
from bundle.outputs.notes import LINE, horizon, png_bytes, wrap_notes, write_footer, write_notes
from bundle.outputs.panels import (
    AxialView,
    axial_view,
    box_of_brain,
    choose_levels,
    draw_panel,
    draw_scale,
    grey_window,
    visible_heat,
)
from bundle.outputs.summary import percent
from bundle.outputs.writers import arm_entity, json_bytes, writable_folder, write_case

ROWS = 3
SHARED = (
    "schema_version",
    "notice",
    "case",
    "num_members",
    "count_source",
    "inputs",
    "warnings",
    "sampling",
    "weights_sha256",
    "versions",
)
NO_SWITCH = (
    "Each column assumes that the patient has been on that treatment since week 0. Lesions that form until week 48 in "
    "spite of an effective treatment are a sign of a more active disease, so the differences are not the effect of "
    "changing the treatment now."
)
STATEMENT = (
    "Chances and numbers of lesions follow from the heatmap of each arm. Errors of the model are not included: the "
    "effects of the arms are those that it learnt from its training trials."
)
STATEMENT_OF_MEMBERS = (
    "Members of the same number use the same noise under all arms, and differences are taken member by member. "
    "Intervals cover the sampling error of this number of members only, not the model's own error. The effects of the "
    "arms are those that the model learnt from its training trials."
)


def under_each_arm(data: Mapping[Hashable, Any]) -> Iterator[dict[Hashable, Any]]:
    """A patient as `LoadCased` reads it, once under each of the six arms.

    Adds `reference_arm`, the recorded arm, placebo where none is recorded: `CompareArmsd` compares with it.
    """
    recorded = int(data["arm"])
    for arm in range(len(ARMS)):
        image = data["image"].clone()
        image[len(CONDITION)] = arm
        yield {**data, "image": image, "arm": arm, "reference_arm": 0 if recorded == NULL_ARM else recorded}


class CompareArmsd(MapTransform):
    """When the last of the six arms of a case has been forecast, writes <case>_desc-arms_comparison.{json,png}.

    Cases without `reference_arm` are passed on. It must see the arms of a case one after the other; if one of them
    failed there is no comparison.

    Args:
        keys: image (8, H, W, S) on the slab; "heatmap" (H, W, S), "brain", "counts" and "forecast" go with it.
        output_dir: gets a folder per case; the dictionary's "output_dir" takes precedence.

    Adds `comparison` as written to JSON, and the files to `files`.

    Raises:
        InputError: the output folder cannot be written.
    """

    def __init__(self, keys: KeysCollection = "image", *, output_dir: str | Path) -> None:
        super().__init__(keys)
        self.output_dir = writable_folder(output_dir)
        self._case, self._arms = None, {}

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        output = dict(data)
        if "reference_arm" not in output:
            return output
        if output["case"] != self._case:
            self._case, self._arms = output["case"], {}
        for key in self.key_iterator(output):
            image, arm = output[key], ARMS[int(output["arm"])]
            flair = Volume(image.cpu().numpy()[CONDITION.index("flair_w048")], image.affine.cpu().numpy())
            brain = np.asarray(output["brain"].cpu(), dtype=bool)[0]
            view = axial_view(flair, output["heatmap"].numpy(), brain=brain, covered=np.ones_like(brain))
            self._arms[arm] = (output["forecast"], np.asarray(output["counts"]), view)
        if len(self._arms) == len(ARMS):
            forecasts, counts, views = ({arm: kept[i] for arm, kept in self._arms.items()} for i in range(3))
            comparison = compare(forecasts, counts, ARMS[int(output["reference_arm"])])
            files = {
                f"{output['case']}_desc-arms_comparison.json": json_bytes(comparison),
                f"{output['case']}_desc-arms_comparison.png": comparison_page(comparison, views),
            }
            self._case, self._arms = None, {}
            output["comparison"] = comparison
            output["files"] = [*output["files"], *write_case(self.output_dir, output, files)]
        return output


def compare(
    forecasts: Mapping[str, Mapping[str, Any]], counts: Mapping[str, np.ndarray], reference: str
) -> dict[str, Any]:
    """The comparison as it is written to JSON.

    Args:
        forecasts: of each arm, as `bundle.outputs.writers.WriteForecastd` makes them.
        counts: (K,) lesions of each member, of each arm; members of one number share their noise.
        reference: the arm with which the others are compared.

    Returns:
        What the forecasts share; reference_arm; statement; arms, for each its entity in file names, p_active with its
        interval, expected_lesions, expected_volume_ml of the heatmap, and the difference of both from the reference.
        Lesions that are counted in members are means over members, differences of lesions means over pairs of members,
        see `mean_and_interval`; those that follow from the heatmap have no interval.
    """
    volume = {arm: forecast["volume_ml"]["mean"] for arm, forecast in forecasts.items()}
    from_members = forecasts[reference]["count_source"] == "members"
    expected = {arm: forecast["count"]["mean"] for arm, forecast in forecasts.items()}

    def lesions(arm: str) -> dict[str, Any]:
        if from_members:
            return mean_and_interval(counts[arm], least=0)
        return {"mean": expected[arm], "interval": None}

    def difference(arm: str) -> dict[str, Any]:
        if from_members:
            return mean_and_interval(counts[arm] - counts[reference])
        return {"mean": round(expected[arm] - expected[reference], 4), "interval": None}

    return {name: forecasts[reference][name] for name in SHARED} | {
        "reference_arm": reference,
        "statement": f"{NO_SWITCH} {STATEMENT_OF_MEMBERS if from_members else STATEMENT}",
        "arms": {
            arm: {
                "entity": arm_entity(arm),
                "p_active": forecasts[arm]["p_active"],
                "p_active_interval": forecasts[arm]["p_active_interval"],
                "expected_lesions": lesions(arm),
                "expected_volume_ml": volume[arm],
                "difference": {
                    "lesions": difference(arm),
                    "volume_ml": round(volume[arm] - volume[reference], 4),
                },
            }
            for arm in forecasts
        },
    }


def mean_and_interval(values: np.ndarray, least: float = -np.inf) -> dict[str, Any]:
    """Mean of values (K,), none below `least`, and its 95 % interval by Student's t; none where all values are equal.

    Equal values say nothing of how much others would differ: an interval without width would claim certainty.
    """
    mean, interval = float(np.mean(values)), None
    if np.ptp(values) > 0:
        half = t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
        interval = [round(max(mean - float(half), least), 4), round(mean + float(half), 4)]
    return {"mean": round(mean, 4), "interval": interval}


def comparison_page(comparison: Mapping[str, Any], views: Mapping[str, AxialView]) -> bytes:
    """One page as the bytes of a PNG of 1500 x 1100 pixels: a column an arm, three levels, and their numbers.

    Args:
        comparison: see `compare`.
        views: the heatmap of each arm over the FLAIR, on the slab.
    """
    figure = Figure(figsize=(15, 11), dpi=100, facecolor="white")
    warnings = [(f"Warning: {text}", True) for text in comparison["warnings"]]
    notes = [*wrap_notes(warnings), *wrap_notes([(NO_SWITCH, False)])]  # however many warnings there are
    top = 1.1 + LINE * len(notes)
    header, columns, panels, scale, footer = figure.subfigures(5, 1, height_ratios=(top, 2.0, 7.8 - top, 0.8, 0.4))
    basis = "Chances and numbers follow from the heatmaps; errors of the model are not included."
    if comparison["count_source"] == "members":
        samples = f"{comparison['num_members']} sample{'s' * (comparison['num_members'] > 1)}"
        basis = f"{samples} an arm, of the same noise. Intervals (95 %) cover sampling only, not errors of the model."
    header.text(0.012, 1 - 0.33 / top, comparison["case"], va="center", fontsize=18, weight="bold")
    reference = comparison["reference_arm"].replace("_", " ")
    header.text(
        0.988,
        1 - 0.33 / top,
        f"Six treatments, compared with {reference}",
        va="center",
        ha="right",
        fontsize=18,
        weight="bold",
    )
    header.text(
        0.012,
        1 - 0.8 / top,
        f"New or enlarging T2 lesions {horizon(comparison)}. {basis}",
        va="center",
        fontsize=12,
        color="#333333",
    )
    write_notes(header, notes, first=1.1, height=top)
    for column, (arm, numbers) in enumerate(comparison["arms"].items()):
        is_reference = arm == comparison["reference_arm"]
        _write_numbers(columns, (column + 0.5) / len(views), arm, numbers, is_reference=is_reference)
    _draw_maps(panels, list(views.values()))
    draw_scale(scale.add_axes((0.35, 0.4, 0.3, 0.2)))
    write_footer(footer, comparison)
    return png_bytes(figure)


def _write_numbers(columns: SubFigure, x: float, arm: str, numbers: Mapping[str, Any], *, is_reference: bool) -> None:
    interval = numbers["p_active_interval"]
    lesions, change = numbers["expected_lesions"], numbers["difference"]["lesions"]
    difference = f"{change['mean']:+.1f} lesions{_bounds(change['interval'], '+.1f')}"
    lines = [
        (arm.replace("_", " "), {"fontsize": 13, "weight": "bold"}),
        (f"chance {percent(numbers['p_active'])}", {"fontsize": 13}),
        *([] if interval is None else [(f"{percent(interval[0])} to {percent(interval[1])}", {})]),
        (f"{lesions['mean']:.1f} lesions{_bounds(lesions['interval'], '.1f')}", {}),
        (f"{numbers['expected_volume_ml']:.2f} ml", {}),
        ("reference" if is_reference else difference, {"color": "#1f4e8c"}),
    ]
    for row, (text, style) in enumerate(lines):
        columns.text(x, 0.92 - 0.165 * row, text, ha="center", va="center", **{"fontsize": 10.5} | style)


def _bounds(interval: Sequence[float] | None, form: str) -> str:
    return "" if interval is None else f" ({interval[0]:{form}} to {interval[1]:{form}})"


def _draw_maps(panels: SubFigure, views: Sequence[AxialView]) -> None:
    """A column an arm; the levels, from below upwards, are those with most heat of all arms."""
    heat = np.max([visible_heat(view.heat) for view in views], axis=0)
    levels, _ = choose_levels(heat, views[0].fractions > 0, ROWS)
    box, window = box_of_brain(views[0].brain[:, :, levels], views[0].affine), grey_window(views[0], levels)
    axes = panels.subplots(
        ROWS,
        len(views),
        gridspec_kw={"left": 0.005, "right": 0.995, "bottom": 0.01, "top": 0.99, "wspace": 0.02, "hspace": 0.02},
    )
    panels.set_facecolor("black")
    for column, view in enumerate(views):
        for row, level in enumerate(levels):
            draw_panel(axes[row, column], view, level, box, window)
    for panel in panels.axes:
        panel.set(xticks=[], yticks=[], facecolor="black")
