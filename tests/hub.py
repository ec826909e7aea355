"""A stand-in for the hub on this machine: repositories in memory that are read from and uploaded to."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import huggingface_hub.constants
import pytest

Files = dict[str, bytes]
MAIN = "main"
LARGE = (".parquet", ".safetensors")
"""Ends of the names of files that the hub takes apart from their commit, by the protocol of Git LFS."""
ATTRIBUTES = ".gitattributes"
TOKEN = "hf_test"
"""The token that may write, and read what is private."""


class Hub(ThreadingHTTPServer):
    """Keeps repositories in memory, and the branches that a repository has beside ``main``.

    A branch's commit is named by its content; of commits before it nothing is known.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.repositories: dict[tuple[str, str], Files] = {}
        """(kind, name) -> path -> content."""
        self.branches: dict[tuple[str, str, str], Files] = {}
        """(kind, name, branch) -> path -> content."""
        self.large: Files = {}
        """SHA-256 -> content of large files that were sent, committed or not."""
        self.private: set[tuple[str, str]] = set()
        """(kind, name) of what is shown to those who have the token."""
        self.damaged: set[str] = set()
        """Paths of files that lose a bit on their way, in either direction."""
        self.is_full = False
        """Whether large files are refused."""
        self.asked: list[str] = []
        """What was asked for, as "GET /path", one after the other."""

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, kind: str, name: str, revision: str) -> Files | None:
        """Return the files of a revision, a branch's name or its commit; None where there is none."""
        of_branches = {branch: files for (*of, branch), files in self.branches.items() if of == [kind, name]}
        if (kind, name) in self.repositories:
            of_branches[MAIN] = self.repositories[kind, name]
        return next((files for of, files in of_branches.items() if revision in (of, commit(files))), None)

    def carried(self, path: str, content: bytes) -> bytes:
        """Return a file as it arrives."""
        return content[:-1] + bytes([content[-1] ^ 1]) if path in self.damaged else content


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """Serve an empty hub for as long as the block lasts."""
    with Hub() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


