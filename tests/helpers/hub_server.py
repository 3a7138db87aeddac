"""A small Hub on loopback: what uploading, downloading and loading by name ask of it, over real HTTP.

It keeps repositories in memory, speaks the LFS protocol, checks tokens and cards, and can die while it receives files.
"""

import base64
import copy
import hashlib
import json
import os
import re
import signal
import threading
import traceback
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN, USER, ORGANIZATION = "hf_valid", "tester", "acme"
PIPELINE_TAGS = {"text-generation", "text-classification", "feature-extraction"}  # a part of the Hub's list
LICENSES = {"apache-2.0", "mit", "cc-by-4.0", "other", "unknown", "llama2"}
COLORS = {"red", "yellow", "green", "blue", "indigo", "purple", "pink", "gray"}
TASK_CATEGORIES = {"multiple-choice", "text-generation"}
REPO = r"(?P<repo>[^/]+/[^/]+)"
TYPE = r"(?P<type>model|dataset|space)s"


class Repository:
    def __init__(self, private):
        self.private = private
        self.files = {".gitattributes": b"*.safetensors filter=lfs\n"}  # path -> bytes, or (sha256, size) in LFS
        self.commits = [hashlib.sha1(b"initial commit").hexdigest()]
        self.snapshots = {self.sha: dict(self.files)}
        self.messages = ["initial commit"]

    @property
    def sha(self):
        return self.commits[-1]

    def commit(self, changes, message):
        for path, content in changes.items():
            if content is None:
                del self.files[path]
            else:
                self.files[path] = content
        self.messages.append(message)
        self.commits.append(hashlib.sha1(f"{self.sha}{sorted(changes)}{message}".encode()).hexdigest())
        self.snapshots[self.sha] = dict(self.files)

    def as_of(self, revision):
        earlier = copy.copy(self)
        earlier.commits = self.commits[: self.commits.index(revision) + 1]
        earlier.files = self.snapshots[revision]
        return earlier


class HubServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server_port}"
        self.storage = f"http://localhost:{self.server_port}"  # another host, as on the Hub: clients tell them apart
        self.repositories, self.blobs, self.received, self.requests = {}, {}, [], []
        self.faults = []
        self.kill = None  # a process group, and at how many requests it is killed
        self.uploads_before_death, self.alive, self.lock = None, True, threading.Lock()

    def handle_error(self, request, client_address):
        pass  # clients that go away

    def __enter__(self):
        threading.Thread(target=self.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *exc_info):
        self.shutdown()
        self.server_close()


