#!/bin/bash
#SBATCH --nodes=4 --ntasks-per-node=1 --gpus-per-node=4 --time=12:00:00
# Runs a sweep on four machines:  sbatch slurm.sh. Submit it again after its time limit, and it goes on.
# Change the machines, GPUs and time above, and the path and sweep below. All machines share the path.
export RAY_AUTH_MODE=disabled
cd /shared/certified-training && source .venv/bin/activate
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --nodes=1 --ntasks=1 -w "$head" ray start --head --port=6379 --block &
sleep 20  # until the first machine listens
srun --nodes=$((SLURM_NNODES - 1)) --ntasks=$((SLURM_NNODES - 1)) -x "$head" ray start --address="$head:6379" --block &
sleep 20
srun --overlap --nodes=1 --ntasks=1 -w "$head" python -m harness.run sweeps/cifar10.yaml --ray-address auto --data-dir data
