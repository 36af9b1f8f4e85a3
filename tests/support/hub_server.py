"""A stand-in of the Hugging Face hub: as much of its HTTP interface as huggingface_hub uses here.

Repositories, branches, commits of text files and of LFS objects, listings and downloads; each
commit is kept. Writing needs the token `TOKEN`.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import yaml  # a requirement of huggingface_hub

TOKEN = "hf_test"
ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


def make_oid(data):
    """As git names a blob."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def is_large(path, sample):  # what the hub keeps outside git: what is not text
    return path.endswith(".safetensors") or b"\0" in sample


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits, self.branches = {}, {}  # by repository, {commit: {path: bytes}} and commits
        self.objects, self.private = {}, {}  # LFS objects by sha256; repositories
        self.fetched = []  # repository and path of every file that was downloaded
        self.lock = threading.Lock()

    @property
    def endpoint(self):
        return f"http://127.0.0.1:{self.server_address[1]}"

    def commit(self, repo, branch, files):
        text = json.dumps([repo, branch, sorted((p, make_oid(d)) for p, d in files.items())])
        number = len(self.commits.setdefault(repo, {}))
        oid = hashlib.sha1(f"{number} {text}".encode()).hexdigest()
        self.commits[repo][oid] = files
        self.branches.setdefault(repo, {})[branch] = oid
        return oid

    def files(self, repo, revision="main"):
        return self.commits[repo][self.branches[repo].get(revision, revision)]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args): ...

    def do_GET(self):
        self.answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def answer(self):
        self.path = unquote(urlsplit(self.path).path)
        body = self.read_body()
        with self.server.lock:
            writes = self.command in ("POST", "PUT") and not self.path.startswith("/lfs/")
            if writes and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                return self.refuse(401, "Invalid username or password.")
            for pattern, function in ROUTES:
                match = re.fullmatch(pattern, self.path)
                if match:
                    return function(self, body, *match.groups())
        return self.refuse(404, f"no route {self.path}")

    def read_body(self):
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def send(self, status, data, **headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def send_json(self, value, status=200, **headers):
        self.send(status, json.dumps(value).encode(), Content_Type="application/json", **headers)

    def refuse(self, status, message, code=""):
        self.send_json({"error": message}, status, X_Error_Code=code, X_Error_Message=message)

    def find_commit(self, repo, revision):
        """The commit, or None once the error is sent."""
        known = self.server.branches.get(repo)
        if known is None:
            self.refuse(404, "Repository not found", "RepoNotFound")
            return None
        oid = known.get(revision, revision)
        if oid not in self.server.commits[repo]:
            self.refuse(404, f"Invalid rev id: {revision}", "RevisionNotFound")
            return None
        return oid


def create(self, body):
    asked = json.loads(body)
    repo = f"{asked['organization'] or 'me'}/{asked['name']}"
    url = f"{self.server.endpoint}/{repo}"
    if repo in self.server.branches:
        return self.send_json({"url": url, "error": "You already created this model repo"}, 409)
    self.server.private[repo] = asked.get("visibility") == "private"
    self.server.commit(repo, "main", {".gitattributes": ATTRIBUTES})
    return self.send_json({"url": url, "name": repo})


def create_branch(self, body, repo, branch):
    del body
    if branch in self.server.branches[repo]:
        return self.refuse(409, "Reference already exists")
    self.server.branches[repo][branch] = self.server.branches[repo]["main"]
    return self.send_json({})


def validate(self, body):
    content = json.loads(body)["content"]
    yaml.safe_load("".join(content.split("---\n")[1:2]))  # or the connection breaks
    self.send_json({"errors": [], "warnings": []})


def describe(self, body, repo, revision="main"):
    del body
    oid = self.find_commit(repo, revision)
    if oid:
        files = [{"rfilename": path} for path in self.server.commits[repo][oid]]
        self.send_json({"id": repo, "sha": oid, "siblings": files, "private": False, "tags": []})


def list_tree(self, body, repo, revision):
    del body
    oid = self.find_commit(repo, revision)
    if oid:
        self.send_json([to_entry(*item) for item in self.server.commits[repo][oid].items()])


def to_entry(path, data):
    entry = {"type": "file", "path": path, "size": len(data), "oid": make_oid(data)}
    if is_large(path, data[:512]):
        sha = hashlib.sha256(data).hexdigest()
        entry["lfs"] = {"oid": sha, "size": len(data), "pointerSize": 130}
    return entry


def preupload(self, body, repo, branch):
    answers = []
    for file in json.loads(body)["files"]:
        large = is_large(file["path"], base64.b64decode(file["sample"]))
        mode = "lfs" if large else "regular"
        answers.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False})
    if self.find_commit(repo, branch):
        self.send_json({"files": answers})


def batch(self, body, repo):
    del repo
    objects = []
    for asked in json.loads(body)["objects"]:
        answer = dict(asked)
        if asked["oid"] not in self.server.objects:
            answer["actions"] = {"upload": {"href": f"{self.server.endpoint}/lfs/{asked['oid']}"}}
        objects.append(answer)
    self.send_json({"transfer": "basic", "objects": objects})


def store(self, body, oid):
    if hashlib.sha256(body).hexdigest() != oid:
        return self.refuse(422, "another checksum")
    self.server.objects[oid] = body
    return self.send(200, b"")


def commit(self, body, repo, branch):
    if not self.find_commit(repo, branch):
        return None
    files, head = dict(self.server.files(repo, branch)), self.server.branches[repo][branch]
    for line in body.splitlines():
        item = json.loads(line)
        value = item["value"]
        if value.get("parentCommit", head) != head:
            return self.refuse(412, "A commit has happened since. Please refresh and try again.")
        if item["key"] == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif item["key"] == "lfsFile":
            files[value["path"]] = self.server.objects[value["oid"]]
        elif item["key"] == "deletedFile":
            del files[value["path"]]
    oid = self.server.commit(repo, branch, files)
    return self.send_json(
        {"commitOid": oid, "commitUrl": f"{self.server.endpoint}/{repo}/commit/{oid}"}
    )


def download(self, body, repo, revision, path):
    del body
    oid = self.find_commit(repo, revision)
    if not oid:
        return
    data = self.server.commits[repo][oid].get(path)
    if data is None:
        self.refuse(404, "Entry not found", "EntryNotFound")
        return
    if self.command == "GET":
        self.server.fetched.append((repo, path))
    etag = hashlib.sha256(data).hexdigest() if is_large(path, data[:512]) else make_oid(data)
    self.send(200, data, X_Repo_Commit=oid, ETag=f'"{etag}"')


ID, REST = r"([\w.-]+(?:/[\w.-]+)?)", r"(.+)"  # old ids have no owner: "gpt2"
ROUTES = (
    (r"/api/repos/create", create),
    (r"/api/validate-yaml", validate),
    (rf"/api/models/{ID}/branch/{REST}", create_branch),
    (rf"/api/models/{ID}/revision/{REST}", describe),
    (rf"/api/models/{ID}/tree/{REST}", list_tree),
    (rf"/api/models/{ID}/preupload/{REST}", preupload),
    (rf"/api/models/{ID}/commit/{REST}", commit),
    (rf"/api/models/{ID}", describe),
    (rf"/{ID}\.git/info/lfs/objects/batch", batch),
    (r"/lfs/(\w+)", store),
    (rf"/{ID}/resolve/([^/]+)/{REST}", download),
)


@contextlib.contextmanager
def serve():
    """Runs a hub on a free port of this machine, in a thread of its own."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
