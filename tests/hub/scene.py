"""A Hub on loopback, and the client in processes of their own, since it reads its environment when it is imported."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.hub.server import OWNER

ROOT = Path(__file__).resolve().parents[2]
IMPATIENT = "import time; time.sleep = lambda seconds: None\n"
"""The client waits for half a minute before it gives up on a server that fails."""
COMMAND = IMPATIENT + "import sys; from peft_prune.cli import main; sys.exit(main(sys.argv[1:]))"


@dataclass
class Loopback:
    """The Hub of a test.

    Args:
        url: Its address.
        home: Folder for the client's caches.
    """

    url: str
    home: Path

    def run(self, code: str, *arguments: object, token: str | None = OWNER, home: str = "home", **more: str) -> Any:
        """A Python process that knows this Hub alone, as user of ``token``."""
        unset = ("HF_HUB_OFFLINE", "HF_TOKEN", "TRANSFORMERS_OFFLINE", "http_proxy", "https_proxy", "all_proxy")
        own = {name: value for name, value in os.environ.items() if name not in unset and name.lower() not in unset}
        own |= {"HF_ENDPOINT": self.url, "HF_HOME": str(self.home / home), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        own |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1", **more}
        if token is not None:
            own["HF_TOKEN"] = token
        line = [sys.executable, "-c", code, *map(str, arguments)]
        return subprocess.run(line, cwd=ROOT, env=own, capture_output=True, text=True, timeout=120)

    def command(self, *arguments: object, **options: Any) -> Any:
        """``peft-prune`` with these words."""
        return self.run(COMMAND, *arguments, **options)

    def fail(self, where: str, status: int = 500, times: int = 1) -> None:
        """Let the next so many calls of a place fail; status 0 cuts the connection."""
        body = json.dumps({"where": where, "status": status, "times": times}).encode()
        with _opened(urllib.request.Request(self.url + "/_fail", body, method="POST")):
            pass

    def state(self) -> dict[str, Any]:
        with _opened(self.url + "/_state") as answer:
            found: dict[str, Any] = json.load(answer)
        return found

    def files(self, name: str, branch: str = "main") -> dict[str, bytes]:
        """The files of a branch by path; none where the repository is not there."""
        own = self.state()["repositories"].get(name, {"branches": {}})
        found = {path: base64.b64decode(text) for path, text in own["branches"].get(branch, {}).items()}
        return {path: content for path, content in found.items() if path != ".gitattributes"}


@contextmanager
def loopback(folder: Path) -> Iterator[Loopback]:
    """A Hub in a process of its own, for the time of the block."""
    port = folder / "port"
    server = subprocess.Popen([sys.executable, "-m", "tests.hub.server", str(port)], cwd=ROOT)
    try:
        for _ in range(300):
            if port.exists():
                break
            assert server.poll() is None, "the server has ended"
            time.sleep(0.1)
        yield Loopback(f"http://127.0.0.1:{port.read_text()}", folder)
    finally:
        server.kill()
        server.wait()


def _opened(request: Any) -> Any:
    # without the proxy that the environment may name
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10)
