"""A Hugging Face hub on the loopback address, in memory: what its client asks to upload and to download a repository.

with stand_in_hub.serve(monkeypatch, cache) as hub:
    HfApi().upload_folder(repo_id="me/saes", ...)
    hub.repositories["me/saes"]["layer0/cfg.json"]     # bytes
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN = "hf_" + "a" * 34


class StandIn(ThreadingHTTPServer):
    """The hub's state: files by repository, what is private, and how it misbehaves."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server_port}"
        self.repositories: dict[str, dict[str, bytes]] = {}
        self.private: set[str] = set()
        self.objects: dict[str, bytes] = {}  # of LFS, by sha256
        self.fetched: list[str] = []  # the files that were downloaded
        self.status = 0  # what every request is answered with; 0: what it asks for
        self.cuts = False  # whether weights stop in the middle
        self.xet_status = 404  # what a client that would use Xet is answered with

    def commit(self, repository: str) -> str:
        files = self.repositories[repository]
        digest = hashlib.sha1(repr(sorted(files.items())).encode())
        return digest.hexdigest()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: StandIn

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            cut = self.server.cuts and self.path.endswith("sae_weights.safetensors")
            self.wfile.write(body[: len(body) // 2] if cut else body)
            self.close_connection = self.close_connection or cut

    def handle_request(self):
        size = int(self.headers.get("Content-Length") or 0)
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        body = self.chunks() if chunked else self.rfile.read(size)
        if self.server.status:
            return self.answer({"error": "no"}, self.server.status)
        if self.command == "POST" and self.headers.get("Authorization") != f"Bearer {TOKEN}":
            return self.answer({"error": "Invalid username or password."}, 401)
        path = unquote(urlsplit(self.path).path)
        for pattern, work in ROUTES.items():
            method, expression = pattern.split(" ", 1)
            if method in (self.command, "ANY") and (found := re.fullmatch(expression, path)):
                return work(self, body, *found.groups())
        return self.answer({"error": f"no route for {self.command} {path}"}, 404)

    do_GET = do_HEAD = do_POST = do_PUT = handle_request

    def chunks(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline(), 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def files(self, repository):
        """A repository's files; None, after a 404 like the hub's, where there is none."""
        if repository not in self.server.repositories:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        return self.server.repositories.get(repository)

    def create(self, body):
        asked = json.loads(body)
        name = f"{asked['organization']}/{asked['name']}"
        status = 409 if name in self.server.repositories else 200
        self.server.repositories.setdefault(name, {})
        if asked.get("private") or asked.get("visibility") == "private":
            self.server.private.add(name)
        return self.answer({"url": f"{self.server.address}/{name}", "name": name}, status)

    def preupload(self, body, _repository):
        paths = [file["path"] for file in json.loads(body)["files"]]
        mode = {True: "lfs", False: "regular"}
        modes = [{"path": path, "uploadMode": mode[path.endswith(".safetensors")]} for path in paths]
        self.answer({"files": [{**one, "shouldIgnore": False, "oid": None} for one in modes]})

    def xet_token(self, _body, _repository):
        self.answer({"error": "no"}, self.server.xet_status)

    def batch(self, body, _repository):
        objects = json.loads(body)["objects"]
        for one in objects:
            one["actions"] = {"upload": {"href": f"{self.server.address}/lfs/{one['oid']}"}}
        self.answer({"transfer": "basic", "objects": objects})

    def store(self, body, oid):
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.objects[oid] = body
        self.answer({})

    def make_commit(self, body, repository):
        files = self.server.repositories[repository]
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.objects[value["oid"]]
        commit = self.server.commit(repository)
        url = f"{self.server.address}/{repository}/commit/{commit}"
        self.answer({"success": True, "commitUrl": url, "commitOid": commit, "hookOutput": ""})

    def info(self, _body, repository):
        if (files := self.files(repository)) is not None:
            names = [{"rfilename": name} for name in files]
            self.answer(
                {"id": repository, "sha": self.server.commit(repository), "siblings": names, "tags": []}
            )

    def tree(self, _body, repository):
        if (files := self.files(repository)) is not None:
            self.answer([entry(path, content) for path, content in files.items()])

    def resolve(self, _body, repository, path):
        content = self.server.repositories[repository][path]
        if self.command == "GET":
            self.server.fetched.append(path)
        commit, digest = self.server.commit(repository), hashlib.sha256(content).hexdigest()
        headers = {"X_Repo_Commit": commit, "ETag": f'"{digest}"', "X_Linked_Size": str(len(content))}
        self.answer(content, **headers)


def entry(path: str, content: bytes) -> dict:
    """A file in the list of a repository."""
    sizes = {"size": len(content), "oid": hashlib.sha1(content).hexdigest()}
    lfs = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
    own = {"lfs": lfs} if path.endswith(".safetensors") else {}
    return {"type": "file", "path": path, **sizes, **own}


NAME = "([^/]+/[^/]+?)"
ROUTES = {
    "POST /api/repos/create": Handler.create,
    "POST /api/validate-yaml": lambda handler, _body: handler.answer({"errors": [], "warnings": []}),
    f"POST /api/models/{NAME}/preupload/main": Handler.preupload,
    f"GET /api/models/{NAME}/xet-write-token/main": Handler.xet_token,
    f"POST /{NAME}\\.git/info/lfs/objects/batch": Handler.batch,
    "PUT /lfs/(\\w+)": Handler.store,
    f"POST /api/models/{NAME}/commit/main": Handler.make_commit,
    f"GET /api/models/{NAME}(?:/revision/\\w+)?": Handler.info,
    f"GET /api/models/{NAME}/tree/\\w+": Handler.tree,
    f"ANY /{NAME}/resolve/\\w+/(.+)": Handler.resolve,
}


@contextlib.contextmanager
def serve(monkeypatch, cache):
    """Serve, and point huggingface_hub at it, with a token, a cache of the test's own, and no waits between tries."""
    from huggingface_hub import constants
    from huggingface_hub.utils import _http

    from training import fetched

    hub = StandIn()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    changed = {
        "ENDPOINT": hub.address,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub.address + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(cache),
    }
    for name, value in changed.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    fetched.fetch.cache_clear()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()
