"""A Hugging Face Hub on the loopback interface: lists and serves the files of one repository."""

import contextlib
import hashlib
import json
import threading
import urllib.parse
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace


@contextlib.contextmanager
def serving(repo: str, revisions: Mapping[str, Mapping[str, bytes]]) -> Iterator[SimpleNamespace]:
    """Context of a server.

    Args:
      repo: "owner/name".
      revisions: {branch or tag: {path: content}}.

    Yields:
      `url`, what HF_ENDPOINT takes, and `asked`, a list of (method, path) of all requests.
    """
    commits = {name: _commit(name) for name in revisions}
    files = {commits[name]: content for name, content in revisions.items()}
    asked: list[tuple[str, str]] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self):
            self._serve(with_body=True)

        def do_HEAD(self):
            self._serve(with_body=False)

        def _serve(self, *, with_body):
            path = urllib.parse.unquote(urllib.parse.urlsplit(self.path).path)
            asked.append((self.command, path))
            status, headers, body = _answer(path)
            self.send_response(status)
            for name, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def log_message(self, *_):
            pass

    def _answer(path: str) -> tuple[int, dict[str, str], bytes]:
        api, resolve = f"/api/models/{repo}", f"/{repo}/resolve/"
        if path.startswith(f"{api}/tree/"):
            commit = path.removeprefix(f"{api}/tree/")
            return _json([_entry(name, x) for name, x in files[commit].items()])
        if path == api or path.startswith(f"{api}/revision/"):
            name = path.removeprefix(api).removeprefix("/revision/") or "main"
            if name not in commits:
                return _error(404, "RevisionNotFound", f"Invalid rev id: {name}")
            siblings = [{"rfilename": path} for path in revisions[name]]
            return _json({"id": repo, "sha": commits[name], "siblings": siblings})
        if path.startswith(resolve):
            name = max((n for n in (*commits, *files) if path.startswith(f"{resolve}{n}/")),
                       key=len, default="")  # fmt: skip
            if not name:
                return _error(404, "RevisionNotFound", "Invalid rev id")
            commit = commits.get(name, name)
            content = files[commit].get(path.removeprefix(f"{resolve}{name}/"))
            at = {"X-Repo-Commit": commit}
            if content is None:
                return _error(404, "EntryNotFound", "Entry not found", at)
            return 200, at | {"ETag": f'"{hashlib.sha1(content).hexdigest()}"'}, content
        return _error(401, "RepoNotFound", "Repository not found")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield SimpleNamespace(url=f"http://127.0.0.1:{server.server_address[1]}", asked=asked)
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _commit(name: str) -> str:
    return hashlib.sha1(name.encode()).hexdigest()


def _entry(path: str, content: bytes) -> dict:
    oid = hashlib.sha1(content).hexdigest()
    return {"type": "file", "path": path, "size": len(content), "oid": oid}


def _json(value) -> tuple[int, dict[str, str], bytes]:
    return 200, {"Content-Type": "application/json"}, json.dumps(value).encode()


def _error(status, code, message, headers=()) -> tuple[int, dict[str, str], bytes]:
    return status, {"X-Error-Code": code, "X-Error-Message": message, **dict(headers)}, b""
