#!/usr/bin/env bash
# Copies a run's directory and logs to this machine.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'TEXT'
fetch.sh [OPTIONS] [DIRECTORY] [--logs]

Copies the run's directory to DIRECTORY/runs/RUN (default: here): from a bucket without any
machine, from an NFS server through worker 0, which must be there. Files that are there already
are not copied from a bucket again.

  --logs          the logs of all workers too, to DIRECTORY/logs/RUN; where the machines are gone,
                  those that were saved when the run finished
TEXT
    common_options
}

read_options "$@"
logs=no
directory=
for argument in ${arguments[@]+"${arguments[@]}"}; do
    case $argument in
        --logs) logs=yes ;;
        -*) fail "no such option: $argument (see --help)" ;;
        *)
            [[ -z $directory ]] || fail "one directory, not two: $directory and $argument"
            directory=$argument
            ;;
    esac
done
load_cluster
need_gcloud
directory=${directory:-.}

# fetch runs|logs
fetch() {
    run mkdir -p "$directory/$1/$RUN"
    if [[ $SHARED == gs://* ]]; then
        run gcloud storage rsync --recursive "$SHARED/$1/$RUN" "$directory/$1/$RUN" \
            --project="$PROJECT" --quiet
    else
        run gcloud compute tpus tpu-vm scp --recurse "$NAME:$mount/$1/$RUN" "$directory/$1" \
            --project="$PROJECT" --zone="$ZONE" --worker=0 --scp-flag=-oConnectTimeout=20 --quiet
    fi
}

fetch runs
if [[ $logs == yes ]]; then
    on_workers all bash malt/worker.sh save-log "$mount/logs/$RUN" \
        || say "not all workers answer: the logs are those that were saved before"
    fetch logs
fi
