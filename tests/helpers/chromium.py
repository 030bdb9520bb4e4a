"""A real browser: headless Chromium, spoken to over its DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
_FLAGS = ("--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-port=0",
          "--no-first-run", "--disable-dev-shm-usage", "about:blank")  # fmt: skip


class Page:
    """A page of the browser.

    Attributes:
        problems: errors and warnings of the console, and exceptions, as text.
        requests: addresses that the page asked for.
    """

    def __init__(self, socket: aiohttp.ClientWebSocketResponse) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self.problems: list[str] = []
        self.requests: list[str] = []

    async def listen(self) -> None:
        """Reads what the browser says, until it ends."""
        async for message in self._socket:
            said = json.loads(message.data)
            if "id" in said:
                self._answers.pop(said["id"]).set_result(said)
            else:
                self._hear(said["method"], said["params"])

    def _hear(self, event: str, params: dict[str, Any]) -> None:
        if event == "Runtime.exceptionThrown":
            self.problems.append(json.dumps(params["exceptionDetails"])[:500])
        elif event == "Runtime.consoleAPICalled" and params["type"] in ("error", "warning", "assert"):
            self.problems.append(json.dumps(params["args"])[:500])
        elif event == "Log.entryAdded" and params["entry"]["level"] in ("error", "warning"):
            self.problems.append(params["entry"]["text"][:500])
        elif event == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"][:200])

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        """Sends a command and waits for its result."""
        number = next(self._numbers)
        self._answers[number] = asyncio.get_running_loop().create_future()
        await self._socket.send_str(json.dumps({"id": number, "method": method, "params": params}))
        answer = await asyncio.wait_for(self._answers[number], 120)
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']}")
        return answer["result"]

    async def evaluate(self, script: str) -> Any:
        """The value of an expression in the page."""
        result = await self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in result:
            raise RuntimeError(json.dumps(result["exceptionDetails"])[:500])
        return result["result"].get("value")

    async def show(self, width: int = 1440, height: int = 900, dark: bool = False) -> None:
        """Sets the window, and the reader's taste."""
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        taste = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        await self.call("Emulation.setEmulatedMedia", features=taste)

    async def open(self, path: Path, until: str) -> None:
        """Opens a file and waits until an expression is true."""
        await self.call("Page.navigate", url=path.resolve().as_uri())
        await self.wait_for(until)

    async def wait_for(self, expression: str) -> None:
        """Waits until an expression is true."""
        end = time.monotonic() + 60
        while not await self.evaluate(expression):
            if self.problems or time.monotonic() > end:
                raise TimeoutError(f"{expression} did not come true; problems: {self.problems}")
            await asyncio.sleep(0.05)

    async def screenshot(self, path: Path, whole: bool = True) -> None:
        """Writes what is to be seen as a PNG file."""
        result = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(result["data"]))

    async def print_to(self, path: Path) -> None:
        """Writes the page as a PDF file."""
        result = await self.call("Page.printToPDF", printBackground=True)
        path.write_bytes(base64.b64decode(result["data"]))


@contextlib.asynccontextmanager
async def browser_page(profile: Path) -> AsyncIterator[Page]:
    """A page of a browser that ends with the block.

    Args:
        profile: an empty folder for the browser's own files.
    """
    assert CHROMIUM is not None
    environment = {**os.environ, "HOME": str(profile)}
    process = subprocess.Popen(
        [CHROMIUM, *_FLAGS, f"--user-data-dir={profile}"],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        port = await _port_of(profile)
        async with aiohttp.ClientSession(trust_env=False) as session:
            async with session.get(f"http://127.0.0.1:{port}/json/list") as response:
                targets = await response.json()
            target = next(target for target in targets if target["type"] == "page")
            async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
                page = Page(socket)
                listening = asyncio.create_task(page.listen())
                for domain in ("Page", "Runtime", "Log", "Network"):
                    await page.call(f"{domain}.enable")
                yield page
                listening.cancel()
    finally:
        process.terminate()
        process.wait(timeout=20)


async def _port_of(profile: Path) -> int:
    path = profile / "DevToolsActivePort"
    end = time.monotonic() + 60
    while not (path.exists() and path.read_text().strip()):
        if time.monotonic() > end:
            raise TimeoutError("the browser did not start")
        await asyncio.sleep(0.05)
    return int(path.read_text().split()[0])
