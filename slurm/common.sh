# shellcheck shell=bash
# What the job scripts share; they read it with `source`. docs/cluster.md tells what each setting and file means.
#
# A signal (time limit, preemption) becomes the file STOP, which the training loop looks for after each step; when it
# has saved, the job goes back into the queue under its own number. No launcher passes a signal on unharmed: torchrun
# dies of USR1, srun ends its step at TERM.
set -uo pipefail

# --- what a site or a user may set ------------------------------------------------------------------------------------
XTRIMO_HOME=${XTRIMO_HOME:-${SLURM_SUBMIT_DIR:-$PWD}}   # the checkout, on a file system that all nodes see
: "${MODULES:=}"               # modules to load, such as "cuda/12.4 python/3.11"
: "${VENV:=}"                  # virtual environment; else the python of PATH, or of the container
: "${CONTAINER:=}"             # image: FILE.sif for apptainer, anything else for pyxis' srun --container-image
: "${CONTAINER_MOUNTS:=}"      # OUTSIDE:INSIDE,... ; XTRIMO_HOME and the run's folder must be among them
: "${RANKS_PER_NODE:=${SLURM_GPUS_ON_NODE:-1}}"
: "${MAX_RESTARTS:=100}"       # times that a job goes back into the queue, whatever the reason
: "${RETRIES:=0}"              # times that it does so after a failure with all nodes healthy
: "${HEALTH_SECONDS:=120}"     # for the check of a node; 0 leaves the checks out
: "${HEALTH_CHECK:=}"          # a command of the site's, run on each node beside our checks
: "${DRY_RUN:=}"               # 1: print what would be run, and end

restarts=${SLURM_RESTART_COUNT:-0}
job=${SLURM_JOB_ID:-0}
nodes=${SLURM_JOB_NUM_NODES:-1}
stop_in=''                     # folder of the files STOP and STOPPED; none for work that a kill does not hurt
stopping=''                    # the signal that asked to stop
signals=0
running=''                     # process id of the step at work

say() { echo "[$(date '+%F %T')] $*"; }

die() {
    say "$*" >&2
    exit 2
}

# --- the environment of the nodes -------------------------------------------------------------------------------------
if [ -n "$MODULES" ]; then
    # shellcheck disable=SC2086  # a list
    module load $MODULES || die "module load $MODULES failed"
fi
python=${VENV:+$VENV/bin/}python
srun_options=()
inside=()                      # what stands before each command on a node
case $CONTAINER in
    '') ;;
    *.sif) inside=(apptainer exec --nv ${CONTAINER_MOUNTS:+--bind "$CONTAINER_MOUNTS"} "$CONTAINER") ;;
    *) srun_options+=(--container-image="$CONTAINER" ${CONTAINER_MOUNTS:+--container-mounts="$CONTAINER_MOUNTS"}) ;;
esac

# srun takes no --cpus-per-task from sbatch since SLURM 22.05, and would bind a whole node's ranks to one core.
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}
# Threads of all ranks together no more than processors, and asleep while they wait.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((SRUN_CPUS_PER_TASK / RANKS_PER_NODE > 0 ? SRUN_CPUS_PER_TASK / RANKS_PER_NODE : 1))}
export OMP_WAIT_POLICY=PASSIVE
export PYTHONPATH=$XTRIMO_HOME${PYTHONPATH:+:$PYTHONPATH}
export PYTHONUNBUFFERED=1      # the last words of a rank that is killed are in its log
export PYTHONFAULTHANDLER=1    # a rank that crashes says where it was
ulimit -c 0                    # a thousand ranks' core dumps fill any disk
# One line for each thing that goes wrong; INFO prints pages a rank, and is for the day on which something does.
export NCCL_DEBUG=${NCCL_DEBUG:-WARN}
# InfiniBand gives up after 4 us * 2^22 = 17 s a try, not 1 s: a switch may need as long to re-route around a bad link.
export NCCL_IB_TIMEOUT=${NCCL_IB_TIMEOUT:-22}
# What each rank was sending last, for the stacks that a run leaves when it hangs; costs nothing until then.
export TORCH_FR_BUFFER_SIZE=${TORCH_FR_BUFFER_SIZE:-2000}
# One queue to the GPU: communication of tensor ranks starts in the order in which it was asked for, and so overlaps.
export CUDA_DEVICE_MAX_CONNECTIONS=${CUDA_DEVICE_MAX_CONNECTIONS:-1}
# Packed rows differ in length, so freed pieces of memory rarely fit the next tensor; segments that grow do.
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
# Compiled kernels on the node's own disk: ranks of all nodes would lock the same files of the home directory.
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-${TMPDIR:-/tmp}/triton-${USER:-$UID}}
export TORCHINDUCTOR_CACHE_DIR=${TORCHINDUCTOR_CACHE_DIR:-${TMPDIR:-/tmp}/inductor-${USER:-$UID}}

