"""What stands between the net and the page: which requests are answered, with which headers, how long files live.

Gradio's own server has many more routes than this page needs, and says more in its errors than a stranger should read.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from datetime import datetime, timedelta
from urllib.parse import unquote, urlsplit

import anyio
import gradio as gr
from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from mediffuse.files import is_full
from mediffuse.ui import api, store, uploads
from mediffuse.ui.controls import VOLUMES
from mediffuse.ui.faults import FAULT, FULL, UNFIT, log_place, said

API = "/gradio_api"
MAX_BODY = 4 << 20
"""Bytes of a request that is no upload. The paths of a DICOM series of 5000 files fit."""
MAX_TEXT = 8192
"""Characters of one value in it."""
MAX_OF_SESSION = 8
"""Runs that one visitor may have waiting or going on."""
MAX_VOLUMES = 4
"""Volumes that may wait: each takes minutes."""
RESERVE = 512 << 20
"""Bytes of the disk that uploads leave free."""

_ROUTES = re.compile(
    r"/|/config/?|/(assets|static|svelte)/.*|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/log(in|out)/?"
    rf"|{API}/(theme\.css|info/?|openapi\.json|user/?|login_check/?|app_id/?|startup-events|upload|upload_progress|"
    r"mcp(/.*)?|queue/(join|data|status)|cancel|reset/?|heartbeat/[^/]+|(run|api|call)/.+|file=.*)"
)
_ACTION = re.compile(rf"{API}/(?:(queue/join)|(run|api|call/v2|call)/([^/]+)/?)")

_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    "Cross-Origin-Opener-Policy": "same-origin-allow-popups",
}
_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-eval' 'nonce-{nonce}'",  # gr.HTML and `js=` compile their scripts
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self' data: blob:",
        "worker-src 'self' blob:",
        "media-src 'self' data: blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'self' https://huggingface.co https://*.hf.space",  # a Space is shown in a frame
    )
)

BUSY = "Many runs are waiting already: the server is busy. Try again in a minute."
NOT_FOUND = "There is nothing here for you. /gradio_api/info lists what scripts may call."
GONE = "A file of this request is not on the server any more: it was not used for a while. Choose it again."


class Page(gr.Blocks):
    """Blocks whose errors are fit for strangers, and whose public endpoints are for scripts."""

    async def process_api(self, *args, **kwargs) -> dict:
        request = kwargs.get("request")
        token = api.by_script.set(not _same_origin(request.headers, unknown=False) if request else True)
        try:
            return await super().process_api(*args, **kwargs)
        except Exception as error:  # noqa: BLE001 - strangers get a sentence
            raise said(error) from None
        finally:
            api.by_script.reset(token)

    async def postprocess_data(self, block_fn, *args, **kwargs) -> list:
        values = await super().postprocess_data(block_fn, *args, **kwargs)
        return api.plain(values, block_fn.outputs) if api.by_script.get() else values

    def get_api_info(self, *args, **kwargs) -> dict:
        return api.described(super().get_api_info(*args, **kwargs))


def paths_in(data: object) -> Iterator[str]:
    """The paths of the files that values of a request name."""
    if isinstance(data, dict):
        if isinstance(data.get("path"), str):
            yield data["path"]
        data = list(data.values())
    if isinstance(data, list):
        for each in data:
            yield from paths_in(each)


def in_use(blocks: gr.Blocks) -> Iterator[str]:
    """The files that runs which wait or go on have got."""
    for event in list(blocks._queue.event_ids_to_events.values()):
        if event.data:
            yield from paths_in(event.data.data)


def forget_sessions(holder, seconds: float) -> None:
    """Let go of what Gradio's StateHolder remembers of visitors who did nothing for so long."""
    oldest = datetime.now() - timedelta(seconds=seconds)
    busy = {event.session_hash for event in list(holder.blocks._queue.event_ids_to_events.values())}
    for session, used in list(holder.time_last_used.items()):
        if used < oldest and session not in busy:
            holder.session_data.pop(session, None)
            holder.time_last_used.pop(session, None)


