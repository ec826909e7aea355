"""A stand-in for the hub on this machine: repositories in memory that are read from and uploaded to."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote

Files = dict[str, bytes]
MAIN = "main"
LARGE = (".parquet", ".safetensors")
"""Ends of the names of files that the hub takes apart from their commit, by the protocol of Git LFS."""


class Hub(ThreadingHTTPServer):
    """Keeps repositories in memory, and the branches that a repository has beside ``main``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories: dict[tuple[str, str], Files] = {}
        """(kind, name) -> path -> content."""
        self.branches: dict[tuple[str, str, str], Files] = {}
        """(kind, name, branch) -> path -> content."""
        self.large: Files = {}
        """SHA-256 -> content of large files that were sent, committed or not."""

    def commit(self, name: str, revision: str) -> str:
        """Return the commit that a revision names."""
        branches = [branch for *_, branch in self.branches]
        return commit(name, next((of for of in branches if revision in (of, commit(name, of))), MAIN))

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, kind: str, name: str, revision: str) -> Files | None:
        """Return the files of a revision, a branch's name or its commit; None where there is none."""
        of_branches = {branch: files for (*of, branch), files in self.branches.items() if of == [kind, name]}
        if (kind, name) in self.repositories:
            of_branches[MAIN] = self.repositories[kind, name]
        return next((files for of, files in of_branches.items() if revision in (of, commit(name, of))), None)


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Serve an empty hub for as long as the block lasts."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def commit(name: str, branch: str) -> str:
    """Return the name of a branch's one commit."""
    return hashlib.sha1(f"{name} {branch}".encode(), usedforsecurity=False).hexdigest()


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        if "/resolve/" in self.path:
            self._send_file()
        elif "/tree/" in self.path:
            self._list()
        else:
            self._describe()

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if self.path == "/api/repos/create":
            self._create(json.loads(body))
        elif self.path == "/api/validate-yaml":
            self._answer({"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            paths = [file["path"] for file in json.loads(body)["files"]]
            mode = {True: "lfs", False: "regular"}
            files = [{"path": path, "uploadMode": mode[path.endswith(LARGE)]} for path in paths]
            self._answer({"files": [{**file, "shouldIgnore": False} for file in files]})
        elif "/commit/" in self.path:
            self._commit([json.loads(line) for line in body.splitlines()])
        elif self.path.endswith(".git/info/lfs/objects/batch"):
            self._answer({"objects": [self._upload_of(file) for file in json.loads(body)["objects"]]})
        else:
            self._answer({"error": self.path}, 404)

    def do_PUT(self) -> None:
        content = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self._answer({})

    def _upload_of(self, file: dict[str, Any]) -> dict[str, Any]:
        """Return where a large file is sent to; nothing where it is here already."""
        upload = {"upload": {"href": f"{self.server.endpoint}/large/{file['oid']}"}}
        return file if file["oid"] in self.server.large else {**file, "actions": upload}

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        self.server.repositories.setdefault((asked.get("type", "model"), name), {})
        place = "datasets/" if asked.get("type") == "dataset" else ""
        self._answer({"url": f"{self.server.endpoint}/{place}{name}", "name": name, "id": name})

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        kind, name, _, _ = self._asked()
        stored = self.server.repositories[kind, name]
        for line in lines:
            file = line["value"]
            if line["key"] == "file":
                stored[file["path"]] = base64.b64decode(file["content"])
            elif line["key"] == "lfsFile":
                stored[file["path"]] = self.server.large[file["oid"]]
        place = f"{self.server.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"
        self._answer({"success": True, "commitOid": "0" * 40, "commitUrl": f"{place}/commit/0"})

    def _describe(self) -> None:
        _, name, revision, files = self._asked()
        if files is None:
            self._answer({"error": "not found"}, 404, "RepoNotFound")
        else:
            siblings = [{"rfilename": path} for path in files]
            self._answer({"id": name, "sha": self.server.commit(name, revision), "siblings": siblings})

    def _list(self) -> None:
        _, _, revision, files = self._asked()
        below = unquote(self.path.split("?")[0].partition("/tree/")[2].partition("/")[2])
        prefix = f"{below}/" if below else ""
        found = {path: content for path, content in (files or {}).items() if path.startswith(prefix)}
        if not found:
            self._answer({"error": f"{revision}: no {below}"}, 404, "EntryNotFound")
            return
        folders = {path.rsplit("/", depth)[0] for path in found for depth in range(1, path.count("/") + 1)}
        entries = [_entry(path, content) for path, content in found.items()]
        entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders]
        if "recursive=true" not in self.path.lower():
            entries = [entry for entry in entries if "/" not in entry["path"][len(prefix) :]]
        self._answer(entries)

    def _send_file(self) -> None:
        _, name, revision, files = self._asked()
        path = self.path.split("?")[0].partition("/resolve/")[2].partition("/")[2]
        content = (files or {}).get(unquote(path))
        if content is None:
            self._answer({"error": "no such file"}, 404, "EntryNotFound")
            return
        first, last = 0, len(content) - 1
        if asked := self.headers.get("Range"):
            ends = asked.removeprefix("bytes=").split("-")
            first, last = int(ends[0]), min(int(ends[1] or last), last)
        part = content[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", self.server.commit(name, revision))
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("Content-Length", str(len(part)))
        self.send_header("Content-Range", f"bytes {first}-{last}/{len(content)}")
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(part)

    def _asked(self) -> tuple[str, str, str, Files | None]:
        """Return kind, name and revision of what a path asks for, and its files."""
        parts = [unquote(part) for part in self.path.split("?")[0].strip("/").split("/")]
        if parts[0] == "api":
            parts = parts[1:]
        elif parts[0] != "datasets":
            parts.insert(0, "models")
        kind, name = parts[0].removesuffix("s"), "/".join(parts[1:3])
        revision = parts[4] if len(parts) > 4 else MAIN  # behind resolve, tree, revision ...
        return kind, name, revision, self.server.files(kind, name, revision)

    def _answer(self, value: Any, status: int = 200, code: str = "RepoNotFound") -> None:
        content = json.dumps(value).encode()
        self.send_response(status)
        if status == 404:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    digest = hashlib.sha1(content, usedforsecurity=False).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": digest}
