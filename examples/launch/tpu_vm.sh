#!/usr/bin/env bash
# A Cloud TPU pod slice through gcloud: the same command on every host of the slice.
#   examples/launch/tpu_vm.sh NAME ZONE MODEL DATA OUTPUT
# MODEL, DATA and OUTPUT are paths that every host sees (a mounted bucket, Filestore); each host has
# jax[tpu] and this package, with its extra cli, in ~/venv. JAX finds the other hosts in the slice's metadata.
set -euo pipefail

name=$1 zone=$2 model=$3 data=$4 output=$5

gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="
    ~/venv/bin/lntune-jax train --distributed --resume \
        --model $(printf %q "$model") --data $(printf %q "$data") --output $(printf %q "$output") \
        --batch-size 256"