@contextlib.asynccontextmanager
async def sweeping(app) -> AsyncIterator[None]:
    """The lifespan of the server: meanwhile, files are deleted in their time."""
    seconds = store.keep_seconds()

    async def sweep() -> None:
        while True:
            await asyncio.sleep(seconds / 10)
            forget_sessions(app.state_holder, seconds)
            if await anyio.to_thread.run_sync(store.sweep, seconds, list(in_use(app.get_blocks()))):
                uploads.forget()

    task = asyncio.create_task(sweep())
    try:
        yield
    finally:
        task.cancel()


class Refused(Exception):
    """A request that is not answered: (status, sentence)."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status, self.sentence = status, sentence


class Guard:
    """ASGI middleware around Gradio's routes. reserve: bytes of the disk that uploads leave free."""

    def __init__(self, app: ASGIApp, reserve: int = RESERVE) -> None:
        self.app, self.reserve = app, reserve

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/"))
        nonce = secrets.token_urlsafe(16)
        sending = _Sending(send, nonce, is_page=path == "/")
        try:
            receive = await self._checked(scope, path, receive)
            await self.app(scope, receive, sending)
        except Refused as refused:
            await _answer(path, refused.status, refused.sentence)(scope, receive, sending)
        except Exception as error:  # noqa: BLE001 - whatever it is, strangers get a sentence
            log_place(error)
            if not sending.started:
                answer = _answer(path, 507, FULL) if is_full(error) else _answer(path, 500, FAULT)
                await answer(scope, receive, sending)

    async def _checked(self, scope: Scope, path: str, receive: Receive) -> Receive:
        """Raises Refused, or returns where the application is to read the request's body from."""
        headers, blocks = Headers(scope=scope), scope["app"].get_blocks()
        if not _ROUTES.fullmatch(path):
            raise Refused(404, NOT_FOUND)
        if scope["app"].auth is not None and not _same_origin(headers):
            raise Refused(403, "Only the page itself may use a login.")
        if path.startswith(f"{API}/file="):
            file = unquote(path.removeprefix(f"{API}/file="))
            if "://" in file or file.startswith(("http:", "https:")):
                raise Refused(403, "Files from elsewhere are not fetched.")
            store.touch(file)
        if path == f"{API}/upload":
            length = headers.get("content-length", "0")
            if not store.has_room(int(length) if length.isdigit() else 0, self.reserve):
                raise Refused(507, FULL)
            return receive
        if scope["method"] != "POST" or path.startswith("/login"):
            return receive
        body = await _read(receive)
        asked = _parsed(body)
        check_values(asked)
        if action := _ACTION.fullmatch(path):
            check_action(blocks, action, asked, from_page=_same_origin(headers, unknown=False))
        return _replay(body, receive)


def check_action(blocks: gr.Blocks, action: re.Match, asked: dict, *, from_page: bool) -> None:
    """Raise Refused where a request (a match of `_ACTION`, its JSON) starts what it may not start, or not now."""
    joins, way, name = action.groups()
    if way in ("call", "call/v2") or asked.get("fn_index") is None:
        named = None if joins else unquote(name)
        found = [fn for fn in blocks.fns.values() if fn.api_name == named and named]
    else:
        found = [fn for fn in blocks.fns.values() if fn._id == asked["fn_index"]]
    public = [fn for fn in found if fn.api_visibility == "public" or (from_page and way not in ("call", "call/v2"))]
    if not public or (way in ("run", "api") and public[0].queue):
        raise Refused(404, NOT_FOUND)
    if not public[0].queue:
        return
    queue, session = blocks._queue, asked.get("session_hash")
    mine = sum(event.session_hash == session for event in list(queue.event_ids_to_events.values()))
    if session and mine >= MAX_OF_SESSION:
        raise Refused(503, f"You have {mine} runs waiting already. Wait for one, or stop it.")
    volumes = queue.event_queue_per_concurrency_id.get(VOLUMES)
    volumes_wait = public[0].concurrency_id == VOLUMES and volumes and len(volumes.queue) >= MAX_VOLUMES
    if volumes_wait or (queue.max_size is not None and len(queue) >= queue.max_size):
        raise Refused(503, BUSY)


