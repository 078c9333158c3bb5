#!/usr/bin/env bash
# Several processes of one run on this machine, joined over loopback; see local_processes.md.
#
#   local_processes.sh PROCESSES DEVICES BINARY [FLAG...]
#   local_processes.sh 2 4 align --config=gpo --workdir=runs/two --config.train.mesh_fsdp=8
#   local_processes.sh 8 gpu align --config=gpo --workdir=runs/eight
#
# DEVICES: simulated devices of each process, or gpu for one GPU each.
# Process 0 speaks here; the others write WORKDIR/processes/RANK.log where --workdir is given.
# Exit code: that of the first process that fails, after which the rest are told to stop.
set -uo pipefail

if (($# < 3)); then
  echo "usage: $0 PROCESSES DEVICES BINARY [FLAG...]" >&2
  exit 2
fi
processes=$1 devices=$2 binary=$3
shift 3
for number in "$processes" "${devices/gpu/1}"; do
  if ! [[ $number =~ ^[1-9][0-9]*$ ]]; then
    echo "PROCESSES must be a whole number, DEVICES one or gpu; got $processes and $devices." >&2
    exit 2
  fi
done
python=${PYTHON:-python}

logs=$(mktemp -d)
for flag in "$@"; do
  if [[ $flag == --workdir=* ]]; then
    logs=${flag#--workdir=}/processes
    mkdir -p "$logs" || exit 2
  fi
done

port=${PORT:-$("$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')}
export JAX_COORDINATOR_ADDRESS=127.0.0.1:$port JAX_NUM_PROCESSES=$processes
if [[ $devices != gpu ]]; then
  # Threads enough for all collectives at once: with fewer they wait for each other for ever.
  export JAX_PLATFORMS=cpu PJRT_NPROC=$((2 * devices * processes))
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$devices"
fi

running=()
stop() {
  for process in "${running[@]}"; do
    kill -TERM "$process" 2>/dev/null
  done
}
trap stop TERM INT

for ((rank = 0; rank < processes; rank++)); do
  export JAX_PROCESS_ID=$rank
  if [[ $devices == gpu ]]; then
    export JAX_LOCAL_DEVICE_IDS=$rank
  fi
  command=("$python" -P -m "bellmax.experiments.$binary" "$@")
  if ((rank == 0)); then
    "${command[@]}" &
  else
    "${command[@]}" >>"$logs/$rank.log" 2>&1 &
  fi
  running+=($!)
done

code=0
while ((${#running[@]} > 0)); do
  left=()
  for process in "${running[@]}"; do
    if kill -0 "$process" 2>/dev/null; then
      left+=("$process")
      continue
    fi
    wait "$process"
    ended=$?
    if ((ended != 0 && code == 0)); then
      code=$ended
      echo "A process ended with exit code $code; the others are told to stop. Logs: $logs" >&2
      stop
    fi
  done
  running=("${left[@]}")
  sleep 0.2
done
exit "$code"
