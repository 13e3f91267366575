#!/usr/bin/env bash
# A sweep on the hosts of a TPU pod slice: host n of h works on the jobs n, n + h, n + 2h, ..
#   gcloud compute tpus tpu-vm ssh NAME --worker=all --command='
#       cd parity_jax && launch/templates/tpu_pod.sh /runs/sweep'
# Every host runs jobs of its own on its own chips. The directory is on a file system
# that all share.
set -uo pipefail
sweep=$1
metadata=http://metadata.google.internal/computeMetadata/v1/instance/attributes
ask() { curl --silent --fail --header 'Metadata-Flavor: Google' "$metadata/$1"; }
host=${TPU_HOST:-$(ask agent-worker-number)}
hosts=${TPU_HOSTS:-$(ask worker-network-endpoints | tr ',' '\n' | wc -l)}

# This host alone, not the slice: JAX would wait for the others.
export TPU_PROCESS_BOUNDS=1,1,1 TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1
export CLOUD_TPU_TASK_ID=0

jobs=$(.venv/bin/python -c '
import json, sys
print(len(json.load(open(sys.argv[1] + "/sweep.json"))["jobs"]))' "$sweep") || exit 2
failed=0
for ((index = host; index < jobs; index += hosts)); do
    code=75
    for ((life = 0; life < 20 && code == 75; life++)); do
        .venv/bin/python -m launch.job "$sweep" "$index"
        code=$?
    done
    ((code == 0)) || failed=1
done
exit "$failed"
