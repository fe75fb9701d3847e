# The reference page takes Node to build, and nothing to be served.
FROM node:24-slim AS reference
WORKDIR /reference
COPY reference/ ./
RUN npm ci && node build.mjs

FROM python:3.13-slim

# A user without rights. /data is where the volume is mounted; Fly gives the mount's root to its owner in the image.
RUN useradd --uid 10001 --no-create-home server \
    && install --directory --owner=server --mode=0700 /data

WORKDIR /app

# The base image comes without the standard library's bytecode, and the server's user could not write any:
# compiled here once, or else at every start.
COPY requirements.txt .
RUN pip install --no-cache-dir --require-hashes -r requirements.txt \
    && python -m compileall -q /usr/local/lib/python3.13

COPY backup_server.py openapi.yaml ./
COPY --from=reference /reference/dist reference/dist

# HOST: the proxy outside the container has to reach the port.
ENV DATABASE_PATH=/data/backup.db \
    HOST=0.0.0.0 \
    PORT=8080

EXPOSE 8080
# By number, which needs no look-up; it is `server`.
USER 10001
# Exec form: the server itself is the process that gets SIGTERM.
CMD ["python", "backup_server.py"]
