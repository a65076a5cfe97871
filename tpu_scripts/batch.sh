#!/usr/bin/env bash
# Runs on a GPU machine, as a job of Google Cloud's Batch.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'TEXT'
batch.sh submit|status|delete [OPTIONS]

  submit   copies the package and CONFIG to the bucket SHARED and submits the job NAME: a GPU
           machine is created, installs malt_jax, trains in runs/RUN of the bucket, and is
           deleted. Where it was preempted or has crashed, the job starts again and the run goes
           on, BATCH_RETRIES times.
  status   the state of the job
  delete   deletes the job and its machine, after asking; the results stay

TEXT
    common_options
}

read_options "$@"
((${#arguments[@]} == 1)) || fail "say submit, status or delete (see --help)"
action=${arguments[0]}
[[ $action =~ ^(submit|status|delete)$ ]] || fail "no such action: $action (see --help)"
load_cluster
need_gcloud
region=${ZONE%-*}

case $action in
    status)
        run gcloud batch jobs describe "$NAME" --project="$PROJECT" --location="$region" \
            "--format=yaml(status.state,status.statusEvents,status.taskGroups)" --quiet
        exit
        ;;
    delete)
        confirm "Delete the job $NAME in $region of $PROJECT, and its machine?"
        run gcloud batch jobs delete "$NAME" --project="$PROJECT" --location="$region" --quiet
        exit
        ;;
esac

[[ $SHARED == gs://* ]] || fail "$cluster_file: SHARED must be a bucket (gs://BUCKET) for Batch"
[[ $PROVISIONING != reserved ]] || fail "$cluster_file: PROVISIONING must be spot or on-demand for Batch"
command -v python3 >/dev/null || fail "python3 is needed to write the job"
prepare_package
prepare_config

model=STANDARD
[[ $PROVISIONING != spot ]] || model=SPOT
job=$(python3 "$scripts/batch_job.py" --bucket "${SHARED#gs://}" --mount "$mount" --run "$RUN" \
    --zone "$ZONE" --machine-type "$BATCH_MACHINE_TYPE" --gpu "$BATCH_GPU" --model "$model" \
    --max-hours "$BATCH_MAX_HOURS" --retries "$BATCH_RETRIES" --network "$NETWORK" \
    --subnetwork "$SUBNETWORK" --service-account "$SERVICE_ACCOUNT" --project "$PROJECT" \
    --package-id "$package_id" --package "${package##*/}" \
    --extras "$BATCH_CUDA${EXTRAS:+,$EXTRAS}" -- ${overrides[@]+"${overrides[@]}"})
[[ $dry_run == yes ]] || printf '%s\n' "$job" >"$staging/job.json"

run gcloud storage cp "${package_files[@]}" "$run_config" "$SHARED/jobs/$RUN/" \
    --project="$PROJECT" --quiet
run gcloud batch jobs submit "$NAME" --project="$PROJECT" --location="$region" \
    --config="$staging/job.json" --quiet
if [[ $dry_run == yes ]]; then
    say "# $staging/job.json:"
    printf '%s\n' "$job"
fi
