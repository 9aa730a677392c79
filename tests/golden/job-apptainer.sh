#!/bin/bash
# The job of one run.
# `launcher submit` has written this; `sbatch THIS_FILE` submits it by hand, and `bash THIS_FILE` runs it inside an allocation.
# It decides nothing: `begin` makes what an attempt needs, `preflight` looks at the nodes, `node` runs a node's ranks, and `end` reads
# their verdicts and says what follows.
#SBATCH --job-name=topics-001
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=96
#SBATCH --time=12:00:00
#SBATCH --partition=gpu
#SBATCH --account=team
#SBATCH --gres=gpu:8
#SBATCH --mem=900G
#SBATCH --mail-user=a@b.org
#SBATCH --mail-type=END,FAIL
#SBATCH --signal=B:USR1@180
#SBATCH --open-mode=append
#SBATCH --output=/dev/null
#SBATCH --exclusive
#SBATCH --requeue

# Warned before the time limit, or before a preemption: the ranks save together and stop at one step. Slurm signals this shell alone,
# so that no rank is killed that does not listen yet; a warning that comes early waits for the attempt. The ranks see a file, and,
# as another machine may see it late, each node's agent gets a signal too.
ATTEMPT= WARNED=
warned() {
    WARNED=1
    if [ -n "$ATTEMPT" ]; then
        : >"$RUN/attempts/$ATTEMPT/stop"
        scancel --signal=USR2 "$SLURM_JOB_ID"
    fi
}
trap warned USR1 TERM

set -u
RUN=/data/runs/topics-001
PYTHON=/home/a/.venv/bin/python

# Slurm opens the job's own output in append mode, but knows no quoting of its name: so it is opened here.
mkdir -p "$RUN/slurm"
exec >>"$RUN/slurm/job.log" 2>&1
cd /home/a/project || exit 66

# Environment modules of the site.
module load cuda/12.8 || exit 67

# Variables of the site.
export NCCL_IB_HCA=mlx5

# Runs a part of launcher on every node; its exit code is in CODE. -c again: without it srun may bind all of a node's ranks to one core.
on_every_node() {
    srun --nodes=4 --ntasks=4 --ntasks-per-node=1 --cpus-per-task=96 --kill-on-bad-exit="$1" --wait=0 \
        apptainer exec --nv --bind=/home/a/project --bind=/data/runs/topics-001 '/images/a b.sif' /home/a/.venv/bin/python -m launcher.job "$2" --run "$RUN" --attempt "$ATTEMPT" &
    STEP=$!
    if [ "$2" = preflight ]; then end_lost & fi
    # A signal ends `wait` early, with a code above 128; what runs on the nodes goes on.
    while :; do
        wait "$STEP"
        CODE=$?
        [ "$CODE" -gt 128 ] && kill -0 "$STEP" 2>/dev/null || break
    done
}

# The nodes look together and end together. One that is lost meanwhile cannot tell srun its end, and Slurm may not miss it for minutes.
end_lost() {
    until [ -e "$RUN/attempts/$ATTEMPT/preflight.over" ]; do
        kill -0 "$STEP" 2>/dev/null || return
        sleep 1
    done
    for _ in {1..20}; do
        kill -0 "$STEP" 2>/dev/null || return
        sleep 1
    done
    echo "preflight: it is over on one node, and Slurm waits for another; ended without it"
    kill -KILL "$STEP"
}

# One more attempt of the run: its folder, the first node's address, a port. It goes on from the newest valid checkpoint. No number:
# the run has nothing left to do.
ATTEMPT=$("$PYTHON" -m launcher.job begin --run "$RUN") || exit $?
if [ -z "$ATTEMPT" ]; then exit 0; fi
if [ -n "$WARNED" ]; then warned; fi

CODE=0
if [ -z "$WARNED" ]; then on_every_node 0 preflight; fi
if [ "$CODE" = 0 ] && [ -z "$WARNED" ]; then on_every_node 1 node; fi

# The ranks' verdicts are the truth, and exit codes a hint: requeue, go on in the next job of a chain, or end.
trap "" USR1 TERM
exec "$PYTHON" -m launcher.job end --run "$RUN" --attempt "$ATTEMPT" --code "$CODE"
