# Build the reference page. It needs Node only here: the server sends the finished files.
FROM node:24-slim AS reference
WORKDIR /reference
COPY --chmod=755 reference/ ./
RUN npm ci && node build.mjs

FROM python:3.13-slim

# The server runs as a user without rights. Fly mounts the volume at /data and gives its root directory to the user
# who owns /data in the image.
RUN useradd --uid 10001 --no-create-home server \
    && install --directory --owner=server --mode=0700 /data

WORKDIR /app

# The base image has no bytecode of the standard library, and the server's user cannot write any. Compile it here,
# or Python compiles it again at each start.
# --chmod: a checkout that only its owner can read makes an image that the server's user can read.
COPY --chmod=755 requirements/server.txt requirements/
RUN pip install --no-cache-dir --require-hashes -r requirements/server.txt \
    && python -m compileall -q /usr/local/lib/python3.13

COPY --chmod=755 backup_server.py maintenance.py openapi.yaml ./
COPY --chmod=755 server/ server/
RUN python -m compileall -q server
COPY --chmod=755 --from=reference /reference/dist reference/dist

# NEW_STORE: a missing volume must not look like a store without accounts. The first deployment sets it to 1.
# HOST: the proxy reaches the port from outside the container.
ENV DATABASE_PATH=/data/backup.db \
    NEW_STORE=0 \
    HOST=0.0.0.0 \
    PORT=8080

EXPOSE 8080
# What `docker stop` sends. Without it, too, the server would stop gracefully.
STOPSIGNAL SIGTERM
# The user `server`, by number: a number needs no look-up.
USER 10001
# The exec form starts no shell, so the server itself gets SIGTERM.
CMD ["python", "backup_server.py"]
