"""The metrics of an evaluation, by table. A new metric is a small class in one of these modules and one entry here."""

from bundle.evaluation.metrics import activity, calibration, counts, decisions, detection, regions, where
from bundle.evaluation.metrics.base import Metric

TABLES: dict[str, tuple[Metric, ...]] = {
    "regions": regions.METRICS,
    "activity": (activity.AveragePrecision(), activity.AUC(), activity.AUCWithinArms()),
    "log_count": (counts.LogCountError(),),
    "where": where.METRICS,
    "detection": (
        detection.LesionF1(),
        detection.LesionSensitivity(),
        detection.LesionPrecision(),
        detection.VoxelAveragePrecision(),
        detection.VoxelBrier(),
    ),
    "calibration": (
        calibration.ActivityBrier(),
        calibration.CalibrationSlope(),
        calibration.CalibrationInTheLarge(),
        calibration.ActivityCalibrationError(),
        counts.Coverage(80),
        counts.Coverage(95),
        calibration.HeatmapCalibrationError(),
        calibration.SiteCalibrationError(),
        calibration.SiteRatio(),
        calibration.VolumeRatio(),
    ),
    "counts": (
        counts.CountCRPS(),
        counts.FairCountCRPS(),
        counts.MeanForecastCount(),
        counts.MeanTrueCount(),
    ),
    "decisions": decisions.METRICS,
}
MEMBERS: tuple[Metric, ...] = (  # also computed for the first 1, 2, ... members of an ensemble
    activity.AUC(),
    activity.AveragePrecision(),
    counts.LogCountError(),
    counts.CountCRPS(),
    detection.VoxelBrier(),
)


def metric_named(name: str) -> Metric:
    """The metric of that name in any table."""
    return next(metric for table in TABLES.values() for metric in table if metric.name == name)
