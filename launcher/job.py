"""What a Slurm job runs of launcher; the job script (slurm/job.sh.j2) calls these three, and nothing else.

python -m launcher.job begin --run RUN                          on the first node: makes the next attempt, prints its number
python -m launcher.job node --run RUN --attempt N               on every node: runs its ranks
python -m launcher.job end --run RUN --attempt N --code CODE    on the first node: says how it ended, and what follows
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from launcher.errors import LauncherError
from launcher.rundir import RunDir


def main(argv: list[str] | None = None) -> int:
    """Run one of the three; return its exit code."""
    parser = argparse.ArgumentParser(prog="python -m launcher.job", description=__doc__, allow_abbrev=False)
    parser.add_argument("what", choices=("begin", "node", "end"))
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--attempt", type=int, default=0)
    parser.add_argument("--code", type=int, default=0)
    options = parser.parse_args(argv)
    from launcher.workflows import in_job

    try:
        run = RunDir.open(options.run)
        if options.what == "begin":
            print(in_job.begin(run, os.environ))
            return 0
        if options.what == "node":
            return in_job.run_node(run, options.attempt, os.environ)
        return in_job.end(run, options.attempt, options.code, os.environ)
    except LauncherError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