# --- the course of a job ----------------------------------------------------------------------------------------------
# begin RECORDS [STOP_IN]: the job's records go to one folder; STOP and STOPPED of the training loop lie in the other.
begin() {
    records=$1 stop_in=${2:-}
    [ -z "${SLURM_ARRAY_JOB_ID:-}" ] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    export LOGS=$records/logs
    say "job $job, start $((restarts + 1)), on ${SLURM_JOB_NODELIST:-this machine}"
    [ -z "$DRY_RUN" ] || return 0
    mkdir -p "$LOGS" ${stop_in:+"$stop_in"} || die "$records cannot be made; it must be on a disk that all nodes see"
    rm -f ${stop_in:+"$stop_in/STOP" "$stop_in/STOPPED"}
    trap 'on_signal USR1' USR1     # sbatch --signal: before the time limit, and at preemption
    trap 'on_signal TERM' TERM     # preemption of clusters without preempt_send_user_signal; also scancel
    take_snapshot
    check_nodes
}

on_signal() {
    say "got $1"
    stopping=$1
    ((signals += 1))
    if [ -n "$stop_in" ]; then
        touch "$stop_in/STOP"
    elif [ -n "$running" ]; then
        kill "$running"            # srun ends the step; what it has finished is kept
    fi
}

# What is needed to say, months later, what ran here; nothing whose name or value looks secret.
take_snapshot() {
    local folder=$records/${SLURM_ARRAY_JOB_ID:-$job}.$restarts name
    mkdir "$folder" 2>/dev/null || return 0      # another task of the array has done it
    cp "$0" "$folder/script.sh"
    scontrol show hostnames "${SLURM_JOB_NODELIST:-}" >"$folder/nodes.txt"
    scontrol show job "$job" >"$folder/job.txt"
    {
        git -C "$XTRIMO_HOME" rev-parse HEAD
        git -C "$XTRIMO_HOME" status --short
    } >"$folder/commit.txt" 2>&1
    "${inside[@]}" "$python" -m pip list --format=freeze --disable-pip-version-check \
        >"$folder/packages.txt" 2>&1 &      # takes seconds
    for name in $(compgen -e); do
        grep -qiE 'key|token|secret|pass|credential|cookie|auth' <<<"$name" || printf '%s=%q\n' "$name" "${!name}"
    done | sed 's#//[^/@ ]*@#//***@#g' >"$folder/environment.txt"
}

# Each node shows that it can work; those that do not are left out, and the job waits for others.
check_nodes() {
    ((HEALTH_SECONDS)) || return 0
    local healthy sick known
    healthy=$(timeout -k 5 $((HEALTH_SECONDS + 15)) srun "${srun_options[@]}" --overlap --nodes="$nodes" \
        --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=0 --input=none \
        timeout -k 5 "$HEALTH_SECONDS" "${inside[@]}" env PYTHON="$python" HEALTH_CHECK="$HEALTH_CHECK" \
        bash "$XTRIMO_HOME/slurm/health.sh" "$records" | sed -n 's/^healthy //p' | sort)
    sick=$(comm -13 <(echo "$healthy") <(scontrol show hostnames "$SLURM_JOB_NODELIST" | sort) | paste -sd,)
    [ -n "$sick" ] || return 0
    known=$(fact ExcNodeList)
    [ "$known" = '(null)' ] || sick=$known,$sick
    requeue "not healthy: $sick" "$sick"
    exit 1
}

