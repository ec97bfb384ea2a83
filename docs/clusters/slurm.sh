#!/bin/bash
# Runs a sweep on the machines of a Slurm job:  sbatch slurm.sh. Submitted again, it goes on where it stopped.
#SBATCH --ntasks-per-node=1 --requeue --open-mode=append --output=slurm-%j.txt
# Edit from here ...
#SBATCH --partition=gpu --account=me
#SBATCH --nodes=4 --gpus-per-node=4 --exclusive --mem=0
#SBATCH --time=12:00:00 --signal=TERM@600
#SBATCH --chdir=/shared/certified-training
environment=.venv/bin/activate
sweep=(sweeps/cifar10.yaml --data-dir data)
# ... to here. All machines share that directory. 600: seconds in which epochs end before the time limit.

source "$environment" || exit 2
trap : TERM  # of scancel: this shell waits for the sweep
export RAY_AUTH_MODE=token RAY_USAGE_STATS_ENABLED=0
RAY_AUTH_TOKEN=$(python -c 'import secrets; print(secrets.token_hex(32))')
export RAY_AUTH_TOKEN
logs=slurm-$SLURM_JOB_ID-ray
export address="$(hostname):$((20000 + SLURM_JOB_ID % 10000))" running="$logs/running"
rm -rf "$logs" && mkdir "$logs" && touch "$running" || exit 2

start_ray() {  # on each machine, until the file is gone
  where=(--address="$address")
  [ "$SLURM_PROCID" = 0 ] && where=(--head --port="${address#*:}" --include-dashboard=false)
  ray start "${where[@]}" --num-cpus="$SLURM_CPUS_ON_NODE" --block &
  while [ -e "$running" ] && kill -0 $!; do sleep 1; done
  kill -KILL $!  # its processes end with it
}
export -f start_ray
# Slurm sends SIGTERM to every process. It is blocked here, so that the command ends before Ray does.
srun --cpu-bind=none --kill-on-bad-exit=0 --output="$logs/%t.txt" \
  env --block-signal=TERM bash -c start_ray 2> "$logs/srun.txt" &
until [ "$(grep -rl 'Ray runtime started' "$logs" | wc -l)" = "$SLURM_NNODES" ]; do
  [ $SECONDS -lt 300 ] || { tail -n 20 "$logs"/*.txt; exit 1; }
  sleep 1
done
srun --nodes=1 --ntasks=1 --nodelist="$SLURMD_NODENAME" --overlap --cpu-bind=none \
  python -m harness.run "${sweep[@]}" --ray-address "$address"
status=$?
rm "$running" && wait
exit $status
