#!/usr/bin/env bash
# Deletes the machines, so that they cost no more.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'TEXT'
delete.sh [OPTIONS]

Deletes the TPU VM, or with QUEUED=yes the queued resource and its TPU VM, after asking. Runs that
train there end. What is in SHARED stays. Nothing is done if there is nothing.

TEXT
    common_options
}

begin "$@"

if [[ $dry_run == no ]]; then
    if [[ $QUEUED == yes ]]; then
        there=$(describe queued-resources state.state)
    else
        there=$(describe tpu-vm state)
    fi
    if [[ $there == NOT_FOUND ]]; then
        say "there is no $NAME in $ZONE"
        exit 0
    fi
    confirm "Delete $NAME ($there) in $ZONE of $PROJECT, and all that is on its disks?"
fi
if [[ $QUEUED == yes ]]; then
    run gcloud compute tpus queued-resources delete "$NAME" --project="$PROJECT" --zone="$ZONE" \
        --force --quiet
else
    run gcloud compute tpus tpu-vm delete "$NAME" --project="$PROJECT" --zone="$ZONE" --quiet
fi
[[ $dry_run == yes ]] || say "$NAME is deleted"
