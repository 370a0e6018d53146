#!/bin/bash
# `rlhf run` on two machines of a SLURM cluster, eight GPUs each; start it from the checkout:
#
#   CONFIG=configs/quickstart.yaml sbatch scripts/slurm.sh output_dir=/shared/runs/mine
#
# What stands behind the script's name are settings of the experiment. output_dir must be on a file
# system that all machines see. Written by SLURM's manual and tested with stand-ins for its
# commands (tests/pipeline/launch/test_examples.py), not on a cluster.
#SBATCH --job-name=rlhf
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1         # one launcher a machine, which starts a process a GPU
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@180         # to this shell, three minutes before the time is over
#SBATCH --requeue                   # when a machine fails, SLURM itself starts the job again
#SBATCH --open-mode=append          # the log goes on
set -u

CONFIG=${CONFIG:-configs/quickstart.yaml}
ACCELERATE=${ACCELERATE:-configs/accelerate/fsdp2.yaml}
TRIES=${TRIES:-20}
machine_0=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 20000))    # and the next; jobs that share a machine have others

# The step is told to end as by Ctrl-C. It says that the same command resumes, and the job goes back
# into the queue, where it goes on from its last checkpoint.
again=
stop() {
    again=yes caught=yes
    scancel --signal=TERM "$SLURM_JOB_ID"
}
trap stop USR1 TERM

# SLURM_NODEID is another on each machine, so the task's own shell reads it. Of --mpi's variables
# torch would take ranks that are none of these processes'.
srun --mpi=none --kill-on-bad-exit=0 bash -c 'exec "$@" --machine-rank "$SLURM_NODEID"' task \
    rlhf run --config "$CONFIG" "$@" \
    --accelerate "$ACCELERATE" \
    --num-machines "$SLURM_NNODES" \
    --num-processes "$((SLURM_NNODES * ${SLURM_GPUS_ON_NODE:-8}))" \
    --main-process-ip "$machine_0" \
    --main-process-port "$port" &
step=$!
caught=yes
while [[ -n $caught ]]; do    # a signal ends the waiting, not the step
    caught=
    wait "$step"
    code=$?
done

# 75: a process or a machine was lost. Whatever else fails would fail again.
if [[ -n $again || $code == 75 ]] && ((${SLURM_RESTART_COUNT:-0} < TRIES)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
