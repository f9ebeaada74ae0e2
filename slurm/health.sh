#!/bin/bash
# health.sh FOLDER: whether this node can work; its last line is then "healthy NODE". Run on each node before a job.
node=${SLURMD_NODENAME:-$(hostname)}

fail() {
    echo "$node: $*" >&2
    exit 1
}

for folder in "$1" "${TMPDIR:-/tmp}"; do
    file=$folder/.health-$node-$$
    head -c 1000000 /dev/zero >"$file" || fail "$folder cannot be written"
    size=$(stat -c %s "$file")
    rm -f "$file"
    [ "$size" = 1000000 ] || fail "$folder is full"
done
if [ -n "${SLURM_GPUS_ON_NODE:-}" ] && [ "$SLURM_GPUS_ON_NODE" != 0 ]; then
    found=$(nvidia-smi --list-gpus | grep -c ^GPU)
    [ "$found" -ge "$SLURM_GPUS_ON_NODE" ] || fail "$found of $SLURM_GPUS_ON_NODE GPUs answer nvidia-smi"
    "$PYTHON" -m torch.distributed.run --standalone --nproc-per-node="$SLURM_GPUS_ON_NODE" \
        "$(dirname "${BASH_SOURCE[0]}")/health.py" >&2 || fail "its GPUs do not compute or do not reach each other"
fi
if [ -n "${HEALTH_CHECK:-}" ]; then
    bash -c "$HEALTH_CHECK" >&2 || fail "HEALTH_CHECK failed: $HEALTH_CHECK"
fi
echo "healthy $node"
