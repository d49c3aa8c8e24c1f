"""A local server that speaks the part of the Hugging Face hub's API by which models are pushed and loaded."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What was pushed: `repos` hold the contents of files by path, `created` is how repositories were asked for.

    Weights go to large file storage (LFS), `blobs`, by their SHA-256. refuses: paths of POST requests that are
    answered with 403, as where a token may not write.
    """

    def __init__(self) -> None:
        self.repos: dict[str, dict[str, bytes]] = {}
        self.created: list[dict] = []
        self.blobs: dict[str, bytes] = {}
        self.refuses: set[str] = set()
        self.url = ""

    def environment(self, home: object) -> dict[str, str]:
        """What leads huggingface_hub here, with a token and `home`, an empty folder for its cache."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": "hf_local",
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HOME": str(home),
        }

    def post(self, path: str, body: bytes) -> dict:
        """The answer to a POST request."""
        if path == "/api/repos/create":
            given = json.loads(body)
            self.created.append(given)
            repo = f"{given['organization']}/{given['name']}"
            self.repos.setdefault(repo, {})
            return {"url": f"{self.url}/{repo}"}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path.endswith(".git/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            where = [{"upload": {"href": f"{self.url}/blobs/{one['oid']}", "header": {}}} for one in wanted]
            objects = [{**one, "actions": actions} for one, actions in zip(wanted, where, strict=True)]
            return {"transfer": "basic", "objects": objects}
        repo, _, action = path.removeprefix("/api/models/").removesuffix("/main").rpartition("/")
        if action == "preupload":
            names = [one["path"] for one in json.loads(body)["files"]]
            modes = ["lfs" if name.endswith(".safetensors") else "regular" for name in names]
            found = [
                {"path": n, "uploadMode": m, "shouldIgnore": False, "oid": None}
                for n, m in zip(names, modes, strict=True)
            ]
            return {"files": found}
        assert action == "commit", path
        for item in map(json.loads, body.decode().splitlines()):
            value = item["value"]
            if item["key"] == "file":
                self.repos[repo][value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                self.repos[repo][value["path"]] = self.blobs[value["oid"]]
        return {"commitUrl": f"{self.url}/{repo}/commit/{COMMIT}", "commitOid": COMMIT, "success": True}

    def get(self, path: str) -> dict | list | bytes:
        """The answer to a GET or HEAD request. Raises KeyError for what is not there."""
        if not path.startswith("/api/models/"):
            repo, _, name = path.removeprefix("/").partition("/resolve/")
            return self.repos[repo][name.partition("/")[2]]
        repo = "/".join(path.split("/")[3:5])
        files = self.repos[repo]
        if "/tree/" in path:
            return [{"type": "file", "path": name, "size": len(x), "oid": COMMIT} for name, x in files.items()]
        return {"id": repo, "sha": COMMIT, "tags": [], "siblings": [{"rfilename": name} for name in files]}


@contextmanager
def served() -> Iterator[Hub]:
    """A hub on this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        def answer(self, found: dict | list | bytes, status: int = 200) -> None:
            body = found if isinstance(found, bytes) else json.dumps(found).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Content-Type", "application/json")
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_GET(self) -> None:
            try:
                self.answer(hub.get(unquote(urlsplit(self.path).path)))
            except KeyError:
                self.answer({"error": "Entry not found"}, 404)

        do_HEAD = do_GET

        def do_POST(self) -> None:
            body, path = self.body(), urlsplit(self.path).path
            if path in hub.refuses or not self.headers.get("Authorization"):
                self.answer({"error": "You may not write here."}, 403)
            else:
                self.answer(hub.post(path, body))

        def do_PUT(self) -> None:
            body = self.body()
            hub.blobs[hashlib.sha256(body).hexdigest()] = body
            self.answer({})

        def body(self) -> bytes:
            return self.rfile.read(int(self.headers["Content-Length"]))

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
