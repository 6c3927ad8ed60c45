"""A Hub on loopback, and its client in processes apart, since it reads its environment when it is imported."""

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


@dataclass(frozen=True)
class Done:
    """What a piece of code has said, and its exit status."""

    returncode: int
    stdout: str
    stderr: str


class Client:
    """The process that knows this Hub alone, and forks for every piece of code.

    Args:
        url: The Hub's address.
        home: Folder for the client's caches and what is said.
    """

    def __init__(self, url: str, home: Path) -> None:
        unset = ("HF_HUB_OFFLINE", "HF_TOKEN", "TRANSFORMERS_OFFLINE", "http_proxy", "https_proxy", "all_proxy")
        own = {name: value for name, value in os.environ.items() if name not in unset and name.lower() not in unset}
        own |= {"HF_ENDPOINT": url, "HF_HOME": str(home / "home"), "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "*"}
        own |= {"HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1", "OMP_NUM_THREADS": "1"}
        own |= {"TOKENIZERS_PARALLELISM": "false", "MPLBACKEND": "agg"}
        self._said = home
        line = [sys.executable, "-m", "tests.hub.client"]
        self._process = subprocess.Popen(
            line, cwd=ROOT, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert self._answer() == "ready"

    def run(self, code: str, arguments: list[str], environment: dict[str, str]) -> Done:
        job = {"code": code, "arguments": arguments, "environment": environment, "folder": str(self._said)}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        status = int(self._answer())
        return Done(status, *((self._said / name).read_text() for name in ("out", "err")))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the client has ended"
        return line.strip()


@dataclass
class Loopback:
    """The Hub of a test.

    Args:
        url: Its address.
        client: What talks to it.
    """

    url: str
    client: Client

    def run(self, code: str, *arguments: object, token: str | None = OWNER, **more: str) -> Done:
        """A piece of code in a process of its own, as user of ``token``."""
        own = more if token is None else {"HF_TOKEN": token, **more}
        return self.client.run(code, [str(one) for one in arguments], own)

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
        url = f"http://127.0.0.1:{port.read_text()}"
        client = Client(url, folder)
        try:
            yield Loopback(url, client)
        finally:
            client.close()
    finally:
        server.kill()
        server.wait()


def _opened(request: Any) -> Any:
    # without the proxy that the environment may name
    return urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=10)
