"""The JavaScript client, which was written from openapi.yaml and fixtures/ alone, works with this server."""

import os
import subprocess

from contract_tests.target.openapi import REPOSITORY


def test_a_whole_life(start_server):
    server = start_server()
    done = subprocess.run(
        ["node", REPOSITORY / "clients/javascript/test/play.mjs", server.base_url],
        env=os.environ | {"APP_SECRET_KEY": server.secret},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
