#!/usr/bin/env bash
# A run on a Cloud TPU pod: create the slice, install, run on all workers, resume, delete.
#
#   launch/tpu_pod.sh create
#   launch/tpu_pod.sh install
#   launch/tpu_pod.sh run --config configs/mnist_gaussian.py --workdir '~/shared/runs/e1' \
#       --config.train.batch_size=96 --config.data.source=idx:DIR
#   launch/tpu_pod.sh status
#   launch/tpu_pod.sh delete
#
# `run` on a preempted slice deletes and creates it again, installs, and goes on from the last
# checkpoint. With DRY_RUN=1 the commands are printed and not run.
#
# Settings, from the environment:
#   TPU_NAME (aae-jax)  ZONE (us-west4-a)  TYPE (v5litepod-16)  VERSION (v2-alpha-tpuv5-lite)
#   SPOT (1: a preemptible slice)  BUCKET (a storage bucket; `install` mounts it as ~/shared)
#
# All workers write one checkpoint: the workdir must be a folder that they share.
set -euo pipefail
cd "$(dirname "$0")/.."

TPU_NAME=${TPU_NAME:-aae-jax}
ZONE=${ZONE:-us-west4-a}
TYPE=${TYPE:-v5litepod-16}
VERSION=${VERSION:-v2-alpha-tpuv5-lite}
SPOT=${SPOT:-1}
BUCKET=${BUCKET:-}

gcloud_tpu() { # gcloud_tpu VERB [FLAGS...]
  local verb=$1
  shift
  local command=(gcloud compute tpus tpu-vm "$verb" "$TPU_NAME" "--zone=$ZONE" "$@")
  if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "${command[@]}"
    echo
  else
    "${command[@]}"
  fi
}

on_all_workers() { # on_all_workers COMMAND
  gcloud_tpu ssh --worker=all "--command=$1"
}

create() {
  local spot=()
  if [[ $SPOT == 1 ]]; then spot=(--spot); fi
  gcloud_tpu create "--accelerator-type=$TYPE" "--version=$VERSION" "${spot[@]}"
}

install() {
  local archive
  archive=$(mktemp --suffix=.tar.gz)
  git archive --format=tar.gz --output="$archive" HEAD
  # The command copies to a worker's home folder; `tpu-vm scp` names the worker by its own flag.
  local copy=(gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:aae_jax.tar.gz" "--zone=$ZONE" --worker=all)
  if [[ -n ${DRY_RUN:-} ]]; then
    printf '%q ' "${copy[@]}"
    echo
  else
    "${copy[@]}"
  fi
  rm -f "$archive"
  on_all_workers "mkdir -p aae_jax && tar -xzf aae_jax.tar.gz -C aae_jax && python3 -m venv aae_jax/.venv && aae_jax/.venv/bin/pip install -q -e 'aae_jax[tpu]'"
  if [[ -n $BUCKET ]]; then
    on_all_workers "mkdir -p shared && (mountpoint -q shared || gcsfuse --implicit-dirs $BUCKET shared)"
  fi
}

state() {
  gcloud_tpu describe "--format=value(state)"
}

run() {
  local flags=""
  local flag
  for flag in "$@"; do
    # A leading ~ is the worker's home folder, not this machine's.
    # shellcheck disable=SC2088
    if [[ $flag == "~/"* ]]; then flags+=" ~/$(printf '%q' "${flag#\~/}")"; else flags+=" $(printf '%q' "$flag")"; fi
  done
  if [[ -z ${DRY_RUN:-} && $(state) == PREEMPTED ]]; then
    echo "$TPU_NAME was preempted: creating it again" >&2
    delete
    create
    install
  fi
  on_all_workers "cd aae_jax && .venv/bin/python -u -m aae_jax.main --distributed=yes$flags"
}

delete() {
  gcloud_tpu delete --quiet
}

case ${1:-} in
  create | install | delete) "$1" ;;
  status) state ;;
  run)
    shift
    run "$@"
    ;;
  *)
    sed -n '2,17s/^# \{0,1\}//p' "$0"
    exit 2
    ;;
esac
