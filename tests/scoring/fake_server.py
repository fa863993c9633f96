"""A server that misbehaves on demand; it has vLLM's habits that matter to a launcher: a worker.

Called as `fake_server.py PORT NAME FOLDER BEHAVIOUR…`. It writes its own process id and its
worker's, which takes no notice of SIGTERM, into FOLDER, and what it was given of the environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

WORKER = """
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("deaf", flush=True)
time.sleep(600)
"""


class Handler(BaseHTTPRequestHandler):
    """Lists one model, or answers with a status only."""

    name, status = "", 200

    def do_GET(self) -> None:
        body = json.dumps({"data": [{"id": self.name}]}).encode()
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main(port: int, name: str, folder: Path, behaviour: list[str]) -> None:
    print("variables:", json.dumps(dict(os.environ)), flush=True)
    if "worker" in behaviour or "apart" in behaviour:
        apart = "apart" in behaviour
        command = [sys.executable, "-c", WORKER]
        worker = subprocess.Popen(command, start_new_session=apart, stdout=subprocess.PIPE)
        worker.stdout.readline()
        (folder / "worker").write_text(str(worker.pid))
    (folder / "server").write_text(str(os.getpid()))
    if "dies" in behaviour:
        print("RuntimeError: the root cause")
        print("\n".join(f"line {number}" for number in range(40)), flush=True)
        print(behaviour[-1], file=sys.stderr)
        sys.exit(3)
    if "hangs" in behaviour:
        time.sleep(600)
    Handler.name = "another" if "renamed" in behaviour else name
    Handler.status = 401 if "locked" in behaviour else 200
    HTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]), sys.argv[4:])
