#!/bin/bash
# What tests/slurm needs, from Debian's packages where this is root; otherwise says why those tests will be skipped.
set -u
for program in munged slurmctld slurmd sbatch shellcheck; do
    PATH=$PATH:/usr/sbin command -v "$program" >/dev/null || missing="${missing:-} $program"
done
[ -n "${missing:-}" ] || exit 0
if ! command -v apt-get >/dev/null; then
    echo "SLURM tests: no$missing here, and no apt-get to install them; they will be skipped"
elif [ "$(id -u)" != 0 ]; then
    echo "SLURM tests: no$missing here, and only root can install them; they will be skipped"
else
    export DEBIAN_FRONTEND=noninteractive
    install() { apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge shellcheck; }
    { install || { apt-get update && install; }; } >/tmp/xtrimo-slurm-install.log 2>&1 ||
        echo "SLURM tests: apt-get could not install$missing; they will be skipped: $(tail -n 1 /tmp/xtrimo-slurm-install.log)"
fi
exit 0
