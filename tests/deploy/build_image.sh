#!/usr/bin/env bash
# Build the image for tests/deploy/test_image.py into a folder:
#   root         the image's root file system
#   config.json  its config: Env, Entrypoint, Cmd, User, Healthcheck, Labels
#   sizes        bytes compressed: of the base, then of what the base and we are together
#
# With docker where an engine answers. Else with buildah, which needs none, on a base that
# stands in for python:3.11-slim: the Python 3.11 of Debian bookworm, from Debian's packages.
set -euo pipefail
cd "$(dirname "$0")/../.."
into=$(realpath --canonicalize-missing "$1")
mkdir -p "$into"
version=$(sed -n 's/^version = "\(.*\)"/\1/p' pyproject.toml)
arguments=(--build-arg "VERSION=$version")
[ -z "${PIP_INDEX_URL:-}" ] || arguments+=(--build-arg "PIP_INDEX_URL=$PIP_INDEX_URL")
[ -z "${NPM_CONFIG_REGISTRY:-}" ] \
    || arguments+=(--build-arg "NPM_CONFIG_REGISTRY=$NPM_CONFIG_REGISTRY")

with_docker() {
    local base=python:3.11-slim image=orbit-metrics:test container
    docker build "${arguments[@]}" --build-arg BASE=$base --tag $image .
    docker image inspect --format '{{json .Config}}' $image > "$into/config.json"
    container=$(docker create $image)
    mkdir "$into/root"
    docker export "$container" | tar --extract --directory "$into/root"
    docker rm "$container" > /dev/null
    for image in $base $image; do docker save $image | gzip | wc --bytes; done > "$into/sizes"
}

with_buildah() {
    local base=localhost/python:3.11-slim image=localhost/orbit-metrics:test
    local certificates=/etc/ssl/certs/ca-certificates.crt
    make_base $base
    # This machine's certificates, because its way to the packages may have one of its own.
    # Without layers there is one of ours above the base, and nothing is kept between builds.
    b bud --isolation chroot --format docker --layers=false --pull-never \
        --volume "$certificates:$certificates:ro" \
        "${arguments[@]}" --build-arg BASE=$base --tag $image .
    b inspect --type image $image |
        python3 -c 'import json, sys; print(json.dumps(json.load(sys.stdin)["Docker"]["config"]))' \
            > "$into/config.json"
    ln --symbolic "$(b mount "$(b from --pull-never $image)")" "$into/root"
    for image in $base $image; do
        b push --quiet $image "oci-archive:$into/archive"
        wc --bytes < "$into/archive"
        rm "$into/archive"
    done > "$into/sizes"
}

make_base() {
    local mirror container root
    mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Codename: bookworm' \
        'Created-By: Packages' | head --lines=1)
    container=$(b from scratch)
    root=$(b mount "$container")
    debootstrap --variant=minbase \
        --include=ca-certificates,python3,python3-venv,python3-pip,python-is-python3 \
        bookworm "$root" ${mirror:+"$mirror"} > "$into/log" || { cat "$into/log"; return 1; }
    # What the one that it stands in for has not either: the bytecode, above all.
    rm --recursive --force "$root"/var/cache/apt/archives/*.deb "$root"/var/lib/apt/lists/*
    find "$root/usr/lib" -name __pycache__ -prune -exec rm --recursive {} +
    b commit --quiet --format docker "$container" "$1"
    b rm "$container"
}

# All that it keeps is in the folder. Plain folders (vfs) need nothing of the kernel.
b() { buildah --root "$into/store" --runroot "$into/run" --storage-driver vfs "$@"; }

if docker info > /dev/null 2>&1; then with_docker; else with_buildah; fi