class RefusedError(Exception):
    def __init__(self, status, message, code=None):
        self.status, self.message, self.code = status, message, code


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *args):
        pass

    def handle_request(self):
        url = urlsplit(self.path)
        self.query = {name: values[0] for name, values in parse_qs(url.query).items()}
        if url.path != "/_control":
            self.server.requests.append(f"{self.command} {url.path}")
            if self.server.kill is not None and self.server.kill[1] == len(self.server.requests):
                os.killpg(self.server.kill[0], signal.SIGKILL)
        if not self.server.alive and url.path != "/_control":
            self.die()
            return
        try:
            for method, pattern, action in ROUTES:
                match = re.fullmatch(pattern, url.path)
                if match and self.command in method.split("|"):
                    with self.server.lock:
                        action(self, **{name: unquote(text) for name, text in match.groupdict().items() if text})
                    return
            self.body()
            raise RefusedError(404, f"no such address: {self.command} {url.path}")
        except RefusedError as refused:
            headers = {"X-Error-Message": refused.message, **({"X-Error-Code": refused.code} if refused.code else {})}
            self.reply({"error": refused.message, "errors": [{"message": refused.message}]}, refused.status, headers)
        except Exception:  # a fault of this server: the tests look at `faults`
            self.server.faults.append(traceback.format_exc())
            self.reply({"error": "fault of the server of the tests"}, 400)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_request  # noqa: N815

    def die(self):
        self.server.alive, self.close_connection = False, True
        self.connection.close()

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def reply(self, content, status=200, headers=None):
        data = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def authorized(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def repository(self, type, repo, write=False):
        found = self.server.repositories.get((type, repo))
        if found is None or (found.private and not self.authorized()):
            raise RefusedError(404, "Repository not found", "RepoNotFound")
        if write and not self.authorized():
            raise RefusedError(401, "Invalid username or password.")
        return found

    def at(self, type, repo, revision):
        found = self.repository(type, repo)
        if revision == "main":
            return found
        if revision not in found.snapshots:
            raise RefusedError(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        return found.as_of(revision)

    def control(self):
        state = json.loads(self.body() or b"{}")
        self.server.uploads_before_death = state.get("uploads_before_death")
        self.server.alive = True
        self.server.kill = state.get("kill")
        if state.get("forget"):
            for kept in (self.server.repositories, self.server.blobs, self.server.requests):
                kept.clear()
        self.reply({"requests": len(self.server.requests)})

    def whoami(self):
        if not self.authorized():
            raise RefusedError(401, "Invalid credentials in Authorization header")
        self.reply({"type": "user", "name": USER, "orgs": [{"name": ORGANIZATION}]})

    def create(self):
        request = json.loads(self.body())
        owner, kind = request.get("organization") or USER, request.get("type") or "model"
        if not self.authorized():
            raise RefusedError(401, "Invalid username or password.")
        if owner not in (USER, ORGANIZATION):
            raise RefusedError(403, f"You don't have the rights to create a {kind} under the namespace {owner!r}")
        if kind == "space" and request.get("sdk") != "gradio":
            raise RefusedError(400, '"sdk" must be gradio')
        key = (kind, f"{owner}/{request['name']}")
        url = f"{self.server.url}/{'' if kind == 'model' else f'{kind}s/'}{key[1]}"
        if key in self.server.repositories:
            self.reply({"error": "You already created this repo", "url": url}, 409)
            return
        self.server.repositories[key] = Repository(request.get("visibility") == "private")
        self.reply({"url": url, "name": key[1]})

    def validate(self):
        request = json.loads(self.body())
        problems = card_problems(request["content"], request["repoType"])
        self.reply({"errors": [{"message": p} for p in problems], "warnings": []}, 400 if problems else 200)

    def preupload(self, type, repo, revision):
        files, found = json.loads(self.body())["files"], self.repository(type, repo, write=True)
        modes = {f["path"]: "lfs" if f["path"].endswith((".safetensors", ".parquet")) else "regular" for f in files}
        oids = {path: blob_id(content) for path, content in found.files.items()}
        self.reply(
            {
                "files": [
                    {"path": path, "uploadMode": mode, "shouldIgnore": False, "oid": oids.get(path)}
                    for path, mode in modes.items()
                ]
            }
        )

    def lfs_batch(self, repo, datasets=None):
        request = json.loads(self.body())
        self.repository("dataset" if datasets else "model", repo, write=True)
        objects = []
        for wanted in request["objects"]:
            answer = dict(wanted)
            if wanted["oid"] not in self.server.blobs:
                answer["actions"] = {
                    "upload": {"href": f"{self.server.url}/lfs/{wanted['oid']}"},
                    "verify": {"href": f"{self.server.url}/lfs-verify"},
                }
            objects.append(answer)
        self.reply({"transfer": "basic", "objects": objects})

    def lfs_put(self, oid):
        if self.server.uploads_before_death == 0:
            self.rfile.read(1000)
            self.die()
            return
        if self.server.uploads_before_death is not None:
            self.server.uploads_before_death -= 1
        data = self.body()
        if hashlib.sha256(data).hexdigest() != oid:
            raise RefusedError(400, "the content does not have this SHA-256")
        self.server.blobs[oid] = data
        self.server.received.append(oid)
        self.reply(b"")

    def lfs_verify(self):
        request = json.loads(self.body())
        if len(self.server.blobs.get(request["oid"], b"")) != request["size"]:
            raise RefusedError(404, "no such object")
        self.reply({})

    def commit(self, type, repo, revision):
        found, message, changes = self.repository(type, repo, write=True), "", {}
        for line in self.body().splitlines():
            operation = json.loads(line)
            key, value = operation["key"], operation["value"]
            if key == "header":
                message = value["summary"]
            elif key == "file":
                changes[value["path"]] = base64.b64decode(value["content"])
            elif key == "lfsFile":
                if value["oid"] not in self.server.blobs:
                    raise RefusedError(400, f"{value['path']} was not uploaded")
                changes[value["path"]] = (value["oid"], len(self.server.blobs[value["oid"]]))
            elif key == "deletedFile":
                changes[value["path"]] = None
        if isinstance(card := changes.get("README.md"), bytes) and (problems := card_problems(card.decode(), type)):
            raise RefusedError(400, "; ".join(problems))
        found.commit(changes, message)
        url = f"{self.server.url}/{repo}/commit/{found.sha}"
        self.reply({"commitUrl": url, "commitOid": found.sha, "success": True})

    def info(self, type, repo, revision="main"):
        found = self.at(type, repo, revision)
        siblings = [{"rfilename": path} for path in sorted(found.files)]
        self.reply({"id": repo, "sha": found.sha, "private": found.private, "tags": [], "siblings": siblings})

    def tree(self, type, repo, revision, path=""):
        found = self.at(type, repo, revision)
        under = f"{path.strip('/')}/" if path.strip("/") else ""
        if under and not any(name.startswith(under) for name in found.files):
            raise RefusedError(404, f"{path} does not exist", "EntryNotFound")
        entries, deep = {}, self.query.get("recursive", "").lower() in ("true", "1")
        for name in sorted(found.files):
            if name.startswith(under):
                parts = name[len(under) :].split("/")
                for depth in range(1, len(parts) if deep else min(2, len(parts))):
                    folder = under + "/".join(parts[:depth])
                    entries[folder] = {"type": "directory", "path": folder, "oid": "0" * 40, "size": 0}
                if deep or len(parts) == 1:
                    entries[name] = file_info(name, found.files[name])
        self.reply(list(entries.values()))

    def paths_info(self, type, repo, revision):
        request = self.body()
        if self.headers.get("Content-Type", "").startswith("application/json"):
            paths = json.loads(request)["paths"]
        else:
            paths = parse_qs(request.decode())["paths"]
        found, entries = self.at(type, repo, revision), []
        for path in [paths] if isinstance(paths, str) else paths:
            if path in found.files:
                entries.append(file_info(path, found.files[path]))
            elif any(name.startswith(f"{path.strip('/')}/") for name in found.files):
                entries.append({"type": "directory", "path": path, "oid": "0" * 40, "size": 0})
        self.reply(entries)

    def resolve(self, repo, revision, path, datasets=None):
        found = self.at("dataset" if datasets else "model", repo, revision)
        commit = {"X-Repo-Commit": found.sha, "Accept-Ranges": "bytes"}
        if path not in found.files:
            raise RefusedError(404, "Entry not found", "EntryNotFound")
        content = found.files[path]
        if isinstance(content, bytes):
            self.reply(content, headers={**commit, "ETag": f'"{blob_id(content)}"'})
            return
        oid, size = content
        linked = {
            "X-Linked-Etag": f'"{oid}"',
            "X-Linked-Size": str(size),
            "Location": f"{self.server.storage}/cdn/{oid}",
        }
        self.reply(b"", 302, {**commit, **linked})

    def cdn(self, oid):
        data, request = self.server.blobs[oid], re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if request is None:
            self.reply(data, headers={"ETag": f'"{oid}"'})
            return
        start, end = int(request[1]), min(int(request[2] or len(data)), len(data) - 1)
        extent = {"Content-Range": f"bytes {start}-{end}/{len(data)}", "ETag": f'"{oid}"'}
        self.reply(data[start : end + 1], 206, extent)


ROUTES = [
    ("POST", r"/_control", Handler.control),
    ("GET", r"/api/whoami-v2", Handler.whoami),
    ("POST", r"/api/repos/create", Handler.create),
    ("POST", r"/api/validate-yaml", Handler.validate),
    ("POST", rf"/api/{TYPE}/{REPO}/preupload/(?P<revision>[^/]+)", Handler.preupload),
    ("POST", rf"/(?P<datasets>datasets/)?{REPO}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    ("PUT", r"/lfs/(?P<oid>\w+)", Handler.lfs_put),
    ("POST", r"/lfs-verify", Handler.lfs_verify),
    ("POST", rf"/api/{TYPE}/{REPO}/commit/(?P<revision>[^/]+)", Handler.commit),
    ("GET", rf"/api/{TYPE}/{REPO}", Handler.info),
    ("GET", rf"/api/{TYPE}/{REPO}/revision/(?P<revision>[^/]+)", Handler.info),
    ("GET", rf"/api/{TYPE}/{REPO}/tree/(?P<revision>[^/]+)(?P<path>/.*)?", Handler.tree),
    ("POST", rf"/api/{TYPE}/{REPO}/paths-info/(?P<revision>[^/]+)", Handler.paths_info),
    ("GET|HEAD", rf"/(?P<datasets>datasets/)?{REPO}/resolve/(?P<revision>[^/]+)/(?P<path>.+)", Handler.resolve),
    ("GET|HEAD", r"/cdn/(?P<oid>\w+)", Handler.cdn),
]


def blob_id(content):
    """What the Hub compares to find unchanged files: git's id, or in LFS the SHA-256."""
    return (
        content[0] if isinstance(content, tuple) else hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
    )


def file_info(path, content):
    if isinstance(content, bytes):
        return {"type": "file", "path": path, "oid": blob_id(content), "size": len(content)}
    oid, size = content
    lfs = {"oid": oid, "size": size, "pointerSize": 134}
    return {"type": "file", "path": path, "oid": oid[:40], "size": size, "lfs": lfs}


def card_problems(content, repo_type):
    """Return what the Hub would refuse about a card (a part of its rules)."""
    block = re.match(r"---\n(.*?)\n---\n", content, re.DOTALL)
    if block is None:
        return []
    data, problems = yaml.safe_load(block[1]), []

    def must(condition, message):
        if not condition:
            problems.append(message)

    must(data.get("license", "unknown") in LICENSES, f'"license" must be one of {sorted(LICENSES)}')
    must(all(isinstance(tag, str) for tag in data.get("tags", [])), '"tags" must be strings')
    if repo_type == "model":
        must(data.get("pipeline_tag") in {None, *PIPELINE_TAGS}, '"pipeline_tag" must be a task of the Hub')
        for name in (data.get("base_model"), *data.get("datasets", [])):
            must(name is None or re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name), f"{name!r} is no repository name")
        for entry in data.get("model-index", []):
            for result in entry["results"]:
                must({"type", "name"} <= set(result["dataset"]), '"dataset" needs type and name')
                must(result["task"].get("type"), '"task" needs a type')
                must(all({"type", "value"} <= set(m) for m in result["metrics"]), '"metrics" need type and value')
    elif repo_type == "space":
        must(
            data.get("sdk") == "gradio" and re.fullmatch(r"\d+\.\d+\.\d+", data["sdk_version"]),
            '"sdk" needs a version',
        )
        must({data.get("colorFrom"), data.get("colorTo")} <= COLORS, f"colors must be of {sorted(COLORS)}")
        must(len(data.get("emoji", "")) == 1 and data.get("app_file"), '"emoji" and "app_file" are needed')
    else:
        must(set(data.get("task_categories", [])) <= TASK_CATEGORIES, '"task_categories" must be tasks of the Hub')
        for config in data.get("configs", []):
            must({"config_name", "data_files"} <= set(config), '"configs" need config_name and data_files')
    return problems
