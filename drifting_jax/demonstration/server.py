"""Serves a page on one address: no file but its own, and nothing from elsewhere."""

import os
import re
import socket
from pathlib import Path
from types import ModuleType
from typing import Any
from urllib.parse import unquote

from drifting_jax.errors import TransientError, UserError

# The browser loads nothing from elsewhere. gradio's page needs scripts and styles inside it.
_POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'"
)
# What the page asks for. Other routes of gradio store files, read them, or fetch addresses.
_FILE_ROUTE = "file="
_ROUTES = re.compile(
    r"|config|info|app_id|startup-events|cancel|reset|theme\.css|favicon\.ico|manifest\.json"
    r"|(assets|static|svelte|queue|heartbeat)/.*"
)

_STYLE = """
.picture img { image-rendering: pixelated; }
.picture .icon-button-wrapper { display: none; }
.gradio-container { max-width: 1100px !important; margin: 0 auto; }
@media (max-width: 700px) { .result { order: -1; } }
"""


def import_gradio(folder: Path) -> ModuleType:
    """Returns the package gradio, told to keep its files in a folder and to report to nobody.

    Raises:
      UserError: it is not installed.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
    os.environ["GRADIO_TEMP_DIR"] = str(folder)
    try:
        import gradio
    except ModuleNotFoundError as error:
        raise UserError(
            f"the demo needs the package {error.name}: pip install -e '.[demo]'"
        ) from None
    return gradio


def check_address(host: str, port: int) -> None:
    """Makes sure that this machine can listen there.

    Raises:
      TransientError: another program listens there.
      UserError: the address is not one of this machine, or the port needs an administrator.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except PermissionError:
        raise UserError(f"--port={port} needs an administrator; choose one above 1023") from None
    except socket.gaierror as error:
        raise UserError(f"--host={host} is no address: {error.strerror}") from None
    except OSError as error:
        raise TransientError(
            f"cannot listen on {host}:{port}: {error.strerror}; choose another --port"
        ) from None


class OwnFilesOnly:
    """ASGI middleware: answers only what the page asks for, and sets the page's policy."""

    def __init__(self, app: Any, folder: Path) -> None:
        """Wraps an app that serves the files of one folder."""
        self._app, self._folder = app, folder.resolve()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers a request, 404 for any other route."""

        async def send_with_policy(message: Any) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                message["headers"] = [
                    *message["headers"],
                    (b"content-security-policy", _POLICY.encode()),
                ]
            await send(message)

        if scope["type"] == "http" and not self._is_open(scope["path"]):
            await send_with_policy({"type": "http.response.start", "status": 404})
            await send({"type": "http.response.body", "body": b"not served"})
            return
        await self._app(scope, receive, send_with_policy)

    def _is_open(self, path: str) -> bool:
        route = path.removeprefix("/gradio_api").lstrip("/")
        if route.startswith(_FILE_ROUTE):
            file = Path(unquote(route.removeprefix(_FILE_ROUTE)))
            return file.resolve().is_relative_to(self._folder)
        return _ROUTES.fullmatch(route) is not None


def serve(page: Any, *, host: str, port: int, folder: Path, secret: Path | None) -> str:
    """Starts to serve a page of gradio in a thread, and returns its address.

    Args:
      page: `gradio.Blocks`.
      host: address to listen on.
      port: likewise.
      folder: the only one whose files are served.
      secret: a folder that is blocked in any case: the run's workdir; None without one.
    """
    import gradio
    from starlette.middleware import Middleware

    # Gradio asks its own server whether it has started; a proxy would not know it.
    os.environ["no_proxy"] = ",".join(filter(None, [os.environ.get("no_proxy"), "localhost", host]))
    fonts = ["system-ui", "sans-serif"]
    page.queue(default_concurrency_limit=1, max_size=100)
    _, address, _ = page.launch(
        server_name=f"[{host}]" if ":" in host else host,
        server_port=port,
        share=False,
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        run_history=False,
        enable_monitoring=False,
        num_workers=0,
        inbrowser=False,
        prevent_thread_lock=True,
        quiet=True,
        footer_links=[],
        allowed_paths=[str(folder)],
        blocked_paths=[str(secret.resolve())] if secret else [],
        app_kwargs={"middleware": [Middleware(OwnFilesOnly, folder=folder)]},
        theme=gradio.themes.Default(font=fonts, font_mono=["ui-monospace", "monospace"]),
        css=_STYLE,
    )
    return address
