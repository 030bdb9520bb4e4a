"""An OpenAI-compatible server that misbehaves on request: a process of its own, on a free port of the loopback.

`POST /behave` sets how the coming requests are met (a list of behaviours, one a request, then `ok` again), `GET /log`
tells which requests came. Run as `python tests/helpers/fake_server.py`; its first line of output is its port.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

ANSWERS = re.compile(r"<A>(.*)</A>.*<B>(.*)</B>", re.DOTALL)


class State:
    """What the server was told and what it saw."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.reset()

    def reset(self) -> None:
        self.plan: list[dict[str, Any]] = []
        self.always: dict[str, Any] = {"kind": "ok"}
        self.log: list[dict[str, Any]] = []
        self.adapters: dict[str, str] = {}
        self.under_way = self.most_under_way = 0

    def next_behaviour(self) -> dict[str, Any]:
        with self.lock:
            return self.plan.pop(0) if self.plan else self.always


STATE = State()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        self.answer(200, {"log": STATE.log, "adapters": STATE.adapters, "most_under_way": STATE.most_under_way})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self.path == "/behave":
            STATE.reset()
            STATE.plan, STATE.always = body["plan"], body["always"]
            return self.answer(200, {})
        with STATE.lock:
            entry = {"path": self.path, "body": body, "key": self.headers.get("Authorization"), "at": time.monotonic()}
            STATE.log.append(entry)
            STATE.under_way += 1
            STATE.most_under_way = max(STATE.most_under_way, STATE.under_way)
        try:
            self.behave(STATE.next_behaviour(), body)
        except (BrokenPipeError, ConnectionResetError):
            entry["left"] = True  # the client did not wait
        finally:
            with STATE.lock:
                STATE.under_way -= 1

    def behave(self, behaviour: dict[str, Any], body: dict[str, Any]) -> None:
        kind = behaviour["kind"]
        time.sleep(behaviour.get("delay", 0.0))
        if kind == "status":
            text = behaviour.get("text", json.dumps({"error": {"message": behaviour.get("message", "no")}}))
            key = self.headers.get("Authorization", "").removeprefix("Bearer ")
            return self.send(behaviour["status"], text.replace("$KEY", key).encode(), behaviour.get("headers", {}))
        if kind == "close":
            return self.hang_up()
        if kind == "text":
            return self.send(200, behaviour["text"].encode())
        status, answer = route(self.path, body, behaviour)
        text = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        if kind == "truncated":  # says more than it sends
            return self.send(status, text[: len(text) // 2], {"Content-Length": str(len(text))}, hang_up=True)
        if kind == "half":  # whole as HTTP, broken as JSON
            return self.send(status, text[: len(text) // 2])
        if kind == "slow":  # byte by byte: each arrives in time, the whole does not
            self.send(status, b"", {"Content-Length": str(len(text))})
            for byte in text:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
            return None
        self.send(status, text)

    def send(self, status: int, text: bytes, headers: dict[str, str] | None = None, hang_up: bool = False) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(text)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(text)
        if hang_up:
            self.hang_up()

    def hang_up(self) -> None:
        self.wfile.flush()
        self.close_connection = True

    def answer(self, status: int, payload: dict[str, Any]) -> None:
        self.send(status, json.dumps(payload).encode())


def route(path: str, body: dict[str, Any], behaviour: dict[str, Any]) -> tuple[int, Any]:
    """Status and answer of a server that means well."""
    if path == "/v1/chat/completions":
        return 200, chat(body, behaviour)
    if path == "/v1/completions":
        return completions(body, behaviour)
    if path == "/v1/load_lora_adapter":
        return load_adapter(body)
    if path == "/v1/unload_lora_adapter":
        known = STATE.adapters.pop(body["lora_name"], None) is not None
        return (200, b"Success") if known else (404, error(f"adapter {body['lora_name']} cannot be found"))
    return 404, error(f"no route {path}")


def error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "invalid_request_error"}}


def chat(body: dict[str, Any], behaviour: dict[str, Any]) -> dict[str, Any]:
    """Prefers the longer of the answers between <A></A> and <B></B>, or says what the behaviour says."""
    says = behaviour.get("says")
    if says is None:
        found = ANSWERS.search(body["messages"][-1]["content"])
        a, b = (len(text) for text in found.groups()) if found else (0, 0)
        says = f"I have read both. [[{'C' if a == b else 'A' if a > b else 'B'}]]"
    message = {"role": "assistant", "content": says}
    return {
        "model": body["model"],
        "choices": [{"index": 0, "message": message, "finish_reason": behaviour.get("finish_reason", "stop")}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 7},
    }


def load_adapter(body: dict[str, Any]) -> tuple[int, Any]:
    folder = Path(body["lora_path"])
    if not (folder / "adapter_config.json").is_file() or not (folder / "adapter_model.safetensors").is_file():
        return 404, error(f"no adapter found for {folder}")
    if body["lora_name"] in STATE.adapters:
        return 400, error(f"the lora adapter '{body['lora_name']}' has already been loaded")
    STATE.adapters[body["lora_name"]] = str(folder)
    return 200, b"Success: LoRA adapter added"


def completions(body: dict[str, Any], behaviour: dict[str, Any]) -> tuple[int, Any]:
    """Tokens that count up from the seed, with a stop id behind the third, unless they are cut before it."""
    if body["model"] not in STATE.adapters:
        return 404, error(f"the model {body['model']} does not exist")
    choices = []
    for index in range(body["n"]):
        new = [10 + (body["seed"] + index + step) % 200 for step in range(3)] + body["stop_token_ids"][:1]
        cut = len(new) > body["max_tokens"]
        choice = {"index": index, "text": f"text {index}", "finish_reason": "length" if cut else "stop"}
        if behaviour.get("ids", True):
            choice["token_ids"] = new[: body["max_tokens"]]
        choices.append({**choice, **behaviour.get("choice", {})})
    choices.reverse()  # in any order
    return 200, {"model": behaviour.get("model", body["model"]), "choices": choices}


class Fake:
    """The process, seen from a test."""

    def __init__(self, process: subprocess.Popen[str], port: int) -> None:
        self.process, self.port = process, port
        self.base_url = f"http://127.0.0.1:{port}/v1"

    def behave(self, *plan: dict[str, Any], always: dict[str, Any] | None = None) -> None:
        """Forgets all and meets the coming requests with `plan`, then with `always`."""
        told = json.dumps({"plan": plan, "always": always or {"kind": "ok"}}).encode()
        urllib.request.urlopen(f"http://127.0.0.1:{self.port}/behave", told).read()

    def seen(self) -> dict[str, Any]:
        """`log`, `adapters` and `most_under_way`."""
        seen: dict[str, Any] = json.loads(urllib.request.urlopen(f"http://127.0.0.1:{self.port}/log").read())
        return seen


@contextmanager
def running() -> Iterator[Fake]:
    """Starts a server, and ends it."""
    process = subprocess.Popen([sys.executable, "-I", __file__], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        yield Fake(process, int(process.stdout.readline()))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


class Listener(ThreadingHTTPServer):
    """Silent about clients that left."""

    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """Nothing: leaving is what a cancelled client does."""


if __name__ == "__main__":
    listening = Listener(("127.0.0.1", int(sys.argv[1]) if sys.argv[1:] else 0), Handler)
    print(listening.server_port, flush=True)
    listening.serve_forever()
