#!/usr/bin/env bash
# The part that runs on the machines. The other scripts copy it there and call it; it keeps
# everything in the folder malt of the home directory.
#
#   mount SHARED DIRECTORY     mounts gs://BUCKET or SERVER:/EXPORT
#   install ID FILE EXTRAS     installs malt_jax from a source archive or a wheel
#   start MOUNT RUN_DIR CONFIG [OVERRIDE...]    trains, detached from this connection
#   train RUN_DIR CONFIG [OVERRIDE...]          trains, in the foreground
#   status RUN_DIR             one line: malt-worker HOST STATE [EXIT STATUS] | last line of the log
#   log LINES                  the end of the log
#   save-log DIRECTORY         copies the log there, under a name of this machine
#   stop                       ends the training
set -euo pipefail

readonly home=$HOME/malt uv_version=0.9.26
mkdir -p "$home"

fail() {
    printf 'error on %s: %s\n' "$(hostname)" "$*" >&2
    exit 1
}

# A training process holds this lock for as long as it lives, however it ends.
training() {
    ! flock --nonblock "$home/lock" true
}

apt_install() {
    sudo apt-get -o DPkg::Lock::Timeout=300 update -qq
    sudo DEBIAN_FRONTEND=noninteractive apt-get -o DPkg::Lock::Timeout=300 install -y -qq "$@"
}

install_gcsfuse() {
    local apt=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
    command -v gcsfuse >/dev/null && return
    curl -fsSL "$apt/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $apt gcsfuse-$(lsb_release -cs) main" \
        | sudo tee /etc/apt/sources.list.d/gcsfuse.list >/dev/null
    apt_install gcsfuse
}

mount_shared() {
    local shared=$1 directory=$2 source=${1#gs://} there
    if mountpoint -q "$directory"; then
        there=$(findmnt --noheadings --output SOURCE "$directory")
        [[ $there == "$source" ]] || fail "$directory holds $there, not $source"
        echo "$source is mounted already"
        return
    fi
    sudo mkdir -p "$directory"
    if [[ $shared == gs://* ]]; then
        install_gcsfuse
        sudo chown "$(id -u):$(id -g)" "$directory"
        # Without its caches, a host sees at once what another one has written.
        gcsfuse --metadata-cache-ttl-secs=0 "$source" "$directory"
    else
        command -v mount.nfs >/dev/null || apt_install nfs-common
        # A server may keep the lock of a preempted machine for ever, so none is asked for one.
        sudo mount -t nfs -o hard,nolock "$shared" "$directory"
    fi
}

# Systems of TPU machines come with Python 3.10, which is too old; uv brings its own.
find_uv() {
    if command -v uv >/dev/null; then
        uv=uv
        return
    fi
    uv=$home/bin/uv
    [[ -x $uv ]] || curl -LsSf "https://astral.sh/uv/$uv_version/install.sh" \
        | UV_UNMANAGED_INSTALL=$home/bin sh
}

install_package() {
    local id=$1 file=$home/${2##*/} extras=$3 source constraints=$home/constraints.txt uv
    if [[ -f $home/installed && $(<"$home/installed") == "$id $extras" ]]; then
        echo "$id is installed already"
        return
    fi
    training && fail "a run is training: stop it before another version is installed"
    rm -rf "$home/installed" "$home/venv" "$home/source"
    source=$file
    if [[ $file == *.tar.gz ]]; then
        source=$home/source
        constraints=$source/constraints.txt
        mkdir "$source"
        tar -xzf "$file" -C "$source"
    fi
    find_uv
    "$uv" venv --python 3.12 "$home/venv"
    "$uv" pip install --python "$home/venv/bin/python" --constraint "$constraints" \
        "malt_jax[$extras] @ file://$source"
    "$home/venv/bin/python" -c 'import malt_jax'
    echo "$id $extras" >"$home/installed"
}

train() {
    local run_dir=$1 config=$2
    shift 2
    "$home/venv/bin/python" -m malt_jax.train --config "$config" --run-dir "$run_dir" "$@"
}

# What runs detached: holds the lock, and notes the exit status when training ends by itself.
supervise() {
    local status=0
    exec 9>"$home/lock"
    flock --nonblock 9 || fail "a run is training already"
    echo "$$" >"$home/pid"
    echo "== $(date --utc +%FT%TZ) training in $1"
    train "$@" || status=$?
    echo "$status" >"$home/exit.new"
    mv "$home/exit.new" "$home/exit"
}

start() {
    local directory=$1 run_dir=$2
    shift
    [[ -f $home/installed ]] || fail "malt_jax is not installed: run setup.sh"
    mountpoint -q "$directory" || fail "$directory is not mounted: run setup.sh"
    if training; then
        [[ $(<"$home/run_dir") == "$run_dir" ]] || fail "another run is training: $(<"$home/run_dir")"
        echo "training already"
        return
    fi
    rm -f "$home/exit" "$home/pid"
    echo "$run_dir" >"$home/run_dir"
    # Machines that are created again have the same name.
    [[ -f $home/log_name ]] || echo "$(hostname)-$(date --utc +%Y%m%dT%H%M%S).log" >"$home/log_name"
    setsid nohup bash "${BASH_SOURCE[0]}" supervise "$@" </dev/null >>"$home/train.log" 2>&1 &
    for _ in {1..50}; do
        [[ -f $home/pid ]] && echo "training started" && return
        sleep 0.1
    done
    fail "training did not start: $(tail -n 3 "$home/train.log")"
}

status() {
    local run_dir='' state last=''
    [[ -f $home/run_dir ]] && run_dir=$(<"$home/run_dir")
    if [[ ! -f $home/installed ]]; then
        state=absent
    elif training; then
        if [[ $run_dir == "$1" ]]; then state=running; else state="busy"; fi
    elif [[ $run_dir != "$1" ]]; then
        state=idle
    elif [[ ! -f $home/exit ]]; then
        state=interrupted
    elif [[ $(<"$home/exit") == 0 ]]; then
        state=finished
    else
        state="failed $(<"$home/exit")"
    fi
    [[ -f $home/train.log ]] && last=$(tail -c 2000 "$home/train.log" | tail -n 1 | tr -d '\r')
    echo "malt-worker $(hostname) $state | ${last:0:200}"
}

save_log() {
    [[ -f $home/train.log ]] || fail "nothing was trained here"
    mkdir -p "$1"
    cp "$home/train.log" "$1/$(<"$home/log_name")"
}

stop() {
    training || { echo "nothing is training" && return; }
    # The process leads a group of its own, so training and its children end together.
    kill -TERM -- "-$(<"$home/pid")"
    for _ in {1..300}; do
        training || { echo "stopped" && return; }
        sleep 0.1
    done
    kill -KILL -- "-$(<"$home/pid")"
    echo "killed"
}

command=${1:-}
(($# == 0)) || shift
case $command in
    mount) mount_shared "$@" ;;
    install) install_package "$@" ;;
    start) start "$@" ;;
    train) train "$@" ;;
    supervise) supervise "$@" ;;
    status) status "$@" ;;
    log) tail -n "$1" "$home/train.log" ;;
    save-log) save_log "$@" ;;
    stop) stop ;;
    *) fail "no such command: $command" ;;
esac
