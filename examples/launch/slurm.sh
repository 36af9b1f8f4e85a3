#!/usr/bin/env bash
# A GPU cluster under SLURM: one process for each node, which has all its GPUs.
#   sbatch examples/launch/slurm.sh MODEL DATA OUTPUT
# OUTPUT must be on a disk that all nodes share. JAX finds the coordinator, the number of processes
# and each one's place in SLURM's own variables.
#SBATCH --job-name=lntune
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=16
#SBATCH --time=04:00:00
#SBATCH --requeue
set -euo pipefail

model=$1 data=$2 output=$3

# All of a node's GPUs for its one process; JAX would otherwise take one GPU for each task.
export JAX_LOCAL_DEVICE_IDS
JAX_LOCAL_DEVICE_IDS=$(seq --separator=, 0 $((SLURM_GPUS_ON_NODE - 1)))

# --kill-on-bad-exit: a lost process ends the step everywhere. With --resume a requeued job goes on.
srun --kill-on-bad-exit=1 lntune-jax train --distributed --resume \
    --model "$model" --data "$data" --output "$output" \
    --mesh "data=$SLURM_JOB_NUM_NODES,fsdp=$SLURM_GPUS_ON_NODE" --batch-size 256
