#!/usr/bin/env bash
# A TPU slice of several hosts: one command on all of them at once; see tpu_pod.md.
#
#   TPU_NAME=bellmax ZONE=us-west4-a WORKDIR=/mnt/shared/runs/gpo \
#     tpu_pod.sh align --config=gpo --config.train.mesh_fsdp=256
#
# ACCELERATOR_TYPE (v5litepod-256), RUNTIME_VERSION (v2-alpha-tpuv5-lite) and SOURCE (a wheel) may be
# given. WORKDIR is a folder that all hosts share, such as an NFS mount.
set -euo pipefail

: "${TPU_NAME:?names the slice}" "${ZONE:?of the slice}" "${WORKDIR:?is shared by all hosts}"
accelerator=${ACCELERATOR_TYPE:-v5litepod-256}
runtime=${RUNTIME_VERSION:-v2-alpha-tpuv5-lite}
source=${SOURCE:-dist/*.whl}
if (($# < 1)); then
  echo "usage: TPU_NAME=NAME ZONE=ZONE WORKDIR=SHARED $0 BINARY [FLAG...]" >&2
  exit 2
fi
binary=$1
shift
printf -v arguments '%q ' "--workdir=$WORKDIR" "$@"

on_all_hosts() {
  gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker=all --command="$1"
}

gcloud compute tpus tpu-vm describe "$TPU_NAME" --zone="$ZONE" >/dev/null 2>&1 ||
  gcloud compute tpus tpu-vm create "$TPU_NAME" --zone="$ZONE" \
    --accelerator-type="$accelerator" --version="$runtime"

# Unquoted: the name of the wheel is not known.
# shellcheck disable=SC2086
gcloud compute tpus tpu-vm scp $source "$TPU_NAME": --zone="$ZONE" --worker=all

on_all_hosts "
  set -e
  curl -LsSf https://astral.sh/uv/install.sh | sh
  ~/.local/bin/uv venv --allow-existing --python 3.11 ~/bellmax
  ~/.local/bin/uv pip install --python ~/bellmax ~/*.whl 'jax[tpu]'
"
# The same program everywhere: --distributed makes JAX ask the slice who is who.
on_all_hosts "~/bellmax/bin/python -P -m bellmax.experiments.$binary --distributed $arguments"
echo "Delete it: gcloud compute tpus tpu-vm delete $TPU_NAME --zone=$ZONE"
