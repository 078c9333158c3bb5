#!/usr/bin/env bash
# One TPU VM: makes it, installs bellmax, runs, and says how to delete it; see tpu_vm.md.
#
#   TPU_NAME=bellmax ZONE=us-west4-a tpu_vm.sh align --config=gpo
#
# ACCELERATOR_TYPE (v5litepod-8), RUNTIME_VERSION (v2-alpha-tpuv5-lite) and SOURCE (a wheel, or what
# pip can install) may be given. The folder of the run is ~/runs on the VM.
set -euo pipefail

: "${TPU_NAME:?names the TPU}" "${ZONE:?of the TPU, such as us-west4-a}"
accelerator=${ACCELERATOR_TYPE:-v5litepod-8}
runtime=${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}
source=${SOURCE:-dist/*.whl}
if (($# < 1)); then
  echo "usage: TPU_NAME=NAME ZONE=ZONE $0 BINARY [FLAG...]" >&2
  exit 2
fi
binary=$1
shift
printf -v arguments '%q ' "$@"

gcloud compute tpus tpu-vm describe "$TPU_NAME" --zone="$ZONE" >/dev/null 2>&1 ||
  gcloud compute tpus tpu-vm create "$TPU_NAME" --zone="$ZONE" \
    --accelerator-type="$accelerator" --version="$runtime"

# Unquoted: the name of the wheel is not known.
# shellcheck disable=SC2086
gcloud compute tpus tpu-vm scp $source "$TPU_NAME": --zone="$ZONE"

# Python 3.11 at least; a virtual environment keeps the image's own packages out.
gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --command="
  set -e
  curl -LsSf https://astral.sh/uv/install.sh | sh
  ~/.local/bin/uv venv --allow-existing --python 3.11 ~/bellmax
  ~/.local/bin/uv pip install --python ~/bellmax ~/*.whl 'jax[tpu]'
  ~/bellmax/bin/python -P -m bellmax.experiments.$binary --workdir=\$HOME/runs $arguments
"
echo "Delete it: gcloud compute tpus tpu-vm delete $TPU_NAME --zone=$ZONE"
