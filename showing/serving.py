"""A folder served to one's own machine: an explorer on a cluster, looked at through ssh."""

import functools
import http.server
import os
import socket
from pathlib import Path

from plumbing.errors import UserError

HERE = "127.0.0.1"  # nobody else's machine can reach it


class _Quiet(http.server.SimpleHTTPRequestHandler):
    """Says nothing of each request."""

    def log_message(self, format, *args):
        pass


def server(folder: Path, port: int) -> http.server.ThreadingHTTPServer:
    """A server of a folder's files that answers this machine alone; port 0 takes a free one. Error: it is taken."""
    handler = functools.partial(_Quiet, directory=str(folder))
    try:
        return http.server.ThreadingHTTPServer((HERE, port), handler)
    except OSError as error:
        raise UserError(
            f"port {port} cannot be served: {error.strerror}; name another with --serve"
        ) from error


def serve(folder: Path, port: int):
    """Serve an explorer until it is interrupted. Error: there is none in the folder."""
    if not (folder / "index.html").is_file():
        raise UserError(
            f"{folder}/ holds no explorer: write one with --run NAME --html, or name its place with --out"
        )
    with server(folder, port) as running:
        port, host = running.server_port, socket.gethostname()
        user = os.environ.get("USER", "you")
        print(f"serving {folder}/ at http://{HERE}:{port}/ until Ctrl-C; from your own machine:", flush=True)
        print(f"ssh -L {port}:{HERE}:{port} {user}@{host}", flush=True)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            print()
