# What the scripts share: options, the cluster's settings, and how gcloud is called.
# shellcheck shell=bash disable=SC2034  # what is set here is used by the scripts

set -euo pipefail

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
    echo "error: bash 4.4 or newer is needed, this is ${BASH_VERSION}" >&2
    exit 1
fi

scripts=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly scripts repository=${scripts%/*} mount=/mnt/malt

# Exit status for what may succeed later: no capacity, a service that does not answer.
readonly try_later=75

cluster_file=$scripts/cluster.env
dry_run=no
assume_yes=no
arguments=()
overrides=()

common_options() {
    cat <<'TEXT'
  --cluster FILE  settings (default: cluster.env beside this script; see cluster.env.example)
  --dry-run       print the exact commands, run none
  --yes           do not ask
  --help          this text
TEXT
}

say() { printf '%s\n' "$*" >&2; }

fail() {
    say "error: $*"
    exit 1
}

# Options that all scripts have; what remains is left in `arguments`.
read_options() {
    while (($#)); do
        case $1 in
            --cluster)
                (($# > 1)) || fail "--cluster needs a file"
                cluster_file=$2
                shift
                ;;
            --cluster=*) cluster_file=${1#*=} ;;
            --dry-run) dry_run=yes ;;
            --yes) assume_yes=yes ;;
            --help | -h)
                usage
                exit 0
                ;;
            *) arguments+=("$1") ;;
        esac
        shift
    done
}

readonly known_settings=" PROJECT ZONE NAME ACCELERATOR_TYPE RUNTIME_VERSION PROVISIONING QUEUED \
VALID_UNTIL NETWORK SUBNETWORK SERVICE_ACCOUNT SHARED RUN CONFIG REVISION WHEEL EXTRAS \
BATCH_MACHINE_TYPE BATCH_GPU BATCH_CUDA BATCH_MAX_HOURS BATCH_RETRIES "

# Reads the settings as text, and refuses what would only fail once machines are paid for.
load_cluster() {
    local line number=0 key value
    [[ -f $cluster_file ]] \
        || fail "there is no $cluster_file: copy $scripts/cluster.env.example to it and fill it in"
    PROJECT='' ZONE='' NAME='' ACCELERATOR_TYPE='' RUNTIME_VERSION='' PROVISIONING=on-demand
    QUEUED=no VALID_UNTIL='' NETWORK='' SUBNETWORK='' SERVICE_ACCOUNT='' SHARED='' RUN='' CONFIG=''
    REVISION=HEAD WHEEL='' EXTRAS='' BATCH_MACHINE_TYPE='' BATCH_GPU='' BATCH_CUDA=cuda12
    BATCH_MAX_HOURS=24 BATCH_RETRIES=10
    while IFS= read -r line || [[ -n $line ]]; do
        number=$((number + 1))
        line=${line%$'\r'}
        [[ $line =~ ^[[:space:]]*(#.*)?$ ]] && continue
        [[ $line =~ ^[[:space:]]*([A-Z_]+)=(.*)$ ]] \
            || fail "$cluster_file, line $number is not KEY=value: $line"
        key=${BASH_REMATCH[1]} value=${BASH_REMATCH[2]}
        if [[ $value =~ ^\"(.*)\"[[:space:]]*$ || $value =~ ^\'(.*)\'[[:space:]]*$ ]]; then
            value=${BASH_REMATCH[1]}
        else
            value=${value%%[[:space:]]#*}
            value=${value%"${value##*[![:space:]]}"}
        fi
        if [[ $key == OVERRIDE ]]; then
            overrides+=("$value")
        elif [[ $known_settings == *" $key "* ]]; then
            printf -v "$key" '%s' "$value"
        else
            fail "$cluster_file, line $number: there is no setting $key (see cluster.env.example)"
        fi
    done <"$cluster_file"

    require PROJECT '^[a-z][-a-z0-9.:]*$' 'the ID of a Google Cloud project'
    require ZONE '^[a-z]+-[a-z]+[0-9]+-[a-z]$' 'a zone such as us-west4-a'
    require NAME '^[a-z]([-a-z0-9]{0,61}[a-z0-9])?$' 'lowercase letters, digits and hyphens'
    require PROVISIONING '^(on-demand|spot|reserved)$' 'on-demand, spot or reserved'
    require QUEUED '^(yes|no)$' 'yes or no'
    require RUN '^[a-z0-9]([-_a-z0-9]{0,61}[a-z0-9])?$' \
        'lowercase letters, digits, hyphens and underscores'
    [[ $SHARED =~ ^gs://[a-z0-9][-_.a-z0-9]*$ ]] \
        || require SHARED '^[A-Za-z0-9][-.A-Za-z0-9]*:/[-_.A-Za-z0-9][-_./A-Za-z0-9]*$' \
            'gs://BUCKET or SERVER:/EXPORT'
    require EXTRAS '^([a-z0-9]+(,[a-z0-9]+)*)?$' 'extras of the package, separated by commas'
    run_dir=$mount/runs/$RUN
    # What is copied to the machines, where it can be looked at.
    staging=${XDG_CACHE_HOME:-$HOME/.cache}/malt_jax/machines/$NAME
}

# require KEY PATTERN MEANING
require() {
    local value=${!1}
    [[ $value =~ $2 ]] && return
    fail "$cluster_file: $1 is ${value:-empty}; it must be $3"
}

# A command as it can be typed: words are quoted where they need it.
quoted() {
    local word text=''
    for word in "$@"; do
        [[ $word =~ ^[-A-Za-z0-9_./:=@%+,]+$ ]] || word=${word@Q}
        text+=" $word"
    done
    printf '%s\n' "${text# }"
}

# Runs a command that changes something, and says so; with --dry-run it is only printed.
run() {
    if [[ $dry_run == yes ]]; then
        quoted "$@"
    else
        say "+ $(quoted "$@")"
        "$@" </dev/null
    fi
}

confirm() {
    local answer=''
    [[ $assume_yes == yes || $dry_run == yes ]] && return
    [[ -t 0 ]] || fail "$1 Nobody is there to answer: use --yes."
    read -r -p "$1 [y/N] " answer
    [[ $answer == [yY] || $answer == [yY][eE][sS] ]] || fail "nothing was done"
}

need_gcloud() {
    [[ $dry_run == yes ]] || command -v gcloud >/dev/null \
        || fail "gcloud is not there: https://cloud.google.com/sdk/docs/install"
}

# What a script without options of its own begins with.
begin() {
    read_options "$@"
    ((${#arguments[@]} == 0)) || fail "no such option: ${arguments[0]} (see --help)"
    load_cluster
    need_gcloud
}

# describe KIND FIELD: a field of the TPU VM or of the queued resource; "NOT_FOUND" if there is none.
describe() {
    local output errors
    errors=$(mktemp)
    if output=$(gcloud compute tpus "$1" describe "$NAME" --project="$PROJECT" --zone="$ZONE" \
        --format="value($2)" --quiet 2>"$errors" </dev/null); then
        rm -f "$errors"
        printf '%s\n' "$output"
    elif grep -qi 'NOT_FOUND\|not found' "$errors"; then
        rm -f "$errors"
        echo NOT_FOUND
    else
        cat "$errors" >&2
        rm -f "$errors"
        return 1
    fi
}

# absent | waiting (for its machines, or for a change to end) | ready | gone (preempted or failed:
# only its name is left) | deleting | stopped | unknown (gcloud could not tell)
machine_state() {
    local state
    if [[ $QUEUED == yes ]]; then
        state=$(describe queued-resources state.state) || { echo unknown && return; }
        case $state in
            NOT_FOUND) echo absent && return ;;
            ACTIVE) ;;
            SUSPENDING | SUSPENDED | FAILED) echo gone && return ;;
            DELETING) echo deleting && return ;;
            *) echo waiting && return ;;
        esac
    fi
    state=$(describe tpu-vm state) || { echo unknown && return; }
    case $state in
        NOT_FOUND) if [[ $QUEUED == yes ]]; then echo gone; else echo absent; fi ;;
        READY) echo ready ;;
        CREATING | STARTING | RESTARTING | REIMAGING | REPAIRING) echo waiting ;;
        DELETING) echo deleting ;;
        PREEMPTED | TERMINATED) echo gone ;;
        STOPPED | STOPPING) echo stopped ;;
        *) echo unknown ;;
    esac
}

# on_workers WHICH WORD...: runs a command on "all" workers or on one of them.
on_workers() {
    worker_command "$@"
    run "${ssh[@]}"
}

# The same for a question: nothing is announced, and gcloud's messages are seen only if it fails.
ask_workers() {
    local errors
    errors=$(mktemp)
    worker_command "$@"
    if "${ssh[@]}" </dev/null 2>"$errors"; then
        rm -f "$errors"
    else
        cat "$errors" >&2
        rm -f "$errors"
        return 1
    fi
}

worker_command() {
    local workers=$1
    shift
    ssh=(gcloud compute tpus tpu-vm ssh "$NAME" --project="$PROJECT" --zone="$ZONE"
        --worker="$workers" --ssh-flag=-oConnectTimeout=20 --ssh-flag=-oServerAliveInterval=30
        --command="$(quoted "$@")" --quiet)
}

# copy_to_workers FILE...: into the folder malt in the home directory of every worker.
copy_to_workers() {
    run gcloud compute tpus tpu-vm scp "$@" "$NAME:malt/" --project="$PROJECT" --zone="$ZONE" \
        --worker=all --scp-flag=-oConnectTimeout=20 --quiet
}

# Sets `commit`, empty where a wheel is installed.
resolve_commit() {
    commit=
    if [[ -n $WHEEL ]]; then
        [[ -f $WHEEL && $WHEEL == *.whl ]] || fail "$cluster_file: WHEEL=$WHEEL is no wheel here"
    else
        commit=$(git -C "$repository" rev-parse --verify --quiet "$REVISION^{commit}") \
            || fail "$cluster_file: REVISION=$REVISION is no commit of $repository"
    fi
}

# What is installed on the machines: sets `package` (a file), `package_id` and `package_files`.
prepare_package() {
    resolve_commit
    if [[ -n $WHEEL ]]; then
        package=$WHEEL
        package_id=$(cksum <"$WHEEL" | tr ' ' -)
    else
        [[ -z $(git -C "$repository" status --porcelain --untracked-files=no) ]] \
            || say "note: changes that are not committed are left out"
        package=$staging/malt_jax-$commit.tar.gz
        package_id=$commit
        run mkdir -p "$staging"
        run git -C "$repository" archive --format=tar.gz --output="$package" "$commit"
    fi
    package_files=("$scripts/worker.sh" "$repository/constraints.txt" "$package")
}

need_config() {
    [[ -f $CONFIG ]] || fail "$cluster_file: CONFIG=$CONFIG is no file here"
}

# The run's configuration under a name of its own, to be copied: sets `run_config`.
prepare_config() {
    need_config
    run_config=$staging/$RUN.yaml
    run mkdir -p "$staging"
    run cp "$CONFIG" "$run_config"
}
