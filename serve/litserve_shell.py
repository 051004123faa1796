"""The only file that knows LitServe: its processes, its restarts and its web app, with our loop and our routes inside.

One LitAPI (loads the model in a worker), one LitSpec (all endpoints), one LitLoop (our engine loop). LitServe's queues,
its transport and its own counters are not used. tests/http/test_litserve_facts.py holds the facts this rests on.
"""

import gc
import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

import litserve
from litserve.loops import LitLoop
from litserve.specs.base import LitSpec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.errors import ApiError, StartupError
from serve.http_protocol import BoundedProtocol, ConnectionLimits
from serve.processes import watch_parent
from serve.routes.responses import DISCARDED_BODIES
from serve.worker import Sockets, WorkerLoop, hello_of

STARTUP_POLL_SECONDS = 0.05
DRAIN_POLL_SECONDS = 0.02
MONITOR_SECONDS = 0.25
KEEP_ALIVE_SECONDS = 75  # longer than proxies and clients keep theirs, or they meet a closed connection
LONGEST_BACKOFF_SECONDS = 30.0


@dataclass(frozen=True)
class WorkerConfig:
    """All that a worker process is told. Plain values, for they are pickled."""

    folder: Path
    model_path: Path
    runner: str
    device: str
    dtype: str
    threads: int | None
    cache_tokens: int | None
    max_model_len: int | None
    max_batch_size: int
    num_apis: int
    stall_seconds: float
    step_timing: bool
    log_level: str


class EngineLoop(LitLoop):
    """The worker's main thread, from the moment the model is loaded."""

    def __call__(self, lit_api: "EngineAPI", device: str, worker_id: int, *unused: Any) -> None:
        lit_api.serve(worker_id)


class EngineAPI(litserve.LitAPI):
    """Loads the model in the worker; in HTTP processes, asks for the key."""

    def __init__(self, config: WorkerConfig, spec: "Face") -> None:
        super().__init__(loop=EngineLoop(), spec=spec)
        self._config = config

    def setup(self, device: str) -> None:
        """In the worker. An error is told in one line, to the terminal and to the main process."""
        config = self._config
        watch_parent(config.folder)
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; the main process decides
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))  # a clean end frees the libraries' semaphores
        logging.basicConfig(level=config.log_level.upper(), format="%(levelname)s %(name)s: %(message)s")
        logging.getLogger("litserve").setLevel(config.log_level.upper())
        try:
            self._engine, self._why = _load_engine(config)
        except Exception as error:
            logging.getLogger("litserve").setLevel(logging.CRITICAL + 1)
            logging.getLogger(__name__).debug("the model could not be loaded", exc_info=True)
            line = " ".join(str(error).split()) or type(error).__name__
            (config.folder / "failure.txt").write_text(line)
            raise

    def serve(self, worker_id: int) -> None:
        """For ever."""
        from serve.metrics import worker_observer

        config = self._config
        sockets = Sockets(config.folder, worker_id, config.num_apis)
        sockets.greet(hello_of(sockets, self._engine.runner, self._why))
        observe = worker_observer(timing=config.step_timing)
        gc.freeze()  # what is loaded stays: a full collection of it stops all streams for tenths of a second
        WorkerLoop(self._engine, sockets, stall_seconds=config.stall_seconds, observe=observe).run()

    async def authorize(self, request: Request) -> None:
        """LitServe puts this before every endpoint."""
        self.spec.service.check_key(request.url.path, request.headers)


