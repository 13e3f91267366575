#!/usr/bin/env bash
# Slurm and munge for tests/test_launch_slurm.py, on Debian or Ubuntu, as root.
set -euo pipefail
for program in sbatch slurmctld slurmd munged; do
    PATH="$PATH:/usr/sbin" command -v "$program" > /dev/null || missing=yes
done
[ "${missing:-}" ] || exit 0
policy=/usr/sbin/policy-rc.d # 101: no service starts; the tests start their own
if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' > "$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
{
    apt-get update
    apt-get install --yes --no-install-recommends slurm-wlm munge
} > /tmp/slurm_install.log 2>&1 || { tail /tmp/slurm_install.log; exit 1; }
