"""A real ComfyUI in a process of its own, with a folder of its own, spoken to over HTTP."""

import io
import json
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .finding import ROOT, host_python, is_package

START_S, RUN_S = 120, 240  # seconds that a slow machine may take
Prompt = dict[str, dict[str, Any]]


@dataclass(frozen=True)
class Run:
    """How a prompt went, as ComfyUI's history tells it."""

    id: str
    history: Mapping[str, Any]

    @property
    def succeeded(self) -> bool:
        return self.history["status"]["status_str"] == "success"

    @property
    def messages(self) -> dict[str, Mapping[str, Any]]:
        return {name: content for name, content in self.history["status"]["messages"]}

    @property
    def error(self) -> str:
        """The sentence that the user sees; "interrupted" where that is what happened."""
        if "execution_interrupted" in self.messages:
            return "interrupted"
        return self.messages.get("execution_error", {}).get("exception_message", "").strip()

    @property
    def cached(self) -> set[str]:
        """The nodes that did not run."""
        return set(self.messages.get("execution_cached", {}).get("nodes", ()))


class Server:
    """ComfyUI over `folder`, with this repository linked into its custom_nodes. options: more of its command line."""

    def __init__(self, host: Path, folder: Path, *options: str) -> None:
        self.host, self.folder, self.options = host, folder, options
        self.log = folder / "server.log"
        for name in ("custom_nodes", "models", "input", "output", "temp", "user"):
            (folder / name).mkdir(parents=True, exist_ok=True)
        link = folder / "custom_nodes" / "C-LoRA"
        if not link.exists():
            link.symlink_to(ROOT, target_is_directory=True)
        self.process: subprocess.Popen | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.address = f"127.0.0.1:{port}"
        options = ["--listen", "127.0.0.1", "--port", str(port), "--base-directory", str(self.folder)]
        options += self.options
        options += ["--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
        options += ["--logging-level", "DEBUG"] if is_package(self.host) else []  # or it tells no import times
        launcher = str(Path(__file__).with_name("launch.py"))
        command = [host_python(self.host), launcher, str(self.host), *_device_options(), *options]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, cwd=self.folder)
        self.wait_for(self._answers, START_S, "ComfyUI does not start")

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            try:
                self.process.wait(20)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(20)
            self.process = None

    def restart(self) -> None:
        self.stop()
        self.start()

    def get(self, path: str) -> Any:
        return json.loads(self.read(path))

    def read(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://{self.address}{path}", timeout=30) as answer:
            return answer.read()

    def post(self, path: str, content: object = None) -> Any:
        """What it answers, also where that is a refusal."""
        data = json.dumps(content or {}).encode()
        request = urllib.request.Request(f"http://{self.address}{path}", data, {"Content-Type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            text = error.read()
        return json.loads(text) if text else None

    def queue(self, prompt: Prompt, client: str = "tests") -> str:
        """Put a prompt into the queue; its id."""
        answer = self.post("/prompt", {"prompt": prompt, "client_id": client})
        assert "prompt_id" in answer and not answer.get("node_errors"), answer
        return answer["prompt_id"]

    def finished(self, prompt_id: str, seconds: float = RUN_S) -> Run:
        """Wait for a queued prompt."""
        histories: list[Mapping[str, Any]] = []

        def done() -> bool:
            if found := self.get(f"/history/{prompt_id}"):
                histories.append(found[prompt_id])
            return bool(histories)

        self.wait_for(done, seconds, f"prompt {prompt_id} does not end")
        return Run(prompt_id, histories[0])

    def run(self, prompt: Prompt, seconds: float = RUN_S) -> Run:
        return self.finished(self.queue(prompt), seconds)

    def pictures(self, run: Run, node: str) -> np.ndarray:
        """What a SaveImage or PreviewImage node showed, (n, h, w, 3) uint8."""
        shown = []
        for entry in run.history["outputs"][node]["images"]:
            query = urllib.parse.urlencode({key: entry[key] for key in ("filename", "subfolder", "type")})
            shown.append(np.array(Image.open(io.BytesIO(self.read(f"/view?{query}"))).convert("RGB")))
        return np.stack(shown)

    @property
    def results_folder(self) -> Path:
        return self.folder / "user" / "__clora" / "results"

    @property
    def results(self) -> dict[str, int]:
        """The files that Train Steps keep → which writing of the file it is."""
        return {path.name: path.stat().st_ino for path in sorted(self.results_folder.glob("*.safetensors"))}

    def wait_for(self, happened: Callable[[], bool], seconds: float, what: str) -> None:
        end = time.monotonic() + seconds
        while not happened():
            alive = self.process and self.process.poll() is None
            assert alive and time.monotonic() < end, f"{what}:\n{self.log.read_text(errors='replace')[-4000:]}"
            time.sleep(0.2)

    def _answers(self) -> bool:
        try:
            return bool(self.get("/queue"))
        except OSError:
            return False


def _device_options() -> list[str]:
    import torch

    return [] if torch.cuda.is_available() else ["--cpu"]
