#!/usr/bin/env bash
# Several processes on this machine, over loopback: to try a distributed run without a cluster.
#   examples/launch/local.sh COUNT train --model MODEL --data DATA --output OUTPUT
set -euo pipefail

count=$1
shift
port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')

processes=()
for ((id = 0; id < count; id++)); do
    lntune-jax "$@" --distributed --coordinator "127.0.0.1:$port" \
        --num-processes "$count" --process-id "$id" &
    processes+=($!)
done
trap 'kill "${processes[@]}" 2>/dev/null || true' INT TERM
code=0
for process in "${processes[@]}"; do
    wait "$process" || code=$?
done
exit "$code"
