#!/usr/bin/env bash
# Creates the TPU VM, or asks the queue for it.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'TEXT'
create.sh [OPTIONS]

Creates the TPU VM of the settings: at once, or with QUEUED=yes as a queued resource, which gets
its machines when there are some. If it exists already, nothing is done. From when the machines
are there until delete.sh they are paid for.

TEXT
    common_options
    cat <<'TEXT'

Exit status: 0 created or there already, 75 no capacity now (try again later), 1 anything else.
TEXT
}

begin "$@"
require ACCELERATOR_TYPE '^[a-z0-9]+-[0-9]+$' 'a type such as v5litepod-16'
require RUNTIME_VERSION '^[-a-z0-9.]+$' 'a runtime such as v2-alpha-tpuv5-lite'
require VALID_UNTIL '^([0-9]+[smhd])?$' 'a duration such as 12h'

if [[ $dry_run == no ]]; then
    while state=$(machine_state) && [[ $state == deleting ]]; do
        say "$NAME is being deleted"
        sleep 10
    done
    case $state in
        absent) ;;
        ready | waiting)
            say "$NAME exists already and is $state"
            exit 0
            ;;
        gone) fail "$NAME was preempted or has failed: watch.sh creates it again, delete.sh removes it" ;;
        stopped) fail "$NAME is stopped: start it, or remove it with delete.sh" ;;
        *)
            say "error: gcloud cannot tell whether $NAME exists"
            exit "$try_later"
            ;;
    esac
fi

# The scope lets the machines use the bucket; the label finds their cost in the bill.
flags=(--project="$PROJECT" --zone="$ZONE" --accelerator-type="$ACCELERATOR_TYPE"
    --scopes=https://www.googleapis.com/auth/cloud-platform --labels="malt-run=$RUN")
case $PROVISIONING in
    spot) flags+=(--spot) ;;
    reserved) flags+=(--reserved) ;;
esac
[[ -z $NETWORK ]] || flags+=(--network="$NETWORK")
[[ -z $SUBNETWORK ]] || flags+=(--subnetwork="$SUBNETWORK")
[[ -z $SERVICE_ACCOUNT ]] || flags+=(--service-account="$SERVICE_ACCOUNT")
if [[ $QUEUED == yes ]]; then
    [[ -z $VALID_UNTIL ]] || flags+=(--valid-until-duration="$VALID_UNTIL")
    create=(gcloud compute tpus queued-resources create "$NAME" --node-id="$NAME"
        --runtime-version="$RUNTIME_VERSION" "${flags[@]}" --quiet)
else
    create=(gcloud compute tpus tpu-vm create "$NAME" --version="$RUNTIME_VERSION" "${flags[@]}"
        --quiet)
fi

errors=$(mktemp)
trap 'rm -f "$errors"' EXIT
if { run "${create[@]}" 2>&1 >&3 | tee "$errors" >&2; } 3>&1; then
    [[ $dry_run == yes || $QUEUED == no ]] || say "$NAME is in the queue: watch.sh waits for it"
    exit 0
fi
if grep -qi quota "$errors"; then
    fail "the project's quota does not allow $ACCELERATOR_TYPE ($PROVISIONING) in $ZONE: ask for more" \
        "at https://console.cloud.google.com/iam-admin/quotas?project=$PROJECT, or take another zone"
elif grep -Eqi 'PERMISSION_DENIED|UNAUTHENTICATED|INVALID_ARGUMENT|auth login|Invalid value' \
    "$errors"; then
    fail "$NAME could not be created; trying again will not help"
elif grep -Eqi 'capacity|RESOURCE_EXHAUSTED|stockout' "$errors"; then
    say "error: no capacity for $ACCELERATOR_TYPE in $ZONE now: try later, another zone, or QUEUED=yes"
    exit "$try_later"
fi
say "error: $NAME could not be created"
exit "$try_later"
