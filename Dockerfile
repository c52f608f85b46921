# The service alone: `docker build -t orbit-metrics .`, from a checkout, with nothing else at hand.
ARG BASE=python:3.11-slim

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
# Where packages come from a mirror: --build-arg PIP_INDEX_URL=... and NPM_CONFIG_REGISTRY=...
ARG PIP_INDEX_URL
ARG NPM_CONFIG_REGISTRY
# Node brings authorities of its own, and would not know one that the base was given.
ENV NODE_EXTRA_CA_CERTS=/etc/ssl/certs/ca-certificates.crt

# Everything that requirements.lock names, checked by hash, becomes the only index of what
# follows. It is more than the service needs; what it needs is chosen from it below.
COPY requirements.lock /src/
RUN python -m pip wheel --quiet --no-deps --require-hashes \
        --requirement /src/requirements.lock --wheel-dir /wheels

# The extra's own dependencies, and hatchling to build with, come from those wheels or not at
# all: a lock that lags behind pyproject.toml ends the build here. Bytecode is made now, because
# nobody can write it later, and is taken unseen: times of files change when images are copied.
# The web page is built on the way (hatch_build.py), by a Node of those wheels, from what npm has
# for the hashes in package-lock.json.
COPY pyproject.toml README.md hatch_build.py /src/
COPY rpc_schema /src/rpc_schema
COPY worker /src/worker
COPY service /src/service
RUN python -m venv --without-pip /opt/orbit-metrics \
    && python -m pip --python /opt/orbit-metrics/bin/python install --quiet --no-compile \
        --no-index --find-links /wheels "/src[service]" \
    && python -m compileall -q -j 0 --invalidation-mode unchecked-hash /opt/orbit-metrics/lib

FROM ${BASE}
# The base brings its own library without bytecode, and a health check would compile it each time.
RUN python -m compileall -q -j 0 --invalidation-mode unchecked-hash \
        -x '/(test|tests|idlelib|lib2to3|tkinter|turtledemo|site-packages)/' \
        "$(python -c 'import sysconfig; print(sysconfig.get_path("stdlib"))')"

# By number, so that a cluster can see that it is not root. Both folders are writable for the
# group 0 as well, so that any other user of that group can take this one's place (OpenShift).
# A named volume takes owner and mode from here. Workers reach the socket through
# /run/orbit-metrics, which is why others may enter it: the uid of each connection is checked.
RUN groupadd --gid 10001 orbit \
    && useradd --uid 10001 --gid 10001 --no-log-init --no-create-home \
        --home-dir /var/lib/orbit-metrics --shell /usr/sbin/nologin orbit \
    && install --directory --owner 10001 --group 0 --mode 0775 /run/orbit-metrics \
    && install --directory --owner 10001 --group 0 --mode 0770 /var/lib/orbit-metrics
COPY --from=build /opt/orbit-metrics /opt/orbit-metrics
# The state's folder is said, so that where it cannot be written the trouble names it, and not
# another that would be tried.
ENV PATH=/opt/orbit-metrics/bin:$PATH \
    ORBIT_STATE=/var/lib/orbit-metrics \
    PYTHONDONTWRITEBYTECODE=1
USER 10001:10001

# No EXPOSE: HTTP listens on loopback until ORBIT_HTTP and a token say otherwise.
HEALTHCHECK --interval=10s --timeout=5s --start-period=10s --retries=3 \
    CMD ["orbit-metrics", "healthcheck"]
ENTRYPOINT ["orbit-metrics"]
CMD ["serve"]

# Last, because it changes with each version, and nothing above need be made anew for it.
ARG VERSION=unknown
LABEL org.opencontainers.image.title="orbit-metrics" \
      org.opencontainers.image.description="The metrics sidecar for background workers" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}"