def be_asked(server: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the hub's library of this process ask a stand-in, logged in, with a cache of its own."""
    settings = {
        "ENDPOINT": server.endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
        "HF_HUB_CACHE": str(cache),
        "HF_HUB_OFFLINE": False,
        # large files go by Git LFS: Xet's storage is no protocol that a stand-in could speak
        "HF_HUB_DISABLE_XET": True,
        "HF_TOKEN_PATH": "/none",
    }
    for name, value in settings.items():
        monkeypatch.setattr(huggingface_hub.constants, name, value)
    monkeypatch.setenv("HF_ENDPOINT", server.endpoint)
    monkeypatch.setenv("HF_TOKEN", TOKEN)


def commit(files: Files) -> str:
    """Return the name of the commit that has these files."""
    named = json.dumps([[path, _blob(content)] for path, content in sorted(files.items())])
    return hashlib.sha1(named.encode(), usedforsecurity=False).hexdigest()


def _blob(content: bytes) -> str:
    """Return the name that Git gives a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        if self._asked()[:2] in self.server.private and not self._has_token:
            self._answer({"error": "not found"}, 401)
        elif "/resolve/" in self.path:
            self._send_file()
        elif "/tree/" in self.path:
            self._list()
        else:
            self._describe()

    def do_POST(self) -> None:
        self.server.asked.append(f"{self.command} {self.path}")
        body = self.rfile.read(int(self.headers["Content-Length"] or 0))
        if not self._has_token:
            self._answer({"error": "Invalid username or password."}, 401, "")
        elif self.path == "/api/repos/create":
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
        if self.server.is_full:
            self._answer({"error": "Storage limit reached"}, 413, "")
            return
        self.server.large[hashlib.sha256(content).hexdigest()] = content
        self._answer({})

    @property
    def _has_token(self) -> bool:
        return self.headers["Authorization"] == f"Bearer {TOKEN}"

    def _upload_of(self, file: dict[str, Any]) -> dict[str, Any]:
        """Return where a large file is sent to; nothing where it is here already."""
        upload = {"upload": {"href": f"{self.server.endpoint}/large/{file['oid']}"}}
        return file if file["oid"] in self.server.large else {**file, "actions": upload}

    def _create(self, asked: dict[str, Any]) -> None:
        name = f"{asked['organization']}/{asked['name']}" if asked.get("organization") else asked["name"]
        of = asked.get("type", "model"), name
        self.server.repositories.setdefault(of, {ATTRIBUTES: b"*.parquet filter=lfs\n"})
        if asked.get("visibility") == "private":
            self.server.private.add(of)
        place = "datasets/" if asked.get("type") == "dataset" else ""
        self._answer({"url": f"{self.server.endpoint}/{place}{name}", "name": name, "id": name})

    def _commit(self, lines: list[dict[str, Any]]) -> None:
        kind, name, _, _ = self._asked()
        stored = self.server.repositories[kind, name]
        if lines[0]["value"].get("parentCommit", commit(stored)) != commit(stored):
            self._answer({"error": "The branch has moved."}, 412, "")
            return
        for line in lines:
            file = line["value"]
            if line["key"] == "file":
                stored[file["path"]] = self.server.carried(file["path"], base64.b64decode(file["content"]))
            elif line["key"] == "lfsFile":
                stored[file["path"]] = self.server.carried(file["path"], self.server.large[file["oid"]])
            elif line["key"] == "deletedFile":
                del stored[file["path"]]
        place = f"{self.server.endpoint}/{'datasets/' if kind == 'dataset' else ''}{name}"
        self._answer(
            {"success": True, "commitOid": commit(stored), "commitUrl": f"{place}/commit/{commit(stored)}"}
        )

    def _describe(self) -> None:
        kind, name, _, files = self._asked()
        if files is None:
            there = self.server.files(kind, name, MAIN) is not None
            self._answer({"error": "not found"}, 404, "RevisionNotFound" if there else "RepoNotFound")
        else:
            siblings = [{"rfilename": path} for path in files]
            private = (kind, name) in self.server.private
            self._answer({"id": name, "sha": commit(files), "siblings": siblings, "private": private})

    def _list(self) -> None:
        _, _, revision, files = self._asked()
        below = unquote(self.path.split("?")[0].partition("/tree/")[2].partition("/")[2])
        prefix = f"{below}/" if below else ""
        found = {path: content for path, content in (files or {}).items() if path.startswith(prefix)}
        if not found and (below or files is None):
            self._answer({"error": f"{revision}: no {below}"}, 404, "EntryNotFound")
            return
        folders = {path.rsplit("/", depth)[0] for path in found for depth in range(1, path.count("/") + 1)}
        entries = [_entry(path, content) for path, content in found.items()]
        entries += [{"type": "directory", "path": path, "oid": "0" * 40, "size": 0} for path in folders]
        if "recursive=true" not in self.path.lower():
            entries = [entry for entry in entries if "/" not in entry["path"][len(prefix) :]]
        self._answer(entries)

    def _send_file(self) -> None:
        *_, files = self._asked()
        path = self.path.split("?")[0].partition("/resolve/")[2].partition("/")[2]
        content = (files or {}).get(unquote(path))
        if files is None or content is None:
            self._answer({"error": "no such file"}, 404, "EntryNotFound")
            return
        etag = hashlib.sha256(content).hexdigest() if path.endswith(LARGE) else _blob(content)
        content = self.server.carried(unquote(path), content)
        first, last = 0, len(content) - 1
        if asked := self.headers.get("Range"):
            ends = asked.removeprefix("bytes=").split("-")
            first, last = int(ends[0]), min(int(ends[1] or last), last)
        part = content[first : last + 1]
        self.send_response(206 if asked else 200)
        self.send_header("X-Repo-Commit", commit(files))
        self.send_header("ETag", f'"{etag}"')
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
        if status >= 400 and code:
            self.send_header("X-Error-Code", code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry = {"type": "file", "path": path, "size": len(content), "oid": _blob(content)}
    if path.endswith(LARGE):
        sha256 = hashlib.sha256(content).hexdigest()
        entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 134}
    return entry
