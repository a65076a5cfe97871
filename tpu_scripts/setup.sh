#!/usr/bin/env bash
# Installs malt_jax on all workers and mounts the shared storage.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'TEXT'
setup.sh [OPTIONS]

Waits until the TPU VM is ready, then on every worker: mounts SHARED at /mnt/malt and installs
malt_jax with the extra tpu in a virtual environment, from the commit REVISION of this checkout
or from WHEEL. What is there already is left as it is, so it can be run again at any time.

TEXT
    common_options
}

begin "$@"

if [[ $SHARED == gs://* ]]; then
    # A finished stage is a renamed directory; only these buckets rename one as a whole.
    show_namespace=(gcloud storage buckets describe "$SHARED" --raw
        "--format=value(hierarchicalNamespace.enabled)" --quiet)
    if [[ $dry_run == yes ]]; then
        quoted "${show_namespace[@]}"
    else
        namespace=$("${show_namespace[@]}" </dev/null) || fail "$SHARED cannot be used: see above"
        [[ ${namespace,,} == true ]] \
            || fail "$SHARED has no hierarchical namespace; make a bucket with" \
                "gcloud storage buckets create gs://NAME --location=${ZONE%-*}" \
                "--uniform-bucket-level-access --enable-hierarchical-namespace"
    fi
fi

prepare_package

if [[ $dry_run == no ]]; then
    until state=$(machine_state) && [[ $state == ready ]]; do
        [[ $state == waiting ]] || fail "$NAME is not there to be set up (it is $state)"
        say "$NAME is not ready yet"
        sleep 30
    done
fi
on_workers all mkdir -p malt
copy_to_workers "${package_files[@]}"
on_workers all bash malt/worker.sh mount "$SHARED" "$mount"
on_workers all bash malt/worker.sh install "$package_id" "${package##*/}" "tpu${EXTRAS:+,$EXTRAS}"