# run_ranks COMMAND...: a torchrun on each node, which starts the node's ranks and meets the others at MASTER_ADDR.
run_ranks() {
    local first=${MASTER_ADDR:-} port
    [ -n "$first" ] || first=$(scontrol show hostnames "${SLURM_JOB_NODELIST:-localhost}" 2>/dev/null | head -n 1)
    port=$((20000 + (${SLURM_JOB_ID:-0} * 7 + restarts) % 12000))    # below those that Linux gives away by itself
    run srun "${srun_options[@]}" --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --input=none \
        --kill-on-bad-exit=1 --wait=60 "${inside[@]}" "$python" -m torch.distributed.run \
        --nnodes="$nodes" --nproc-per-node="$RANKS_PER_NODE" --max-restarts=0 --rdzv-backend=c10d \
        --rdzv-id="$job.$restarts" --rdzv-endpoint="${first:-localhost}:$port" \
        --no-python bash "$XTRIMO_HOME/slurm/rank.sh" "$python" -m xtrimo "$@"
}

# run_one COMMAND...: one process.
run_one() { run srun "${srun_options[@]}" --nodes=1 --ntasks=1 --input=none "${inside[@]}" "$python" -m xtrimo "$@"; }

# run COMMAND...: until it ends, and then what follows from how it ended.
run() {
    local status interrupted
    if [ -n "$DRY_RUN" ]; then
        printf '%q ' "$@"
        echo
        exit 0
    fi
    status=143                     # asked to stop before it began
    if [ -z "$stopping" ]; then
        # bash runs a trap between two commands of the foreground only, so the step is in the background; a trap ends
        # `wait` early
        "$@" &
        running=$!
        while :; do
            interrupted=$signals
            wait "$running"
            status=$?
            [ "$interrupted" != "$signals" ] || break
        done
    fi
    say "ended with status $status${stopping:+, asked to stop by $stopping}"
    if [ "$status" = 0 ] && [ ! -e "${stop_in:-/none}/STOPPED" ]; then
        rm -f ${stop_in:+"$stop_in/STOP"}
        exit 0
    fi
    # Preemption of clusters without preempt_send_user_signal signals the step alone: STOPPED tells of it.
    if [ -n "$stopping" ] || [ -e "${stop_in:-/none}/STOPPED" ]; then
        requeue 'it goes on later'
        exit 1
    fi
    check_nodes                    # a node that died took its ranks along, and the others with them
    echo "$job $status" >>"$records/failures.txt"
    if (($(grep -c "^$job " "$records/failures.txt") <= RETRIES)); then
        requeue 'failed with all nodes healthy'
    fi
    exit "$status"
}

fact() { scontrol --oneliner show job "$job" | sed -n "s/.*\b$1=\([^ ]*\).*/\1/p"; }

# requeue WHY [NODES]: back into the queue, without those nodes.
requeue() {
    local state
    if ((restarts >= MAX_RESTARTS)); then
        say "$1; no restart any more after $restarts"
        return
    fi
    state=$(fact JobState)         # scancel sends TERM as well, and a requeue would bring the job back
    if [ "$state" != RUNNING ]; then
        say "$1; the job is $state and stays so"
        return
    fi
    say "$1; back into the queue"
    trap '' TERM USR1              # SLURM ends this shell, which still has to say which nodes to leave out
    if ! scontrol requeue "$job"; then
        say "SLURM does not requeue this job; submit it again to go on"
        return
    fi
    # SLURM takes the list for jobs that wait, not for those that run.
    [ -z "${2:-}" ] || scontrol update JobId="$job" ExcNodeList="$2" || say "$2 could not be excluded"
    for _ in {1..60}; do           # an end that SLURM hears of before the requeue would be the end of the job
        [ "$(fact JobState)" = RUNNING ] || exit 0
        sleep 1
    done
}

# find_share sets `share` to K/N: of an array's task, all of its tasks being shares of one work.
find_share() {
    local first=${SLURM_ARRAY_TASK_MIN:-1} last=${SLURM_ARRAY_TASK_MAX:-1} count=${SLURM_ARRAY_TASK_COUNT:-1}
    # shellcheck disable=SC2034  # the scripts read it
    if [ -n "${SHARES:-}" ]; then
        share=${SLURM_ARRAY_TASK_ID:?SHARES is for arrays: sbatch --array=1-$SHARES}/$SHARES
    elif ((last - first + 1 != count)); then
        die "the array has $count tasks from $first to $last; to repeat some tasks of N, set SHARES=N"
    else
        share=$((${SLURM_ARRAY_TASK_ID:-1} - first + 1))/$count
    fi
}
