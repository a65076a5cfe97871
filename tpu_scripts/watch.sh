#!/usr/bin/env bash
# Stays with a run until it has finished, and brings it back when its machines are lost.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'TEXT'
watch.sh [OPTIONS] [--interval SECONDS] [--delete]

Looks every minute how far the run is, until it has finished. Meanwhile
  - a machine that is still in the queue is waited for, a new one is set up, training is started;
  - a TPU that was preempted or has failed is deleted and created again, and the run goes on;
  - training that crashed is started again, at most three times; an error in the configuration
    ends the watch;
  - when gcloud or ssh fail, or there is no capacity, it tries again after 30 s, 1 min, 2 min and
    so on up to 15 min.
A TPU that somebody deleted is not created again. Ending the watch (Ctrl-C) leaves the run as it
is.

  --interval SECONDS  between two looks (default: 60)
  --delete        delete the machines when the run has finished, so that they cost no more
TEXT
    common_options
    cat <<'TEXT'

Exit status: 0 the run has finished, 1 it needs you. Except after 0 with --delete, machines that
are there go on being paid for.
TEXT
}

readonly most_crashes=3 most_failures=8 most_waits=10 shortest=30 longest=900

read_options "$@"
interval=60
delete=no
set -- ${arguments[@]+"${arguments[@]}"}
while (($#)); do
    case $1 in
        --interval)
            (($# > 1)) || fail "--interval needs a number of seconds"
            interval=$2
            shift
            ;;
        --interval=*) interval=${1#*=} ;;
        --delete) delete=yes ;;
        *) fail "no such option: $1 (see --help)" ;;
    esac
    shift
done
[[ $interval =~ ^[0-9]+$ ]] || fail "--interval is $interval; it must be a number of seconds"
load_cluster
need_gcloud
need_config

script() {
    local name=$1
    shift
    "$scripts/$name" --cluster "$cluster_file" "$@"
}

delete_machines() { script delete.sh --yes; }

# shellcheck disable=SC2016  # for the shell of a worker; a new one does not have the file yet
readonly ask_status='if [ -f malt/worker.sh ]; then bash malt/worker.sh status "$1"; '\
'else echo "malt-worker $(hostname) absent |"; fi'

if [[ $dry_run == yes ]]; then
    say "# on every look:"
    [[ $QUEUED == no ]] || quoted gcloud compute tpus queued-resources describe "$NAME" \
        --project="$PROJECT" --zone="$ZONE" "--format=value(state.state)" --quiet
    quoted gcloud compute tpus tpu-vm describe "$NAME" --project="$PROJECT" --zone="$ZONE" \
        "--format=value(state)" --quiet
    on_workers all bash -c "$ask_status" status "$run_dir"
    say "# after a preemption:"
    script delete.sh --dry-run
    script create.sh --dry-run
    say "# on new machines:"
    script setup.sh --dry-run
    script train.sh --dry-run
    say "# when the run has ended:"
    on_workers 0 bash malt/worker.sh log 20
    [[ $delete == no ]] || script delete.sh --dry-run
    exit 0
fi

wait_before_retry() {
    say "trying again in $pause s"
    sleep "$pause"
    pause=$((pause * 2 < longest ? pause * 2 : longest))
}

# Something that must work at some time did not; machines may be there and cost.
failed_once() {
    failures=$((failures + 1))
    if ((failures >= most_failures)); then
        fail "$1, $failures times in a row. $NAME is left as it is and may be paid for: look at it," \
            "then watch.sh again, or delete.sh"
    fi
    say "$1"
    wait_before_retry
}

crashed() {
    crashes=$((crashes + 1))
    show_log
    ((crashes <= most_crashes)) \
        || fail "training crashed $crashes times. $NAME is left as it is and is paid for"
    say "training crashed; it is started again ($crashes of $most_crashes)"
    wait_before_retry
    if script train.sh --stop; then
        # A machine that was rebooted has lost its mount.
        start_training || true
    else
        failed_once "training could not be stopped"
    fi
}

start_training() {
    if script setup.sh && script train.sh; then return; fi
    failed_once "training could not be started"
    return 1
}

show_log() { ask_workers 0 bash malt/worker.sh log 20 || true; }

recreate() {
    local reason=''
    [[ $QUEUED == no ]] || reason=$(describe queued-resources state.failedData.error.message) || true
    [[ ${reason,,} != *quota* ]] || fail "$NAME cannot be created: $reason"
    say "$NAME was preempted or has failed${reason:+ ($reason)}; it is created again"
    # Machines that are lost before they were of any use are not asked for at once again.
    [[ $useful == yes ]] || wait_before_retry
    useful=no
    recreating=yes
    delete_machines || { failed_once "what is left of $NAME could not be deleted" && return; }
    create_again
}

create_again() {
    local status=0
    script create.sh || status=$?
    case $status in
        0) recreating=no ;;
        "$try_later") wait_before_retry ;;
        *) fail "$NAME cannot be created again" ;;
    esac
}

