#!/bin/bash
# A workstation with 4 GPUs, one worker each. Resumes after an interruption.
set -euo pipefail
slides=${1:?usage: workstation.sh SLIDES RESULTS}
results=${2:?usage: workstation.sh SLIDES RESULTS}

export OMP_NUM_THREADS=4   # cores divided by workers, for computations on the CPU
until atlas-wsi batch "$slides" -o "$results" --cluster cuda --workers 4; do
    status=$?
    # 2: some slides failed, see `atlas-wsi status`; 3: the disk is full; 130: interrupted
    case $status in 2 | 3 | 130) exit $status ;; esac
    sleep 60
done
