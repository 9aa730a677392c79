#!/bin/bash
# Prepares the data of the runs below, once, on a node that need not have a GPU; their training jobs wait for this one.
#SBATCH --job-name=prepare-topics-001
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=96
#SBATCH --time=12:00:00
#SBATCH --partition=cpu
#SBATCH --account=team
#SBATCH --output=/dev/null

set -u
PYTHON=/home/a/.venv/bin/python
exec >>/data/runs/topics-001/slurm/prepare.log 2>&1
cd /home/a/project || exit 66
module load cuda/12.8 || exit 67
export NCCL_IB_HCA=mlx5

"$PYTHON" -m launcher.job prepare --run /data/runs/topics-001 || exit $?
