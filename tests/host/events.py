"""What ComfyUI tells the browser while it works: messages over its websocket, gathered in a thread."""

import asyncio
import json
import struct
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import aiohttp

TEXT, PREVIEW = 3, (1, 4)  # kinds of binary messages


class Events:
    """Connected to the server as that client, as long as the `with` block lasts."""

    def __init__(self, address: str, client: str = "tests") -> None:
        self.url = f"ws://{address}/ws?clientId={client}"
        self.messages: list[dict[str, Any]] = []
        self.texts: list[tuple[str, str]] = []  # node, text
        self.previews = 0
        self._connected, self._done = threading.Event(), threading.Event()
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._listen()), daemon=True)

    def __enter__(self) -> "Events":
        self._thread.start()
        assert self._connected.wait(30), "no websocket"
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join(10)

    def wait_for(self, happened: Callable[["Events"], bool], seconds: float = 120) -> None:
        """Wait until what was told so far is enough."""
        with self._changed:
            assert self._changed.wait_for(lambda: happened(self), seconds), self.messages[-5:]

    def steps(self, node: str) -> list[int]:
        """How far the bar of a node was, each time."""
        told = (message["data"] for message in self.messages if message["type"] == "progress")
        return [data["value"] for data in told if data["node"] == node]

    async def _listen(self) -> None:
        async with aiohttp.ClientSession() as session, session.ws_connect(self.url) as socket:
            self._connected.set()
            while not self._done.is_set():
                try:
                    message = await socket.receive(timeout=0.5)
                except asyncio.TimeoutError:
                    continue
                with self._changed:
                    if message.type == aiohttp.WSMsgType.TEXT:
                        self.messages.append(json.loads(message.data))
                    elif message.type == aiohttp.WSMsgType.BINARY:
                        self._hear(message.data)
                    self._changed.notify_all()

    def _hear(self, data: bytes) -> None:
        (kind,) = struct.unpack(">I", data[:4])
        if kind == TEXT:
            (length,) = struct.unpack(">I", data[4:8])
            self.texts.append((data[8 : 8 + length].decode(), data[8 + length :].decode()))
        elif kind in PREVIEW:
            self.previews += 1
