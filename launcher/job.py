"""What a Slurm job runs of launcher; the job scripts (slurm/) call these, and nothing else.

python -m launcher.job begin --run RUN                          on the first node: makes the next attempt, prints its number
python -m launcher.job preflight --run RUN --attempt N          on every node: looks whether it is fit
python -m launcher.job node --run RUN --attempt N               on every node: runs its ranks
python -m launcher.job end --run RUN --attempt N --code CODE    on the first node: says how it ended, and what follows
python -m launcher.job prepare --run RUN                        in a job of its own: prepares the data
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path

from launcher.errors import LauncherError
from launcher.rundir import RunDir


def main(argv: list[str] | None = None) -> int:
    """Run one of them; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m launcher.job", description=__doc__, allow_abbrev=False)
    parser.add_argument("what", choices=("begin", "preflight", "node", "end", "prepare"))
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--attempt", type=int, default=0)
    parser.add_argument("--code", type=int, default=0)
    options = parser.parse_args(argv)
    from launcher.workflows import in_job

    try:
        run = RunDir.open(options.run)
        if options.what == "begin":
            # The script reads the number from here: whatever else is said goes to the log.
            with contextlib.redirect_stdout(sys.stderr):
                attempt = in_job.begin(run, os.environ)
            print("" if attempt is None else attempt)
            return 0
        if options.what == "preflight":
            return in_job.preflight(run, options.attempt, os.environ)
        if options.what == "node":
            return in_job.run_node(run, options.attempt, os.environ)
        if options.what == "prepare":
            in_job.prepare(run)
            return 0
        return in_job.end(run, options.attempt, options.code, os.environ)
    except LauncherError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
