"""The server's own rules: which routes are open, and what a wrong address is told."""

import asyncio
import os
import socket
import sys
from pathlib import Path

import pytest

from drifting_jax.demonstration import server
from drifting_jax.errors import TransientError, UserError


def answer(folder: Path, path: str) -> tuple[int, dict[bytes, bytes]]:
    """Status and headers of a request to an app that serves everything."""
    sent = []

    async def everything(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"served"})

    async def send(message):
        sent.append(message)

    app = server.OwnFilesOnly(everything, folder)
    asyncio.run(app({"type": "http", "path": path}, None, send))
    return sent[0]["status"], dict(sent[0]["headers"])


def test_only_files_of_the_folder_are_served(tmp_path):
    folder, secret = tmp_path / "shown", tmp_path / "run" / "config.json"
    folder.mkdir()
    secret.parent.mkdir()
    secret.write_text("{}")
    (folder / "link").symlink_to(secret)
    for prefix in ("/gradio_api/", "/", "/gradio_api//"):
        assert answer(folder, f"{prefix}file={folder}/a/b.png")[0] == 200
        for file in (
            secret,
            f"{folder}/../run/config.json",
            f"{folder}/%2e%2e/run/config.json",
            folder / "link",
            "http://127.0.0.1/",
            "relative.txt",
            f"{folder}_beside/x.png",
        ):
            assert answer(folder, f"{prefix}file={file}")[0] == 404, (prefix, file)
    closed = (
        "upload",
        "process_recording",
        "proxy=http://a/b",
        "stream/x",
        f"file/{secret}",
        "vibe",
    )
    for route in closed:
        assert answer(folder, f"/gradio_api/{route}")[0] == answer(folder, f"/{route}")[0] == 404
    for route in ("/", "/config", "/gradio_api/queue/join", "/assets/index.js", "/theme.css"):
        assert answer(folder, route)[0] == 200


def test_the_browser_is_told_to_load_nothing_from_elsewhere(tmp_path):
    for path in ("/", "/gradio_api/upload"):
        policy = answer(tmp_path, path)[1][b"content-security-policy"].decode()
        assert policy.startswith("default-src 'self'") and "http" not in policy


def test_addresses_that_cannot_be_listened_on():
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(TransientError, match=rf"127\.0\.0\.1:{port}: .*another --port"):
            server.check_address("127.0.0.1", port)
    server.check_address("127.0.0.1", port)
    with pytest.raises(UserError, match=r"--host=no\.such\.host\.invalid is no address"):
        server.check_address("no.such.host.invalid", port)
    with pytest.raises(TransientError, match=r"cannot listen on 203\.0\.113\.1:"):
        server.check_address("203.0.113.1", port)  # of documentation, not of this machine


def test_without_gradio_the_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.setenv("GRADIO_ANALYTICS_ENABLED", "True")
    monkeypatch.setenv("GRADIO_TEMP_DIR", "")
    with pytest.raises(UserError, match=r"package gradio: pip install -e '\.\[demo\]'$"):
        server.import_gradio(tmp_path)
    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"
    assert os.environ["GRADIO_TEMP_DIR"] == str(tmp_path)
