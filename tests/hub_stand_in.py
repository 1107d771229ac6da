"""A Hugging Face hub on this machine: what huggingface_hub asks of it to push and to fetch."""

import base64
import hashlib
import json
import re
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import yaml

TOKEN = "hf_write"


class Hub:
    """`files` by repository and path; `asked`, every request as "METHOD path"."""

    def __init__(self) -> None:
        self.files: dict[str, dict[str, bytes]] = {}
        self.settings: dict[str, dict] = {}
        self.asked: list[str] = []

    def commit(self, name: str) -> str:
        held = sorted((p, hashlib.sha256(c).hexdigest()) for p, c in self.files[name].items())
        return hashlib.sha1(json.dumps(held).encode()).hexdigest()

    def add(self, name: str, folder: Path) -> None:
        """What a push of a whole folder leaves behind."""
        found = [file for file in folder.rglob("*") if file.is_file()]
        self.files[name] = {str(f.relative_to(folder)): f.read_bytes() for f in found}


@contextmanager
def running(monkeypatch, cache: Path, token: str = TOKEN):
    """The hub of this process for a while, with an empty cache."""
    from huggingface_hub import close_session, constants

    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    address = f"http://127.0.0.1:{server.server_port}"
    files = address + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", files)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setenv("HF_TOKEN", token)
    close_session()
    try:
        yield hub
    finally:
        close_session()
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, *_) -> None:
        pass

    def do_POST(self) -> None:
        size = int(self.headers.get("Content-Length", 0))
        body = self._begin() or self.rfile.read(size)
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self._answer(401, {"error": "Invalid credentials in Authorization header"})
        if self.path == "/api/repos/create":
            given = json.loads(body)
            name = f"{given['organization']}/{given['name']}"
            made = {"url": f"http://{self.headers['Host']}/{name}"}
            if name in self.hub.files:
                return self._answer(409, made | {"error": "You already created this model repo"})
            self.hub.files[name], self.hub.settings[name] = {}, given
            return self._answer(200, made)
        if self.path == "/api/validate-yaml":
            front = yaml.safe_load(json.loads(body)["content"].split("---\n")[1])
            return self._answer(200, {"errors": [], "warnings": [] if front["license"] else ["?"]})
        path = self.path.partition("?")[0]
        form = r"/api/models/([^/]+/[^/]+)/(preupload|commit)/main"
        name, verb = re.fullmatch(form, path).groups()
        if verb == "preupload":
            asked = [{"path": file["path"]} for file in json.loads(body)["files"]]
            plan = {"uploadMode": "regular", "shouldIgnore": False}
            return self._answer(200, {"files": [file | plan for file in asked]})
        for line in map(json.loads, body.splitlines()):
            if line["key"] == "file":
                content = base64.b64decode(line["value"]["content"])
                self.hub.files[name][line["value"]["path"]] = content
        sha = self.hub.commit(name)
        address = f"http://{self.headers['Host']}/{name}/commit/{sha}"
        return self._answer(200, {"commitUrl": address, "commitOid": sha})

    def do_GET(self) -> None:
        self._begin()
        path = self.path.partition("?")[0]
        name, verb, rest = re.fullmatch(
            r"(?:/api/models)?/([^/]+/[^/]+)/(revision|tree|resolve)/(.+)", path
        ).groups()
        files = self.hub.files.get(name)
        if files is None or verb == "revision" and rest not in ("main", self.hub.commit(name)):
            code = "RepoNotFound" if files is None else "RevisionNotFound"
            return self._answer(404, {"error": code}, {"X-Error-Code": code})
        sha = self.hub.commit(name)
        if verb == "revision":
            return self._answer(200, {"id": name, "sha": sha, "siblings": []})
        if verb == "tree":
            listed = [
                {"type": "file", "path": p, "size": len(c), "oid": hashlib.sha1(c).hexdigest()}
                for p, c in files.items()
            ]
            return self._answer(200, listed)
        content = files[rest.partition("/")[2]]
        etag = {"ETag": f'"{hashlib.sha1(content).hexdigest()}"', "X-Repo-Commit": sha}
        return self._answer(200, content, etag)

    do_HEAD = do_GET

    def _begin(self) -> None:
        self.hub.asked.append(f"{self.command} {self.path}")

    def _answer(self, status: int, content: bytes | dict | list, headers: dict | None = None):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