def _load_engine(config: WorkerConfig) -> tuple[Any, str]:
    from serve.engine.engine import Engine, EngineLimits
    from serve.engine.loader import load_runner
    from serve.engine.runner import BLOCK_SIZE, RunnerOptions

    options = RunnerOptions(
        max_slots=config.max_batch_size,
        num_blocks=None if config.cache_tokens is None else max(1, config.cache_tokens // BLOCK_SIZE),
        max_model_len=config.max_model_len,
        dtype=config.dtype,
        device=config.device,
        num_threads=config.threads,
    )
    loaded = load_runner(config.model_path, config.runner, options)
    clock = time.perf_counter if config.step_timing else None
    return Engine(loaded.runner, EngineLimits(), clock), loaded.reason


class Face(LitSpec):
    """All endpoints. In a worker it is an empty shell: routes, settings and tokenizer stay in the HTTP processes."""

    def __init__(self, service: Any) -> None:
        super().__init__()
        self.api_path = "/generate"
        self.service = service

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return state | {"service": None, "_endpoints": []}

    @property
    def stream(self) -> bool:
        return True  # or LitServe compresses every answer, and waits for it

    def pre_setup(self, lit_api: litserve.LitAPI) -> None:
        from serve.routes.generate import GenerateRoute
        from serve.routes.health import HealthRoutes
        from serve.routes.openai import ChatRoute, CompletionsRoute, ModelsRoutes
        from serve.routes.page import PageRoute
        from serve.routes.quality import QualityRoutes

        health = HealthRoutes(self.service)
        self.add_endpoint("/generate", GenerateRoute(self.service).generate, ["POST"])
        quality = QualityRoutes(self.service)
        self.add_endpoint("/quality/score", quality.score, ["POST"])
        self.add_endpoint("/quality/diagnose", quality.diagnose, ["POST"])
        self.add_endpoint("/quality/compare", quality.compare, ["POST"])
        models = ModelsRoutes(self.service)
        self.add_endpoint("/v1/models", models.models, ["GET"])
        self.add_endpoint("/v1/models/{model_id:path}", models.model, ["GET"])
        self.add_endpoint("/v1/completions", CompletionsRoute(self.service).generate, ["POST"])
        self.add_endpoint("/v1/chat/completions", ChatRoute(self.service).generate, ["POST"])
        self.add_endpoint("/livez", health.livez, ["GET"])
        self.add_endpoint("/readyz", health.readyz, ["GET"])
        self.add_endpoint("/metrics", health.metrics, ["GET"])
        self.add_endpoint("/ui", PageRoute().page, ["GET"])


class Front:
    """Pure ASGI, outermost: starts the service with its HTTP process; shows the page at /, which LitServe takes."""

    def __init__(self, app: ASGIApp, service: Any) -> None:
        self._app = app
        self._service = service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            self._service.start(scope["app"].response_queue_id)
            gc.freeze()  # as in the worker
            try:
                await self._app(scope, receive, send)
            finally:
                self._service.stop()
            return
        if scope["type"] == "http" and scope["path"] == "/":
            scope = {**scope, "path": "/ui", "raw_path": b"/ui"}
        await self._app(scope, receive, send)


class Server(litserve.LitServer):
    """LitServer that waits longer each time before it restarts a worker, and does not once it is stopping."""

    stopping = False
    _backoff_seconds = 0.0
    _restarted_at = 0.0

    def launch_single_inference_worker(self, lit_api: litserve.LitAPI, worker_id: int) -> Any:
        if time.monotonic() - self._restarted_at > 2 * LONGEST_BACKOFF_SECONDS:
            self._backoff_seconds = 0.0
        time.sleep(self._backoff_seconds)
        self._backoff_seconds = min(LONGEST_BACKOFF_SECONDS, 2 * self._backoff_seconds + 0.5)
        while self.stopping:  # we are on LitServe's monitor thread, which ends with the process
            time.sleep(1)
        self._restarted_at = time.monotonic()
        return super().launch_single_inference_worker(lit_api, worker_id)


def build_server(config: WorkerConfig, service: Any) -> Server:
    """A server that is ready to run()."""
    spec = Face(service)
    server = Server(
        EngineAPI(config, spec),
        accelerator="cpu",  # the worker's own device is in WorkerConfig
        devices=1,
        workers_per_device=service.settings.workers,
        timeout=False,
        restart_workers=True,
        middlewares=[(Front, {"service": service})],
    )
    server.monitor_internal = MONITOR_SECONDS
    server.uvicorn_graceful_timeout = 5
    _install_error_shape(server.app)
    _describe(server.app)
    return server


def _install_error_shape(app: Any) -> None:
    from serve.openai_answers import OpenAIError
    from serve.routes.openai import PREFIX
    from serve.routes.responses import error_response

    def answer(request: Request, error: ApiError) -> Response:
        return error_response(OpenAIError(error) if request.url.path.startswith(PREFIX) else error)

    async def on_api_error(request: Request, error: ApiError) -> Response:
        return answer(request, error)

    async def on_http_error(request: Request, error: HTTPException) -> Response:
        remedies = {404: "see /docs for the paths", 405: "see /docs for the methods of this path"}
        said = f"{request.method} {request.url.path}: {error.detail}"
        return answer(request, ApiError(error.status_code, said, remedy=remedies.get(error.status_code)))

    async def on_any_error(request: Request, error: Exception) -> Response:
        return answer(request, ApiError(500, "internal error; the server's log says more"))

    app.add_exception_handler(ApiError, on_api_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(Exception, on_any_error)


def _describe(app: Any) -> None:
    """Give /docs the bodies of POST requests, which the endpoints read themselves."""
    from serve.openai_schemas import ChatFields, CompletionFields, body_schema
    from serve.routes.quality import CompareRequest, DiagnoseRequest, ScoreRequest
    from serve.schemas import GenerateRequest

    refs = "#/components/schemas/{model}"
    asked = {"model": "tiny_iit", "max_tokens": 32}
    bodies: tuple[tuple[str, dict[str, Any], dict[str, Any]], ...] = (
        (
            "/generate",
            GenerateRequest.model_json_schema(ref_template=refs),
            {"prompt": "Once upon a time", "max_new_tokens": 32},
        ),
        ("/v1/completions", body_schema(CompletionFields, refs), {**asked, "prompt": "Once upon a time"}),
        (
            "/v1/chat/completions",
            body_schema(ChatFields, refs),
            {**asked, "messages": [{"role": "user", "content": "Hello"}]},
        ),
        ("/quality/score", ScoreRequest.model_json_schema(ref_template=refs), {"texts": ["It was late."]}),
        ("/quality/diagnose", DiagnoseRequest.model_json_schema(ref_template=refs), {}),
        (
            "/quality/compare",
            CompareRequest.model_json_schema(ref_template=refs),
            {"prompts": ["Once upon a time"], "a": {"temperature": 0.8}, "b": {}},
        ),
    )
    original = app.openapi

    def openapi() -> dict[str, Any]:
        document: dict[str, Any] = original()
        shared = document.setdefault("components", {}).setdefault("schemas", {})
        for path, schema, example in bodies:
            shared.update(schema.get("$defs", {}))
            schema = {name: value for name, value in schema.items() if name != "$defs"}
            content = {"application/json": {"schema": schema, "example": example}}
            document["paths"][path]["post"]["requestBody"] = {"required": True, "content": content}
        return document

    app.openapi = openapi


class Stopper:
    """SIGTERM and Ctrl-C: refuse new requests, wait for the running ones, then let LitServe shut down.

    A second signal does not wait. LitServe shuts down when its main thread sees KeyboardInterrupt.
    """

    def __init__(self, server: Server, service: Any) -> None:
        self._server = server
        self._service = service
        self._pid = os.getpid()
        self._stop_now = False
        self.failure: str | None = None

    def install(self) -> None:
        signal.signal(signal.SIGTERM, self._on_signal)
        signal.signal(signal.SIGINT, self._on_signal)
        # LitServe's monitoring thread may ask its manager once more after the shutdown has ended that process.
        logging.getLogger("litserve.server").addFilter(self._is_news)

    def _is_news(self, record: logging.LogRecord) -> bool:
        return not (self._server.stopping and record.msg == "Monitoring worker crashed")

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:  # a fork that has not taken its own handlers yet
            os._exit(1)
        if self._stop_now or self._server.stopping:
            self._stop_now = True
            for other in (signal.SIGTERM, signal.SIGINT):
                signal.signal(other, signal.SIG_IGN)  # nothing may interrupt the shutdown itself
            raise KeyboardInterrupt
        self._server.stopping = True
        self._service.shared.start_draining()
        threading.Thread(target=self._drain, name="drain", daemon=True).start()

    def _drain(self) -> None:
        until = time.monotonic() + self._service.settings.drain_seconds
        while self._service.shared.in_flight > 0 and time.monotonic() < until and not self._stop_now:
            time.sleep(DRAIN_POLL_SECONDS)
        if not self._stop_now:
            os.kill(self._pid, signal.SIGTERM)

    def watch_startup(self) -> None:
        """LitServe waits for ever for a worker that died without a word; this thread does not."""
        threading.Thread(target=self._watch_startup, name="startup-watch", daemon=True).start()

    def _watch_startup(self) -> None:
        from litserve.utils import WorkerSetupStatus

        while not self._server.stopping:
            time.sleep(STARTUP_POLL_SECONDS)
            workers = list(getattr(self._server, "inference_workers", ()))
            if not workers:
                continue
            statuses = list(self._server.workers_setup_status.values())
            if WorkerSetupStatus.READY in statuses or WorkerSetupStatus.ERROR in statuses:
                return
            dead = [w.exitcode for w in workers if w.exitcode is not None]
            if dead:
                self.failure = f"an engine process died while it loaded the model (exit code {dead[0]})"
                self._stop_now = True
                os.kill(self._pid, signal.SIGTERM)
                return


def run_server(config: WorkerConfig, service: Any) -> None:
    """Serve until a signal. Raises StartupError if the model cannot be loaded; leaves no process behind."""
    settings = service.settings
    server = build_server(config, service)
    stopper = Stopper(server, service)
    stopper.install()
    stopper.watch_startup()
    failure = config.folder / "failure.txt"
    try:
        server.run(
            host=settings.host,
            port=settings.port,
            num_api_servers=settings.api_servers,
            log_level=settings.log_level,
            generate_client_file=False,
            access_log=settings.log_level in ("info", "debug"),
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            http=partial(BoundedProtocol, limits=ConnectionLimits(2 * DISCARDED_BODIES * settings.max_body_bytes)),
            ws="none",
        )
    except (KeyboardInterrupt, RuntimeError) as error:
        said = failure.read_text() if failure.exists() else stopper.failure
        if said is None and isinstance(error, RuntimeError):
            raise
        if said is not None:
            raise StartupError(said) from error
    finally:
        server.stopping = True
        service.shared.start_draining()
        _end_children()


def _end_children() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    children = multiprocessing.active_children()
    for child in children:
        child.terminate()
    for child in children:
        child.join(timeout=5)
        if child.is_alive():
            child.kill()
            child.join()
    sys.stdout.flush()
