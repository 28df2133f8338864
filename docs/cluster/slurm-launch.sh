#!/bin/bash
# The launcher as its own job, so that no login session has to stay open: sbatch slurm-launch.sh
#SBATCH --job-name=atlas-wsi
#SBATCH --partition=cpu
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=7-00:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@600

source /shared/atlas-wsi/.venv/bin/activate
# SIGTERM, ten minutes before the end of the job, lets slides in progress finish
exec atlas-wsi batch /shared/slides -o /shared/results \
    --cluster slurm --cluster-options slurm.yaml
