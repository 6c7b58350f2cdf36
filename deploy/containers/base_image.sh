#!/bin/sh
# Makes a base image from Debian's archive, for where no registry can be reached: what our Dockerfile needs of the
# official slim Python image. Needs root, mmdebstrap and the docker command; takes half a minute.
set -eu
name=${1:?usage: base_image.sh NAME:TAG}
tar=$(mktemp --suffix=.tar)
trap 'rm -f "$tar"' EXIT
mmdebstrap --quiet --variant=minbase --include=python3,python3-venv,ca-certificates bookworm "$tar"
docker import "$tar" "$name"
