"""The sections of a report: what each table and figure shows, in words."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Section:
    """A part of the page that unfolds.

    Attributes:
        table: its name; "members" is drawn only.
        heading: of the section.
        note: what the metrics mean.
        figures: names of `CAPTIONS`.
    """

    table: str
    heading: str
    note: str
    figures: tuple[str, ...] = ()


GROUPS: dict[str, tuple[Section, ...]] = {  # by question
    "Who": (
        Section(
            "activity",
            "Active patients",
            "A patient is active who has at least one new or enlarging lesion at w096. AUC over all patients owes "
            "much to the treatment alone; AUC within arms does not.",
            ("roc_pr",),
        ),
    ),
    "How many": (
        Section(
            "log_count",
            "Log count",
            "Natural logarithm of 1 + count: the count can be 0, whose logarithm is not defined. Each forecaster "
            "states its mean of that logarithm, which minimises the expected squared error.",
            ("counts",),
        ),
        Section(
            "counts",
            "Distribution of the count",
            "CRPS is the integrated squared difference between forecast and observed distribution function, in "
            "lesions; of a single number it is the absolute error. The fair CRPS of an ensemble estimates that of an "
            "infinite one.",
        ),
    ),
    "Where": (
        Section(
            "where",
            "Location of the lesions of active patients",
            "Every heatmap is scaled to the same volume, so that who is active and how much is forecast have no "
            "effect. Log score: mean of log(density / uniform density within the brain) at the lesions, in nats; 0 "
            "for a uniform map. Top of the brain: the part of its volume with the highest values. Sites: local maxima "
            "of the smoothed heatmap, at least 20 mm apart; a site without a lesion within 10 mm is a false one.",
            ("froc",),
        ),
        Section(
            "regions",
            "Regions with a new lesion",
            "Each lesion belongs to the region that holds most of its voxels, by SynthSeg's labels or the data set's "
            'own; "any voxel": to every region that holds one of its voxels, as the paper\'s definition is read here. '
            "Balanced accuracy, and F1 with precision and recall, are at the cut of each forecaster at which they "
            "were best on the calibration split.",
        ),
        Section(
            "detection",
            "Who x where: lesions and voxels",
            "These scores mostly measure who is active and how much: a uniform map with the right volumes does well. "
            "Lesions of the consensus (voxels that at least half of the ensemble marks) against those of the outcome, "
            "both of at least 3 mm3. A lesion is found if the other map's lesions cover more than 10 % of it, and "
            "those that make up 65 % of the overlap lie outside with at most 70 % of their voxels (MSSEG). Voxel "
            "scores are over the brain within the slab; those of the model are of its one-call heatmap.",
            ("members", "heatmap"),
        ),
    ),
    "How sure": (
        Section(
            "calibration",
            "Calibration",
            "Slope and intercept are of the logistic regression of activity on the log-odds of P(active), the "
            "intercept with slope 1: 1 and 0 are perfect, a slope below 1 is too extreme, an intercept above 0 too "
            "low. Expected calibration error: mean of |observed - forecast| over bins; it is larger than 0 in small "
            "samples even of a calibrated forecast. Intervals hold the central 80 and 95 % of the forecast "
            "distribution of the count, ends included. Counts are integers and ensembles finite, so even the best "
            "forecast does not cover 80 and 95 %: the target of an ensemble is the coverage of the oracle's ensemble "
            'of the same size. "Recalibrated" is P(active) after a logistic regression on its log-odds, fitted on '
            "the calibration split.",
            ("reliability", "pit"),
        ),
        Section(
            "decisions",
            "Decisions",
            "Net benefit of treating the patients whose P(active) reaches a threshold: true positives, minus false "
            "ones times threshold / (1 - threshold), per patient. A forecast is of use where it is above treating "
            "all, treating none and the best baseline.",
            ("decisions",),
        ),
        Section(
            "members",
            "How many members are enough",
            "The first members of each ensemble alone, all patients; the voxel Brier score is that of the fraction of "
            "members. Dotted line: the metric has converged, that is, from there on it stays within a tenth of its "
            "interval's width of its last value.",
            ("convergence",),
        ),
    ),
    "What if": (
        Section(
            "counterfactual",
            "Effects of treatments",
            "Forecast from pre-treatment scans alone, under each treatment, against the lesions that the simulated "
            "patient would have had, and against their expected number given the patient's true frailty and response, "
            "which no chance blurs. ATE: mean difference in count between two arms. PEHE: root mean squared error of "
            "a patient's own difference. Policy value: mean count if each patient gets the arm with the lowest "
            "expected count; limited: if ocrelizumab goes to the quarter with the greatest forecast gain and "
            "interferon beta-1a to the others. Lower is better.",
            ("arms",),
        ),
    ),
}
CAPTIONS = {
    "gap_closed": "Fraction of the gap between the population, stated as probabilities (0), and the best possible "
    "forecast (1) that is closed, with 95 % intervals over patients.",
    "roc_pr": "Receiver operating characteristic and precision-recall curve of P(active).",
    "counts": "Forecast and observed number of new lesions, one point a patient.",
    "reliability": "Observed against forecast frequency: P(active) with 95 % intervals over patients, voxels of the "
    "heatmap, and likely sites.",
    "froc": "Lesions within 10 mm of a likely site against false sites of an active patient, over the fraction of the "
    "heatmap that a site must hold.",
    "pit": "Where the observed count lies in the forecast distribution (randomised probability integral transform): "
    "flat within the grey band if calibrated, U-shaped if too narrow.",
    "decisions": "Net benefit over the threshold of P(active) from which on a patient is treated.",
    "members": "Three members of the ensemble beside the outcome.",
    "heatmap": "Heatmaps with the outline of the outcome. The one-call heatmap estimates the mean of infinitely many "
    "members without drawing any; it does not depend on random numbers.",
    "arms": "One patient under each treatment, forecast from pre-treatment scans alone, with the same noise.",
    "convergence": "Metrics over the size of the ensemble.",
}
SUMMARY = (  # question, table and metric of the first table of the page
    ("who", "activity", "AUC"),
    ("who", "activity", "average precision"),
    ("how many", "log_count", "mean squared error of log(1 + count)"),
    ("how many", "counts", "CRPS of the count"),
    ("where", "where", "log score per lesion"),
    ("where", "where", "lesions within 10 mm of the first 3 sites"),
    ("how sure", "calibration", "Brier score of P(active)"),
    ("how sure", "calibration", "calibration slope"),
    ("how sure", "calibration", "coverage of the 80 % interval"),
    ("what if", "counterfactual", "policy value, expected"),
)
