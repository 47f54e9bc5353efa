"""python -m scripts.simulate_trial --out DIR --patients N --seed S: writes a simulated trial as a BIDS data set."""

from bundle.simulation.trial import simulate_trial
from scripts.command import run


def main(
    out: str,
    patients: int = 2131,
    seed: int = 0,
    workers: int | None = None,
    preset: str = "trial",
    compact: bool = False,
    expected: bool = False,
) -> None:
    """Writes a simulated trial.

    Args:
        out: folder of the data set; a run that was stopped goes on there.
        patients: how many; 2131 is the size of the pooled trials.
        seed: of the trial.
        workers: processes; all cores if not given.
        preset: "trial" (one protocol, clean reading) or "clinic" (endless scanners, readers' errors, missing volumes,
            unknown arms and covariates, 6 to 24 months between visits). "sites": as "clinic", with 20 scanners, each
            patient at one of them. "scanners", to train the segmenter: scans that vary even more than in "clinic", and
            perfect masks. "mixed", with --compact: two patients of "trial", then one of "clinic", for training.
        compact: one small file a patient on the model's grid in place of NIfTI volumes.
        expected: with --compact, P(NET2 at w096) of every voxel is stored too, as the oracle forecasts it: what the
            prior (`bundle.networks.prior`) is best trained on.
    """
    simulate_trial(out, patients, seed=seed, workers=workers, preset=preset, compact=compact, expected=expected)


if __name__ == "__main__":
    run(main)
