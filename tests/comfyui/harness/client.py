"""Talk to a ComfyUI server: queue API-format workflows, wait for them, read what they returned or why they failed."""

import json
import time
import urllib.error
import urllib.request
import uuid
from dataclasses import dataclass
from pathlib import Path

import numpy

from .patience import Patience

# For one answer, which takes milliseconds: it may find the server in the middle of a step.
ANSWER_SECONDS = 120


class PromptRejected(Exception):
    """The server refused a workflow before running it; ``details`` is its answer."""

    def __init__(self, details: dict):
        super().__init__(json.dumps(details, indent=2))
        self.details = details


class RunFailed(Exception):
    """A workflow that should have run to the end did not."""


@dataclass(frozen=True)
class Result:
    """How one queued workflow ended.

    status: "success", "error" or "interrupted".
    error: of the node that failed or was interrupted, None otherwise: ``node_id``, ``node_type``, and after a failure
        ``exception_type``, ``exception_message`` and ``traceback`` (lines).
    outputs: node id -> what the node passed to the interface (its ``ui``).
    cached: ids of the nodes that did not run because nothing about them changed.
    """

    status: str
    error: dict | None
    outputs: dict[str, dict]
    cached: tuple[str, ...]

    def latent(self, node, stream: int = 0) -> numpy.ndarray:
        """The latent that a ``SVGEARTestSave`` node wrote, [B, C, T, H, W]; of several streams the video, or what else was denoised."""
        return numpy.load(Path(self.outputs[_node_id(node)]["file"][stream]))

    def text(self, node) -> str:
        """What an output node shows as text: ``SVGEARTestShowText``, ``SVGEARReport``, ``PreviewAny``."""
        return "".join(self.outputs[_node_id(node)]["text"])


def _node_id(node) -> str:
    # an output of a graph is [node id, index]
    return node[0] if isinstance(node, (list, tuple)) else str(node)


class Client:
    """One server by its address. Every method raises where the server answers with an HTTP error."""

    def __init__(self, address: str):
        self.address = address
        self.client_id = uuid.uuid4().hex

    def run(self, graph: dict, timeout: float = 120) -> Result:
        """Queue an API-format workflow, wait for its end, and raise RunFailed unless it succeeded."""
        result = self.attempt(graph, timeout)
        if result.status != "success":
            raise RunFailed(f"{result.status}: {_readable(result.error)}")
        return result

    def attempt(self, graph: dict, timeout: float = 120) -> Result:
        """Like ``run``, but failing and being interrupted are results too."""
        return self.wait(self.queue(graph), timeout)

    def queue(self, graph: dict) -> str:
        """Queue a workflow and return its prompt id; raise PromptRejected when validation fails."""
        try:
            return self._post("/prompt", {"prompt": graph, "client_id": self.client_id})["prompt_id"]
        except urllib.error.HTTPError as error:
            if error.code != 400:
                raise
            raise PromptRejected(json.loads(error.read())) from None

    def wait(self, prompt_id: str, timeout: float = 120) -> Result:
        """Wait until a queued workflow has ended; ``timeout`` is in seconds of an idle machine."""
        patience = Patience(timeout)
        while patience.lasts():
            entry = self.get(f"/history/{prompt_id}").get(prompt_id)
            if entry is not None:
                return _result(entry)
            time.sleep(0.05)
        self.interrupt()
        raise TimeoutError(f"workflow {prompt_id} did not end within {patience}")

    def interrupt(self) -> None:
        """Interrupt the running workflow, as the Cancel button does."""
        self._post("/interrupt", {})

    def wait_for_evaluations(self, count: int, timeout: float = 60) -> None:
        """Return once a ``SVGEARTestMidSampling`` node has seen ``count`` evaluations since ``reset_counters``."""
        patience = Patience(timeout)
        while self.get("/svg-ear-tests/state")["evaluations"] < count:
            if not patience.lasts():
                raise TimeoutError(f"fewer than {count} evaluations of the model within {patience}")
            time.sleep(0.02)

    def state(self) -> dict:
        """Of the server process, best while nothing runs: ``evaluations`` and ``attention_calls`` counted by fixture nodes,
        ``tensors`` alive and the ``tensor_bytes`` that they hold."""
        return self.get("/svg-ear-tests/state?memory=1")

    def reset_counters(self) -> None:
        """Set ``evaluations`` and ``attention_calls`` to 0."""
        self._post("/svg-ear-tests/reset", {})

    def free(self) -> None:
        """Unload models and drop cached node outputs, as the two buttons in the interface do."""
        self._post("/free", {"unload_models": True, "free_memory": True})

    def object_info(self, node: str | None = None) -> dict:
        """The schema of one node, {} if the server does not know it; of all nodes without an argument."""
        return self.get("/object_info").copy() if node is None else self.get(f"/object_info/{node}").get(node, {})

    def answers(self) -> bool:
        """Whether the server accepts requests yet."""
        try:
            self.get("/system_stats")
        except OSError:
            return False
        return True

    def get(self, path: str):
        """GET a path and decode its JSON."""
        with urllib.request.urlopen(self.address + path, timeout=ANSWER_SECONDS) as answer:
            return json.load(answer)

    def _post(self, path: str, body: dict):
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(self.address + path, json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:
            text = answer.read()
        return json.loads(text) if text else None


def _result(entry: dict) -> Result:
    messages = entry["status"]["messages"]
    events = {event: data for event, data in messages}
    if "execution_interrupted" in events:
        status, error = "interrupted", _facts(events["execution_interrupted"])
    elif "execution_error" in events:
        status, error = "error", _facts(events["execution_error"])
    else:
        status, error = "success", None
    return Result(status, error, entry["outputs"], tuple(events.get("execution_cached", {}).get("nodes", ())))


def _facts(event: dict) -> dict:
    # the event also holds every input of the node, tensors printed in full
    wanted = ("node_id", "node_type", "exception_type", "exception_message", "traceback")
    return {key: event[key] for key in wanted if key in event}


def _readable(error: dict) -> str:
    where = f"node {error['node_id']} ({error['node_type']})"
    return f"{where}: {error.get('exception_message', '')}\n{''.join(error.get('traceback', ())[-8:])}"