def check_values(asked: dict) -> None:
    """Raise Refused for values that no control of the page has; mark the files that they name as used."""
    session = asked.get("session_hash")
    if session is not None and not (isinstance(session, str) and re.fullmatch(r"[\w-]{1,64}", session)):
        raise Refused(400, UNFIT)
    if not isinstance(asked.get("fn_index"), int | None) or not isinstance(asked.get("data", []), list):
        raise Refused(400, UNFIT)
    todo: list = [asked]
    while todo:
        value = todo.pop()
        if isinstance(value, dict):
            todo += [*value, *value.values()]
        elif isinstance(value, list):
            todo += value
        elif isinstance(value, str) and len(value) > MAX_TEXT:
            raise Refused(400, f"A value has more than {MAX_TEXT} characters. {UNFIT}")
        elif isinstance(value, float) and not math.isfinite(value):
            raise Refused(400, UNFIT)
    for path in paths_in(asked.get("data")):
        if re.match(r"\s*[a-z]+:", path, re.IGNORECASE):
            raise Refused(400, "Files are uploaded (POST /gradio_api/upload), not fetched from an address.")
        if store.is_own(path) and not store.exists(path):
            raise Refused(410, GONE)
        store.touch(path)


def _parsed(body: bytes) -> dict:
    try:
        asked = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        raise Refused(400, "This is no JSON that can be read.") from None
    if not isinstance(asked, dict):
        raise Refused(400, UNFIT)
    return asked


async def _read(receive: Receive) -> bytes:
    """The body of a request; raises Refused if it is too long."""
    body = b""
    while True:
        message = await receive()
        body += message.get("body", b"")
        if len(body) > MAX_BODY:
            raise Refused(413, f"A request has at most {MAX_BODY >> 20} MiB; files go to /gradio_api/upload.")
        if not message.get("more_body"):
            return body


def _replay(body: bytes, receive: Receive) -> Receive:
    waiting = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return waiting.pop() if waiting else await receive()

    return replay


def _same_origin(headers: Headers, unknown: bool = True) -> bool:
    """Whether a request comes from our own page, or opens it; `unknown`: what to say where no browser tells."""
    if headers.get("sec-fetch-mode") == "navigate":
        return True
    if site := headers.get("sec-fetch-site"):
        return site in ("same-origin", "none")
    if origin := headers.get("origin"):
        return urlsplit(origin).netloc in (headers.get("host"), headers.get("x-forwarded-host"))
    return unknown


def _answer(path: str, status: int, sentence: str) -> Response:
    if path == f"{API}/upload":  # its text is what the page shows
        return PlainTextResponse(sentence, status)
    return JSONResponse({"detail": sentence, "error": sentence}, status)


class _Sending:
    """`send` that adds the headers, and to the scripts of the page itself the policy's nonce."""

    def __init__(self, send: Send, nonce: str, *, is_page: bool) -> None:
        self.send, self.nonce, self.is_page = send, nonce, is_page
        self.started = False
        self.held: Message | None = None
        self.body = b""

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            headers = MutableHeaders(scope=message)
            for name, value in _HEADERS.items():
                headers[name] = value
            headers["Content-Security-Policy"] = _POLICY.format(nonce=self.nonce)
            if self.is_page and "text/html" in headers.get("content-type", ""):
                headers["Cache-Control"] = "no-store"
                self.held = message
                return
        elif self.held and message["type"] == "http.response.body":
            self.body += message.get("body", b"")
            if message.get("more_body"):
                return
            # Gradio writes "<" of what it puts into a script as \u003c: there are no other tags than its own.
            body = self.body.replace(b"<script", f'<script nonce="{self.nonce}"'.encode())
            if body and "content-length" in (headers := MutableHeaders(scope=self.held)):
                headers["content-length"] = str(len(body))
            await self.send(self.held)
            self.held, message = None, {"type": "http.response.body", "body": body}
        await self.send(message)
