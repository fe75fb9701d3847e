# Each tag names a version, and each digest names the image behind it, for all platforms. CONTRIBUTING.md says how to
# raise them.

# Build the reference page. It needs Node only here: the server sends the finished files.
FROM node:24.21.0-slim@sha256:d6aa754f16b3197301076f047b5def2f02ea1dbbc2ca920407d46d7ec7f87b20 AS reference
WORKDIR /reference
COPY --chmod=755 reference/ ./
RUN npm ci && node build.mjs

FROM python:3.13.16-slim-trixie@sha256:bf44cdfcb76cd3b41e879bc058fc37ec5872002ccfde7fcb765e218cde0cd79c AS base

# The base image has no bytecode of the standard library, and the server's user cannot write any. Compile all bytecode
# here, or Python compiles it again at each start. unchecked-hash: no file of the image changes, so Python need not look
# whether the source is newer.
RUN python -m compileall -q --invalidation-mode=unchecked-hash -x site-packages /usr/local/lib/python3.13

# The server runs as a user without rights. Fly mounts the volume at /data and gives its root directory to the user
# who owns /data in the image.
RUN useradd --uid 10001 --no-create-home server \
    && install --directory --owner=server --mode=0700 /data

# Build what the image gets. What only the build needs stays in this stage.
FROM base AS build
WORKDIR /build
# `--build-arg STORE=postgres` makes an image for DATABASE_URL, too (docs/scaling.md). No other image has the driver.
ARG STORE=server
COPY --chmod=755 requirements/server.txt requirements/postgres.txt ./
# --only-binary: no code of a package runs while it is installed.
RUN pip install --no-cache-dir --no-compile --only-binary=:all: --require-hashes --prefix=/build/local \
    -r server.txt -r "$STORE.txt"
# --chmod: a checkout that only its owner can read makes an image that the server's user can read.
COPY --chmod=755 backup_server.py maintenance.py openapi.yaml app/
COPY --chmod=755 server/ app/server/
RUN test "$STORE" = postgres || rm -r app/server/postgres
RUN python -m compileall -q --invalidation-mode=unchecked-hash local app/server
COPY --from=reference /reference/dist app/reference/dist

FROM base
WORKDIR /app
COPY --from=build /build/local/lib/ /usr/local/lib/
COPY --from=build /build/app/ ./

# NEW_STORE: a missing volume must not look like a store without accounts. The first deployment sets it to 1.
# HOST: the proxy reaches the port from outside the container.
ENV DATABASE_PATH=/data/backup.db \
    NEW_STORE=0 \
    HOST=0.0.0.0 \
    PORT=8080

# VERSION is that of openapi.yaml. `--build-arg REVISION=$(git rev-parse HEAD)` tells which commit the image is made of,
# in a label, and to the server.
ARG VERSION=2.0.0
ARG REVISION
ENV REVISION=$REVISION
LABEL org.opencontainers.image.title="DailyReps backup server" \
      org.opencontainers.image.description="A zero-knowledge backup of one workout log per user." \
      org.opencontainers.image.licenses="MIT" \
      org.opencontainers.image.version="$VERSION" \
      org.opencontainers.image.revision="$REVISION"

EXPOSE 8080
# What `docker stop` sends. Without it, too, the server would stop gracefully.
STOPSIGNAL SIGTERM
# The user `server`, by number: a number needs no look-up.
USER 10001
# The exec form starts no shell, so the server itself gets SIGTERM.
CMD ["python", "backup_server.py"]
