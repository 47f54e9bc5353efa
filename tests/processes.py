"""Processes for tests: real ones, to be killed, forked from a server that has imported everything once."""

import multiprocessing
import os
import runpy
import subprocess
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile

ROOT = Path(__file__).parents[1]
CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(
    ["monai.bundle", "monai.engines", "bundle.outputs.comparison", "bundle.evaluation.run", "bundle.training.stage"]
)


class ForkedCommand:
    """`python -m MODULE ARGUMENTS` with the interface of a `subprocess.Popen` that captures text, less five seconds.

    The process differs from that of the command in what it has imported before it begins, so one test of each kind
    starts the command itself.
    """

    def __init__(self, module, arguments, cwd, environment):
        self.log = NamedTemporaryFile("r+")
        arguments = list(map(str, arguments))
        self.process = CONTEXT.Process(target=_run_module, args=(module, arguments, cwd, environment, self.log.name))
        self.process.start()

    @property
    def returncode(self):
        return self.process.exitcode

    def poll(self):
        return self.process.exitcode

    def send_signal(self, number):
        os.kill(self.process.pid, number)

    def communicate(self, timeout=None):
        """(output, None) when it has ended."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            raise subprocess.TimeoutExpired(self.process.name, timeout)
        return self.log.read(), None


def run_forked(module, *arguments):
    """(exit code, output) of `python -m MODULE ARGUMENTS` from the bundle root, see `ForkedCommand`."""
    command = ForkedCommand(module, arguments, ROOT, os.environ | {"OMP_NUM_THREADS": "1"})
    output, _ = command.communicate(timeout=600)
    return command.returncode, output


def _run_module(module, arguments, cwd, environment, log):
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.stdout.flush()
    with open(log, "wb", buffering=0) as stream:
        for descriptor in (1, 2):
            os.dup2(stream.fileno(), descriptor)
    sys.stdout, sys.stderr = (open(n, "w", buffering=1, closefd=False) for n in (1, 2))
    sys.argv = [module, *arguments]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit:
        raise
    except BaseException:
        sys.excepthook(*sys.exc_info())
        raise SystemExit(1) from None


def forecast(overrides):
    """Run the inference configuration."""
    from conftest import inference_config

    inference_config(**overrides).get_parsed_content("inference")
