"""Edges for tests: Caddy, HAProxy and nginx, each in front of a server, with TLS, HTTP/2 outside and compression on.

The programs are those of this machine (Debian: `apt-get install caddy haproxy nginx`). The certificate is from an
authority that nobody else knows.
"""

import datetime
import ipaddress
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

START_SECONDS = 30
STOP_SECONDS = 30

# {port} is the edge's own port, {server} is the address of the server, {folder} is the edge's own. HAProxy may have
# {servers}, which take turns. Apart from names and places, this is what their documentation recommends for a server
# that takes bodies of a few megabytes.
CADDYFILE = """
{{
    admin off
    auto_https disable_redirects
}}
https://localhost:{port} {{
    bind 127.0.0.1
    tls {folder}/cert.pem {folder}/key.pem
    encode zstd gzip
    reverse_proxy {server}
}}
"""
HAPROXY = """
global
    maxconn 200
defaults
    mode http
    timeout connect 5s
    timeout client 330s
    timeout server 330s
    option forwardfor
    compression algo gzip
    compression type application/json application/problem+json application/yaml
frontend outside
    bind 127.0.0.1:{port} ssl crt {folder}/both.pem alpn h2,http/1.1
    default_backend inside
backend inside
    balance roundrobin
    {servers}
"""
NGINX = """
{user}
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/client;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    gzip on;
    gzip_proxied any;
    gzip_types application/json application/problem+json application/yaml;
    server {{
        listen 127.0.0.1:{port} ssl http2;
        ssl_certificate {folder}/cert.pem;
        ssl_certificate_key {folder}/key.pem;
        client_max_body_size 20m;
        location / {{
            proxy_pass http://{server};
            proxy_http_version 1.1;
            proxy_request_buffering off;
            proxy_set_header Host $http_host;
            proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
        }}
    }}
}}
"""
PROGRAMS = {
    "caddy": (CADDYFILE, "run --adapter caddyfile --config"),
    "haproxy": (HAPROXY, "-db -f"),
    "nginx": (NGINX, "-c"),
}


@dataclass(frozen=True)
class Edge:
    """A running edge: its address, and the file with the authority that vouches for it."""

    base_url: str
    ca_bundle: Path


@contextmanager
def running(name: str, server: str, folder: Path, *others: str) -> Iterator[Edge]:
    """Run an edge in front of a server (its base URL) in a folder of its own. Skip the test if the machine lacks it.

    HAProxy can have others, too, which take turns with it.
    """
    program = shutil.which(name) or shutil.which(name, path="/usr/sbin:/usr/local/sbin")
    if not program:
        pytest.skip(f"not run: needs {name} (Debian: apt-get install {name})")
    config, arguments = PROGRAMS[name]
    ca_bundle, port = certificates(folder), free_port()
    user = "user root;" if os.getuid() == 0 else ""
    file = folder / name
    addresses = [each.removeprefix("http://") for each in (server, *others)]
    servers = "\n    ".join(f"server server{number} {address}" for number, address in enumerate(addresses))
    file.write_text(config.format(port=port, server=addresses[0], servers=servers, folder=folder, user=user))
    environ = os.environ | {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    command = [program, *arguments.split(), str(file)]
    with open(folder / "log", "wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=environ, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(port):
            text = (folder / "log").read_text()
            assert process.poll() is None and time.monotonic() < deadline, f"{name} does not serve: {text}"
            time.sleep(0.05)
        yield Edge(f"https://localhost:{port}", ca_bundle)
        assert process.poll() is None, f"{name} has ended: {(folder / 'log').read_text()}"
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def free_port() -> int:
    """Return a port that the system has picked. Nobody has it now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def answers(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


# ---- Certificates ------------------------------------------------------------------------------------------


def certificates(folder: Path) -> Path:
    """Write a certificate for localhost (cert.pem, key.pem, both.pem). Return the file of its authority (ca.pem)."""
    now = datetime.datetime.now(datetime.UTC)
    authority_key, key = (ec.generate_private_key(ec.SECP256R1()) for _ in range(2))
    authority, subject = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]) for name in ("CA", "localhost"))

    def certificate(name: x509.Name, key: ec.EllipticCurvePrivateKey) -> x509.CertificateBuilder:
        return (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(authority)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(hours=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
            )
        )

    usage = {name: False for name in USAGES}
    signs = x509.KeyUsage(**usage | {"key_cert_sign": True, "crl_sign": True})
    names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
    root = (
        certificate(authority, authority_key)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(signs, critical=True)
        .sign(authority_key, hashes.SHA256())
    )
    leaf = (
        certificate(subject, key)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .sign(authority_key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "ca.pem").write_bytes(root.public_bytes(pem))
    for name, content in [
        ("cert.pem", leaf.public_bytes(pem)),
        ("key.pem", private),
        ("both.pem", leaf.public_bytes(pem) + private),
    ]:
        (folder / name).write_bytes(content)
    return folder / "ca.pem"


USAGES = (
    *("digital_signature", "content_commitment", "key_encipherment", "data_encipherment", "key_agreement"),
    *("key_cert_sign", "crl_sign", "encipher_only", "decipher_only"),
)
