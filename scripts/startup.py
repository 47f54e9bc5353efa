"""From the command to the first network call: where the seconds go.

    python -m scripts.startup [--repeats 5] [--dataset_dir DIR] [--case sub-...]

Runs `monai.bundle run inference` in processes of their own, each of which ends at its first call, and prints medians.
"""

import json
import os
import runpy
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent
PHASES = ("Python", "torch", "monai.bundle", "configuration, weights, scans")


def run(repeats: int = 5, **settings: str) -> None:
    """Print the seconds of each of `PHASES` and of all; the first process only warms the disk's cache."""
    rounds = [first_call(**settings)["seconds"] for _ in range(repeats + 1)][1:]
    medians = {phase: statistics.median(seconds[phase] for seconds in rounds) for phase in PHASES}
    medians["all"] = statistics.median(sum(seconds.values()) for seconds in rounds)
    for phase, seconds in medians.items():
        print(f"{seconds:6.2f} s  {phase}")


def first_call(**settings: str) -> dict:
    """Of a process of its own, at its first network call: seconds by phase, packages that MONAI had not imported."""
    arguments = [item for name, value in settings.items() for item in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "scripts.startup", "--until-first-call", repr(time.time()), *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return json.loads(done.stdout.splitlines()[-1])


def until_first_call(started: float, arguments: list[str]) -> None:
    """Run inference up to the first network call and print how long it took; never returns."""
    times = [started, time.time()]
    import torch  # noqa: F401

    times.append(time.time())
    import monai.bundle  # noqa: F401

    times.append(time.time())
    packages = top_level()
    from bundle.networks.slab_unet import ForecastNetwork

    def report(*_: object, **__: object) -> None:
        times.append(time.time())
        seconds = {phase: end - start for phase, start, end in zip(PHASES, times, times[1:])}
        print("\n" + json.dumps({"seconds": seconds, "packages": sorted(top_level() - packages)}), flush=True)
        os._exit(0)

    ForecastNetwork.backbone = report
    sys.argv = ["monai.bundle", "run", "inference", "--config_file", "configs/inference.json", *arguments]
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)  # argv is that of the command


def top_level() -> set[str]:
    """Packages imported so far."""
    return {name.partition(".")[0] for name in sys.modules if not name.startswith("_")}


if __name__ == "__main__":
    if sys.argv[1:2] == ["--until-first-call"]:
        until_first_call(float(sys.argv[2]), sys.argv[3:])
    else:
        import fire

        fire.Fire(run)
