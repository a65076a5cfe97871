#!/usr/bin/env bash
# Starts training on all workers.
# shellcheck source-path=SCRIPTDIR source=lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

usage() {
    cat <<'TEXT'
train.sh [OPTIONS] [--stop]

Copies CONFIG to every worker and starts there, on all at once,
    python -m malt_jax.train --config CONFIG --run-dir /mnt/malt/runs/RUN OVERRIDE...
It goes on when this connection ends; watch.sh shows how far it is. A run that has begun goes on
after its last finished stage. Where it is training already, nothing is done.

  --stop          ends the training instead; train.sh starts it again
TEXT
    common_options
}

read_options "$@"
stop=no
for argument in ${arguments[@]+"${arguments[@]}"}; do
    [[ $argument == --stop ]] || fail "no such option: $argument (see --help)"
    stop=yes
done
load_cluster
need_gcloud

if [[ $stop == yes ]]; then
    on_workers all bash malt/worker.sh stop
    exit
fi
need_config
prepare_config
copy_to_workers "$run_config"
on_workers all bash malt/worker.sh start "$mount" "$run_dir" "malt/$RUN.yaml" \
    ${overrides[@]+"${overrides[@]}"}
