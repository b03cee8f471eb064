"""A local server that speaks enough of the Hugging Face Hub's HTTP API for huggingface_hub's own client.

Covered: creating a repository (409 when it is there), branches, the preupload question (small files go
into the commit, large ones through Git LFS), the LFS batch call with single-part uploads, commits in
newline-delimited JSON (files, LFS files, deletions), listing a revision's tree with git and LFS hashes,
metadata and download of files, validation of a model card's header. Not covered: Xet, multi-part uploads,
pagination, authentication, pull requests, private repositories, anything for data sets and spaces.

Faults on request: the connection breaks after some uploads; a file is served with other bytes than were sent.
"""

import base64
import hashlib
import json
import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

LFS_FROM_BYTES = 2000
COMMIT = "a" * 40


@dataclass
class Hub:
    """What the server holds, and how it shall fail."""

    url: str = ""
    branches: dict[str, dict[str, dict[str, bytes]]] = field(default_factory=dict)
    """Repository, branch, path -> content."""
    objects: dict[str, bytes] = field(default_factory=dict)
    uploads: list[str] = field(default_factory=list)
    """The SHA-256 of each LFS upload, in order."""
    break_after_uploads: int | None = None
    swapped: dict[tuple[str, str], bytes] = field(default_factory=dict)
    """(branch, path) -> what is handed out instead."""


def git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Each request is matched against the routes below."""

    protocol_version = "HTTP/1.1"
    # One packet an answer: two would wait 40 ms for each other.
    wbufsize = 1 << 16
    disable_nagle_algorithm = True
    hub: Hub

    def log_message(self, *_):
        pass

    def answer(self, value=None, status=200, headers=None, body=None):
        body = json.dumps(value).encode() if body is None else body
        self.send_response(status)
        for key, text in (headers or {}).items():
            self.send_header(key, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def route(self):
        length = int(self.headers.get("Content-Length") or 0)
        body = self.rfile.read(length)
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        path = unquote(urlsplit(self.path).path)
        for method, pattern, handle in ROUTES:
            if method == self.command and (match := re.fullmatch(pattern, path)):
                return handle(self, body, *match.groups())
        return self.answer({"error": f"no route {self.command} {path}"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = route  # noqa: N815

    def create(self, body):
        name = json.loads(body)["name"]
        organization = json.loads(body).get("organization") or "owner"
        repo = f"{organization}/{name}"
        known = repo in self.hub.branches
        self.hub.branches.setdefault(repo, {"main": {".gitattributes": b"*.safetensors lfs\n"}})
        self.answer({"url": f"{self.hub.url}/{repo}", "id": repo}, 409 if known else 200)

    def branch(self, body, repo, name):
        branches = self.hub.branches[repo]
        if name in branches:
            return self.answer({"error": "exists"}, 409)
        branches[name] = dict(branches["main"])
        return self.answer({})

    def preupload(self, body, repo, revision):
        files = [
            {
                "path": file["path"],
                "uploadMode": "lfs" if file["size"] >= LFS_FROM_BYTES else "regular",
                "shouldIgnore": False,
            }
            for file in json.loads(body)["files"]
        ]
        self.answer({"files": files})

    def batch(self, body, repo):
        objects = []
        for wanted in json.loads(body)["objects"]:
            entry = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                entry["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{wanted['oid']}"}}
            objects.append(entry)
        self.answer({"transfer": "basic", "objects": objects})

    def upload(self, body, oid):
        if self.hub.break_after_uploads == len(self.hub.uploads):
            return self.answer({"error": "broken"}, 400)
        assert hashlib.sha256(body).hexdigest() == oid
        self.hub.objects[oid] = body
        self.hub.uploads.append(oid)
        return self.answer({})

    def commit(self, body, repo, revision):
        branch = self.hub.branches[repo][revision]
        for line in body.decode().splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                branch[value["path"]] = base64.b64decode(value["content"])
            elif operation["key"] == "lfsFile":
                branch[value["path"]] = self.hub.objects[value["oid"]]
            elif operation["key"] == "deletedFile":
                del branch[value["path"]]
        url = f"{self.hub.url}/{repo}/commit/{COMMIT}"
        self.answer({"commitUrl": url, "commitOid": COMMIT, "pullRequestUrl": None})

    def tree(self, body, repo, revision):
        entries = []
        for path, content in self.hub.branches[repo][revision].items():
            entry = {"type": "file", "path": path, "size": len(content), "oid": git_hash(content)}
            if len(content) >= LFS_FROM_BYTES:
                sha256 = hashlib.sha256(content).hexdigest()
                entry["lfs"] = {"oid": sha256, "size": len(content), "pointerSize": 130}
            entries.append(entry)
        self.answer(entries)

    def resolve(self, body, repo, revision, path):
        content = self.hub.branches[repo][revision].get(path)
        if content is None:
            return self.answer({"error": "absent"}, 404, {"X-Error-Code": "EntryNotFound"})
        content = self.hub.swapped.get((revision, path), content)
        return self.answer(headers={"X-Repo-Commit": COMMIT, "ETag": f'"{git_hash(content)}"'}, body=content)

    def valid(self, body):
        self.answer({"errors": [], "warnings": []})


REPO = r"([\w.-]+/[\w.-]+)"
ROUTES = [
    ("POST", "/api/repos/create", Handler.create),
    ("POST", "/api/validate-yaml", Handler.valid),
    ("POST", f"/api/models/{REPO}/branch/([^/]+)", Handler.branch),
    ("POST", f"/api/models/{REPO}/preupload/([^/]+)", Handler.preupload),
    ("POST", f"/{REPO}.git/info/lfs/objects/batch", Handler.batch),
    ("PUT", "/lfs/([0-9a-f]{64})", Handler.upload),
    ("POST", f"/api/models/{REPO}/commit/([^/]+)", Handler.commit),
    ("GET", f"/api/models/{REPO}/tree/([^/]+)", Handler.tree),
    ("HEAD", f"/{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
    ("GET", f"/{REPO}/resolve/([^/]+)/(.+)", Handler.resolve),
]


@contextmanager
def running_hub():
    """Serve a fresh hub on a free local port."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Bound", (Handler,), {"hub": hub}))
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
