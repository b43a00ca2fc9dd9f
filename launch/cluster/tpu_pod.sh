#!/usr/bin/env bash
# One stage of a run on a TPU pod slice: the same command on every host.
#
#   TPU_NAME=my-slice ZONE=us-east5-a RUN=/mnt/shared/runs/esconv-8b \
#     bash launch/cluster/tpu_pod.sh sft --config esconv_llama3_8b --model.path /mnt/shared/llama
#
# Every host needs the checkout at ~/ixjax with the `tpu` extra installed, and the file system of
# RUN. JAX connects the hosts. The processes of a search are not joined: each host plays a slice of
# the conditions (--processes.*) on its own 4 chips. We have not run this example.
set -euo pipefail

stage=${1:?usage: tpu_pod.sh STAGE [flags]}
shift
: "${TPU_NAME:?the name of the slice}" "${ZONE:?its zone}" "${RUN:?the run directory, on a shared disk}"
HOSTS=${HOSTS:-1} # number of hosts of the slice

flags=(--out "$RUN" "$@")
environment=
if [[ $stage == search ]]; then
  # The metadata server has the host's number. Without the bounds a host waits for the whole slice.
  number='$(curl -s -H Metadata-Flavor:Google \
    http://metadata.google.internal/computeMetadata/v1/instance/attributes/agent-worker-number)'
  environment='TPU_PROCESS_BOUNDS=1,1,1 TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1'
  part="--processes.count $HOSTS --processes.index $number"
else
  part='--distributed.detect always --distributed.timeout 900'
fi

gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone "$ZONE" --worker=all --command \
  "cd ~/ixjax && $environment .venv/bin/python -m launch.$stage $(printf '%q ' "${flags[@]}")$part"
