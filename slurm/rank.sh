#!/bin/bash
# rank.sh COMMAND...: what torchrun starts in place of a rank. Its words are added to LOGS/rank-00000.log, whatever
# restart this is; those of rank 0 are in the job's log as well.
log=$(printf '%s/rank-%05d.log' "$LOGS" "$RANK")
if [ "$RANK" = 0 ]; then
    exec "$@" > >(trap '' TERM USR1; exec tee -a "$log") 2>&1
fi
exec "$@" >>"$log" 2>&1
