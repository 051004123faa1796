"""From flags to a running server: check what can be checked, make the private folder, hand over to LitServe."""

import shutil
import socket
from collections.abc import Sequence
from pathlib import Path

from serve import channel, metrics
from serve.errors import StartupError
from serve.processes import SharedState, die_with_parent_when_forked
from serve.served_model import ServedModel, load_served_model
from serve.settings import ServeSettings, load_settings, make_private_folder


def launch(arguments: Sequence[str]) -> None:
    """Serve until a signal. Raises StartupError, one line, for a bad setting, model or port."""
    settings = load_settings(arguments)
    print(f"phiserve {settings.described()}", flush=True)
    check_port(settings.host, settings.port)
    model = load_served_model(settings.model)
    folder = make_private_folder()
    try:
        try:
            channel.check_folder(folder)
        except ValueError as error:
            raise StartupError(str(error)) from error
        metrics.prepare(folder / "metrics")
        die_with_parent_when_forked()
        _run(settings, model, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _run(settings: ServeSettings, model: ServedModel, folder: Path) -> None:
    from serve.litserve_shell import WorkerConfig, run_server
    from serve.phi_process import start_phi_process
    from serve.scoring import load_scorer
    from serve.scoring_process import start_scoring_process
    from serve.service import Service

    shared = SharedState(settings.api_servers)
    scorer, why_no_scores = load_scorer(model.path)
    if scorer is None:
        print(f"quality  not scored: {why_no_scores}", flush=True)
    else:
        start_scoring_process(folder, scorer, model.full_name, settings.quality_window, shared)
    config = WorkerConfig(
        folder=folder,
        model_path=model.path,
        runner=settings.runner,
        device=settings.device,
        dtype=settings.dtype,
        threads=settings.threads or None,
        cache_tokens=settings.cache_tokens or None,
        max_model_len=settings.max_model_len or None,
        max_batch_size=settings.max_batch_size,
        num_apis=settings.api_servers,
        stall_seconds=settings.stall_seconds,
        step_timing=settings.step_timing,
        log_level=settings.log_level,
    )
    if settings.phi_diagnostic:
        start_phi_process(folder, model.path)
    run_server(config, Service(settings, model, folder, shared, why_no_scores))


def check_port(host: str, port: int) -> None:
    """Raises StartupError if nobody can listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            said = error.strerror or str(error)
            raise StartupError(
                f"port {port} on {host}: {said.lower()}; stop what uses it or give another --port"
            ) from error
