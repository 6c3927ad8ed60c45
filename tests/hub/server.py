"""A small Hub on loopback: the endpoints that huggingface_hub calls to publish and to fetch, in memory.

    python -m tests.hub.server PORT_FILE

It answers as the Hub does, checks what the Hub checks, and fails on request:
``POST /_fail {"where", "status", "times"}`` lets the next so many calls of a place fail; status 0 cuts the connection.
"""

from __future__ import annotations

import base64
import hashlib
import json
import socket
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

OWNER, READER = "hf_owner", "hf_reader"
"""Tokens: one may write everything below someone/, the other may only read."""
LARGE = (".safetensors", ".png")


@dataclass
class File:
    """One file at one commit."""

    content: bytes
    large: bool

    @property
    def blob(self) -> str:
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()


@dataclass
class Repository:
    """Branches as lists of commits; each commit is a whole tree."""

    private: bool
    trees: dict[str, dict[str, File]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    pulls: int = 0

    def commit(self, branch: str, tree: dict[str, File], message: str) -> str:
        text = json.dumps([branch, len(self.messages), message, {name: file.blob for name, file in tree.items()}])
        oid = hashlib.sha1(text.encode()).hexdigest()
        self.trees[oid], self.branches[branch] = tree, oid
        self.messages.append(message)
        return oid

    def oid(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.trees else None)


@dataclass
class Hub:
    """All that the server knows."""

    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    failures: dict[str, list[int]] = field(default_factory=dict)
    calls: list[str] = field(default_factory=list)


hub = Hub()


class Refused(Exception):
    """An answer that is no success."""

    def __init__(self, status: int, message: str, code: str = "") -> None:
        self.response = JSONResponse(
            {"error": message}, status, {"X-Error-Message": message, **({"X-Error-Code": code} if code else {})}
        )


class Cut(Exception):
    """No whole answer: the connection ends in the midst of one."""


def called(request: Request, where: str) -> None:
    """Note a call, and fail where that was asked for."""
    hub.calls.append(where)
    left = hub.failures.get(where, [])
    if left:
        status = left.pop(0)
        if status == 0:
            raise Cut
        raise Refused(status, f"{where} fails on request")


def require_token(request: Request, *, write: bool) -> None:
    token = request.headers.get("authorization", "").removeprefix("Bearer ")
    if token not in (OWNER, READER) and (token or write):
        raise Refused(401, "Invalid credentials in Authorization header")
    if write and token != OWNER:
        raise Refused(403, "You don't have the rights to write here")


def repository_of(request: Request, *, write: bool = False) -> tuple[str, Repository]:
    require_token(request, write=write)
    name = f"{request.path_params['user']}/{request.path_params['name']}"
    found = hub.repositories.get(name)
    if found is None or (found.private and not request.headers.get("authorization")):
        raise Refused(404 if request.headers.get("authorization") else 401, "Repository not found", "RepoNotFound")
    return name, found


def tree_of(repository: Repository, revision: str) -> tuple[str, dict[str, File]]:
    oid = repository.oid(revision)
    if oid is None:
        raise Refused(404, "Invalid rev id", "RevisionNotFound")
    return oid, repository.trees[oid]


async def create(request: Request) -> Response:
    called(request, "create")
    require_token(request, write=True)
    given = await request.json()
    name = f"{given.get('organization') or 'someone'}/{given['name']}"
    if not name.startswith("someone/"):
        raise Refused(403, "You don't have the rights to create a model under this namespace")
    if name in hub.repositories:
        return JSONResponse({"error": "You already created this model repo", "url": f"{request.base_url}{name}"}, 409)
    made = hub.repositories[name] = Repository(given.get("visibility") == "private")
    made.commit("main", {".gitattributes": File(b"*.safetensors filter=lfs\n", False)}, "initial commit")
    return JSONResponse({"url": f"{request.base_url}{name}", "name": name})


async def branch(request: Request) -> Response:
    called(request, "branch")
    _, own = repository_of(request, write=True)
    wanted = request.path_params["branch"]
    if wanted in own.branches:
        raise Refused(409, "Reference already exists")
    own.branches[wanted] = own.branches["main"]
    return JSONResponse({})


async def info(request: Request) -> Response:
    called(request, "info")
    name, own = repository_of(request)
    oid, tree = tree_of(own, request.path_params.get("revision", "main"))
    siblings = [{"rfilename": path} for path in tree]
    return JSONResponse({"_id": "1", "id": name, "sha": oid, "private": own.private, "siblings": siblings, "tags": []})


async def tree(request: Request) -> Response:
    called(request, "tree")
    _, own = repository_of(request)
    _, files = tree_of(own, request.path_params["revision"])
    entries: list[dict[str, Any]] = []
    for path, file in files.items():
        entry: dict[str, Any] = {"type": "file", "path": path, "size": len(file.content), "oid": file.blob}
        if file.large:
            entry["lfs"] = {"oid": file.sha256, "size": len(file.content), "pointerSize": 130}
        entries.append(entry)
    return JSONResponse(entries)


async def yaml(request: Request) -> Response:
    called(request, "yaml")
    return JSONResponse({"warnings": [], "errors": []})


async def preupload(request: Request) -> Response:
    called(request, "preupload")
    repository_of(request, write=request.query_params.get("create_pr") is None)
    _, own = repository_of(request)
    tree_of(own, request.path_params["revision"])
    files = [
        {
            "path": file["path"],
            "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
            "shouldIgnore": False,
        }
        for file in (await request.json())["files"]
    ]
    return JSONResponse({"files": files})


async def batch(request: Request) -> Response:
    called(request, "batch")
    repository_of(request)
    given = await request.json()
    assert given["operation"] == "upload" and given["hash_algo"] == "sha256" and "basic" in given["transfers"]
    answers: list[dict[str, Any]] = []
    for one in given["objects"]:
        answer: dict[str, Any] = {"oid": one["oid"], "size": one["size"]}
        if one["oid"] not in hub.objects:
            href = f"{request.base_url}_lfs/{one['oid']}"
            answer["actions"] = {"upload": {"href": href}, "verify": {"href": href + "/verify"}}
        answers.append(answer)
    return JSONResponse({"transfer": "basic", "objects": answers}, media_type="application/vnd.git-lfs+json")


async def put(request: Request) -> Response:
    content = await request.body()  # answered before it is read, a client may see the connection end instead
    called(request, "put")
    if hub.failures.get("damage"):
        hub.failures["damage"].pop()
        content = content[:-1] + b"?"
    hub.objects[request.path_params["oid"]] = content
    return Response()


async def verify(request: Request) -> Response:
    called(request, "verify")
    require_token(request, write=False)
    oid, given = request.path_params["oid"], await request.json()
    content = hub.objects.get(oid, b"")
    if hashlib.sha256(content).hexdigest() != given["oid"] or len(content) != given["size"]:
        hub.objects.pop(oid, None)
        raise Refused(422, "the checksum of the upload is another than announced")
    return JSONResponse({})


async def commit(request: Request) -> Response:
    called(request, "commit")
    pull = request.query_params.get("create_pr") == "1"
    name, own = repository_of(request, write=not pull)
    revision = request.path_params["revision"]
    _, before = tree_of(own, revision)
    lines = [json.loads(line) for line in (await request.body()).splitlines()]
    assert lines[0]["key"] == "header" and lines[0]["value"]["summary"]
    after = dict(before)
    for line in lines[1:]:
        value = line["value"]
        if line["key"] == "file":
            after[value["path"]] = File(base64.b64decode(value["content"]), False)
        elif line["key"] == "lfsFile":
            if value["oid"] not in hub.objects:
                raise Refused(400, f"LFS object of {value['path']} was never uploaded")
            after[value["path"]] = File(hub.objects[value["oid"]], True)
        else:
            assert line["key"] == "deletedFile"
            del after[value["path"]]
    own.pulls += pull
    place = f"refs/pr/{own.pulls}" if pull else revision
    oid = own.commit(place, after, lines[0]["value"]["summary"])
    url = f"{request.base_url}{name}"
    discussion = f"{url}/discussions/{own.pulls}" if pull else None
    return JSONResponse({"commitUrl": f"{url}/commit/{oid}", "commitOid": oid, "pullRequestUrl": discussion})


async def resolve(request: Request) -> Response:
    called(request, "resolve")
    _, own = repository_of(request)
    oid, files = tree_of(own, request.path_params["revision"])
    file = files.get(request.path_params["path"])
    if file is None:
        raise Refused(404, "Entry not found", "EntryNotFound")
    content = file.content
    if file.large and request.method == "GET" and hub.failures.get("damage_on_the_way"):
        hub.failures["damage_on_the_way"].pop()
        content = content[:-1] + bytes([content[-1] ^ 1])
    tag = file.sha256 if file.large else file.blob
    headers = {"ETag": f'"{tag}"', "X-Repo-Commit": oid}
    if file.large:
        headers |= {"X-Linked-Etag": f'"{tag}"', "X-Linked-Size": str(len(content))}
    return Response(content, headers=headers, media_type="application/octet-stream")


async def fail(request: Request) -> Response:
    given = await request.json()
    hub.failures[given["where"]] = [given.get("status", 1)] * given.get("times", 1)
    return JSONResponse({})


async def state(request: Request) -> Response:
    """What a test looks at: the files of every branch, base64, and the calls."""
    repositories = {
        name: {
            "private": own.private,
            "messages": own.messages,
            "branches": {
                branch: {path: base64.b64encode(file.content).decode() for path, file in own.trees[oid].items()}
                for branch, oid in own.branches.items()
            },
        }
        for name, own in hub.repositories.items()
    }
    return JSONResponse({"repositories": repositories, "calls": hub.calls})


async def refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, Refused)
    return error.response


