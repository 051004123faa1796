"""The process that scores: texts and the engine's numbers in, reports out; counts them for metrics. No HTTP, no engine.

A score is half a millisecond of Python, or three times that beside a busy engine. In an HTTP process it would hold the
interpreter, and every stream with it. One process serves all HTTP processes, over a socket in the server's private
folder: a connection each, frames of msgpack behind their length. It is forked from the main process, so it shares the
reference's memory with it, and forked again if it dies; what it was computing then fails and what comes meanwhile waits
in the socket.
"""

import asyncio
import contextlib
import gc
import multiprocessing
import os
import signal
import socket
import struct
import threading
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgpack
from threadpoolctl import threadpool_limits

from serve.processes import SharedState
from serve.quality.drift import DriftWindow
from serve.quality.score import QualityReport, QualityScorer
from serve.quality.surprise import TokenSurprise

if TYPE_CHECKING:
    from serve.metrics import QualityMetrics

SOCKET_NAME = "score.sock"
NICENESS = 5
"""The engine's threads wait for each other: who takes a core from one of them stops both."""
RESTART_SECONDS = 0.5
_LENGTH = struct.Struct("<I")


async def read_frame(reader: asyncio.StreamReader) -> Any:
    """The next message. Raises EOFError at the end, also within a message."""
    try:
        (length,) = _LENGTH.unpack(await reader.readexactly(_LENGTH.size))
        return msgpack.unpackb(await reader.readexactly(length), unicode_errors="surrogatepass")
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise EOFError from error


def pack_frame(message: Any) -> bytes:
    body: bytes = msgpack.packb(message, unicode_errors="surrogatepass")
    return _LENGTH.pack(len(body)) + body


class CountingScorer:
    """Scores, and what metrics want to know of those that are of generated choices."""

    def __init__(self, scorer: QualityScorer, metrics: "QualityMetrics", window: int) -> None:
        """window: scores in the drift figure."""
        self._scorer = scorer
        self._metrics = metrics
        heads = scorer.reference.heads.items()
        self._drift = {n: DriftWindow(h.served_scores, window) for n, h in heads if h.served_scores is not None}

    def answer(
        self, counted: bool, text: str, surprise: list[list[Any]] | None, num_tokens: int | None
    ) -> QualityReport:
        """surprise: the fields of TokenSurprise. Raises ValueError if the text cannot be scored."""
        try:
            report = self._scorer.score(text, TokenSurprise(*surprise) if surprise else None, num_tokens)
        except Exception:
            if counted:
                self._metrics.result("failed")
            raise
        if counted:
            self._count(report)
        return report

    def _count(self, report: QualityReport) -> None:
        self._metrics.scored(report)
        if report.score is not None and report.head in self._drift:
            index = self._drift[report.head].add(report.score)
            if index is not None:
                self._metrics.drift(index)


async def answer_all(scorer: CountingScorer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """One connection: a reply for each question, in their order, until the other side ends it.

    A question is [number, *arguments of CountingScorer.answer]; its reply [number, processor seconds, report, error].
    """
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            number, *asked = await read_frame(reader)
            started = time.thread_time()
            report, error = None, None
            try:
                report = scorer.answer(*asked).to_json()
            except Exception as failure:  # this question's, not the process'
                error = " ".join(str(failure).split())
            writer.write(pack_frame([number, time.thread_time() - started, report, error]))
            await writer.drain()
            await asyncio.sleep(0)  # the other connections' turn
    writer.close()


def start_scoring_process(folder: Path, scorer: QualityScorer, model: str, window: int, shared: SharedState) -> None:
    """Start it beside the server and keep it there until the server drains. Its socket is there when this returns."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / SOCKET_NAME))
    listener.listen(64)

    def begin() -> BaseProcess:
        process = multiprocessing.get_context("fork").Process(
            target=_main, args=(listener, scorer, model, window), name="phiserve-score", daemon=True
        )
        process.start()
        return process

    threading.Thread(target=_keep, args=(begin(), begin, shared), name="score-watch", daemon=True).start()


def _keep(process: BaseProcess, begin: Callable[[], BaseProcess], shared: SharedState) -> None:
    """Start it again when it ends before the server does."""
    from serve.metrics import forget_process

    while True:
        process.join()
        if shared.draining:
            return
        print(f"quality  the scoring process ended (exit code {process.exitcode}) and is started again", flush=True)
        if process.pid is not None:
            forget_process(process.pid)
        time.sleep(RESTART_SECONDS)
        process = begin()


def _main(listener: socket.socket, scorer: QualityScorer, model: str, window: int) -> None:
    from serve.metrics import QualityMetrics

    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches us too; the main process decides
    os.nice(NICENESS)
    gc.freeze()  # what was inherited stays: nothing looks at it again, and its pages stay shared
    # A score's products are too small to share, and BLAS' threads would wait for each other on the engine's cores.
    threadpool_limits(1, user_api="blas")
    asyncio.run(_serve(listener, CountingScorer(scorer, QualityMetrics(model), window)))


async def _serve(listener: socket.socket, scorer: CountingScorer) -> None:
    server = await asyncio.start_unix_server(lambda *streams: answer_all(scorer, *streams), sock=listener)
    await server.serve_forever()
