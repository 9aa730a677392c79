#!/bin/bash
# The job of one run. `launcher submit` has written it; `sbatch THIS_FILE` submits it by hand, and `bash THIS_FILE` runs it inside
# an allocation. It decides nothing: what an attempt needs is made by `begin`, each node's ranks are run by `node`, and `end` reads
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

# Warned before the time limit, or before a preemption: the ranks see the file, save together and stop at one step. Slurm signals this
# shell alone, so that a rank which does not listen yet is not killed; a warning that comes early waits for the attempt.
ATTEMPT= WARNED=
warned() {
    WARNED=1
    if [ -n "$ATTEMPT" ]; then : >"$RUN/attempts/$ATTEMPT/stop"; fi
}
trap warned USR1 TERM

# One more attempt of the run: its folder, the first node's address, a port. It goes on from the newest valid checkpoint.
ATTEMPT=$("$PYTHON" -m launcher.job begin --run "$RUN") || exit $?
if [ -n "$WARNED" ]; then warned; fi

# One agent on each node, which owns the ranks there. -c again: without it srun may bind all of them to one core.
srun --nodes=4 --ntasks=4 --ntasks-per-node=1 --cpus-per-task=96 --kill-on-bad-exit=0 --wait=0 \
    '--container-image=nvcr.io#nvidia/pytorch:26.01-py3' \
    --container-mounts=/home/a/project:/home/a/project,/data/runs/topics-001:/data/runs/topics-001 \
    --container-mount-home \
"$PYTHON" -m launcher.job node --run "$RUN" --attempt "$ATTEMPT" &
STEP=$!

# `wait` ends whenever a signal comes; the agents go on.
CODE=129
while kill -0 "$STEP" 2>/dev/null; do
    wait "$STEP"
    CODE=$?
done

# The ranks' verdicts are the truth, and exit codes a hint: requeue, go on in the next job of the chain, or end.
exec "$PYTHON" -m launcher.job end --run "$RUN" --attempt "$ATTEMPT" --code "$CODE"