async def cut(request: Request, error: Exception) -> Response:
    async def begun() -> AsyncIterator[bytes]:
        yield b"h"
        raise ConnectionAbortedError("cut on request")

    return StreamingResponse(begun(), headers={"content-length": "2"})


MODEL = "/api/models/{user}/{name}"
app = Starlette(
    routes=[
        Route("/_fail", fail, methods=["POST"]),
        Route("/_state", state),
        Route("/_lfs/{oid}", put, methods=["PUT"]),
        Route("/_lfs/{oid}/verify", verify, methods=["POST"]),
        Route("/api/repos/create", create, methods=["POST"]),
        Route("/api/validate-yaml", yaml, methods=["POST"]),
        Route(MODEL, info),
        Route(MODEL + "/revision/{revision:path}", info),
        Route(MODEL + "/tree/{revision}", tree),
        Route(MODEL + "/branch/{branch}", branch, methods=["POST"]),
        Route(MODEL + "/preupload/{revision}", preupload, methods=["POST"]),
        Route(MODEL + "/commit/{revision}", commit, methods=["POST"]),
        Route("/{user}/{name}.git/info/lfs/objects/batch", batch, methods=["POST"]),
        Route("/{user}/{name}/resolve/{revision}/{path:path}", resolve, methods=["GET", "HEAD"]),
    ],
    exception_handlers={Refused: refused, Cut: cut},
)


def main() -> None:
    """Listen on a free port, and write it into the file that is named."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    port = listening.getsockname()[1]
    config = uvicorn.Config(app, log_level="critical", lifespan="off")
    part = Path(sys.argv[1] + ".part")
    part.write_text(str(port))
    listening.listen()
    part.rename(sys.argv[1])
    uvicorn.Server(config).run(sockets=[listening])


if __name__ == "__main__":
    main()