look_at_training() {
    local lines states last
    lines=$(ask_workers all bash -c "$ask_status" status "$run_dir") \
        || { failed_once "not all workers answer" && return; }
    lines=$(grep '^malt-worker ' <<<"$lines") || { failed_once "no worker answers" && return; }
    states=$(sed 's/^malt-worker [^ ]* //; s/ |.*//' <<<"$lines" | sort -u)
    last=${lines%%$'\n'*}
    printf '%(%F %T)T %s: %s\n' -1 "${states//$'\n'/, }" "${last#*| }"

    if [[ $states == finished ]]; then
        show_log
        on_workers all bash malt/worker.sh save-log "$mount/logs/$RUN" \
            || say "the logs could not be copied to $SHARED"
        say "the run has finished: fetch.sh gets its results"
        if [[ $delete == yes ]]; then
            until delete_machines; do failed_once "$NAME could not be deleted"; done
        else
            say "$NAME is still paid for: delete.sh"
        fi
        exit 0
    elif grep -qx busy <<<"$states"; then
        fail "$NAME is training another run"
    elif grep -qx 'failed 2' <<<"$states"; then
        show_log
        fail "training refused its input, see above. Correct it, then train.sh and watch.sh again." \
            "$NAME is left as it is and is paid for"
    elif grep -qx 'absent\|idle' <<<"$states"; then
        if start_training; then sleep "$interval"; fi
    elif grep -qx running <<<"$states"; then
        # Where some have ended, the others should end soon after.
        waits=$((waits + 1))
        [[ $states == running ]] && waits=0
        succeeded
        if ((waits > most_waits)); then waits=0 && crashed; else sleep "$interval"; fi
    else
        crashed
    fi
}

succeeded() { failures=0 pause=$shortest useful=yes; }

# A machine that is created again gets what the first one had, whatever is edited or committed
# meanwhile.
mkdir -p "$staging"
resolve_commit
grep -v '^[[:space:]]*REVISION=' "$cluster_file" >"$staging/cluster.env"
echo "REVISION=${commit:-$REVISION}" >>"$staging/cluster.env"
cluster_file=$staging/cluster.env

failures=0
crashes=0
waits=0
pause=$shortest
useful=yes
seen=no
recreating=no
while true; do
    state=$(machine_state)
    case $state in
        ready)
            seen=yes
            look_at_training
            ;;
        waiting | deleting)
            seen=yes
            printf '%(%F %T)T %s\n' -1 "$NAME is not ready yet"
            sleep "$interval"
            ;;
        gone)
            seen=yes
            recreate
            ;;
        absent)
            if [[ $recreating == yes ]]; then
                create_again
            elif [[ $seen == yes ]]; then
                fail "$NAME was deleted by somebody; it is not created again"
            else
                fail "there is no $NAME in $ZONE: create.sh makes it"
            fi
            ;;
        stopped) fail "$NAME is stopped: start it, or remove it with delete.sh" ;;
        *) failed_once "gcloud cannot tell how $NAME is" ;;
    esac
done
