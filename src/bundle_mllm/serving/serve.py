"""Start and stop the service: its key, its socket, its worker processes.

Knows nothing about routes or models.
"""

from __future__ import annotations

import logging
import logging.config
import os
import signal
import socket
import sys
from dataclasses import replace
from functools import partial
from importlib import import_module
from ipaddress import ip_address
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from bundle_mllm.data.files import require_file, require_folder
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.serving.answer_log import AnswerLog
from bundle_mllm.serving.logs import CONFIG, set_up
from bundle_mllm.serving.settings import MEBIBYTE, ServiceSettings
from bundle_mllm.settings import configured_by

KEY = "BUNDLE_MLLM_API_KEY"
"""Environment variable of the key."""
MIN_KEY = 16
"""Fewest characters of a key (ours)."""
STOP_SECONDS = 30
"""Time in which what was accepted is finished when the service stops (ours)."""
HEALTH_SECONDS = 20
"""Time after which a worker process that does not move is replaced (ours)."""

logger = logging.getLogger(__name__)


@configured_by(ServiceSettings)
def serve(settings: ServiceSettings) -> str:
    """Answer over HTTP until the process gets SIGTERM or SIGINT; what was accepted is finished then.

    Returns:
        What to say in the end.

    Raises:
        BundleMLLMError: If there is no model, the address is taken, or others could reach the service without a key.
    """
    for name in ("fastapi", "uvicorn", "prometheus_client", "filelock"):
        try:
            import_module(name)
        except ImportError as error:
            raise BundleMLLMError(f'The service needs {name}: pip install "bundle-mllm[serve]".') from error
    key = read_key(settings.api_key_file)
    if key is None and not _is_loopback(settings.host):
        raise BundleMLLMError(
            f"host is {settings.host}, which others can reach, and there is no key, so anyone could change the items: "
            f"set {KEY} or give --api-key-file, or listen on 127.0.0.1."
        )
    model = require_folder(settings.model, "give the output folder of `bundle-mllm train`").resolve()
    if settings.log is not None:
        try:
            AnswerLog(settings.log, settings.log_mib * MEBIBYTE).append([])
        except OSError as error:
            raise BundleMLLMError(
                f"{settings.log} cannot be written ({error.strerror}): give another --log."
            ) from error
    settings = replace(settings, model=model)
    logging.config.dictConfig(CONFIG)
    with _listening(settings) as listener:
        host = f"[{settings.host}]" if ":" in settings.host else settings.host
        url = f"http://{host}:{listener.getsockname()[1]}"
        if settings.workers == 1:
            _run_here(settings, key, listener, url)
        else:
            _run_workers(settings, key, listener, url)
    return "stopped; what was accepted is answered"


def read_key(path: Path | None) -> str | None:
    """Return the key of the environment or of a file; `None` if there is neither.

    Raises:
        BundleMLLMError: If it is in both, short, or cannot be sent.
    """
    key = os.environ.get(KEY)
    if path is not None:
        if key is not None:
            raise BundleMLLMError(f"There is a key in {KEY} and one in {path}: give one of them.")
        key = require_file(path, "check --api-key-file").read_text(encoding="utf-8", errors="replace").strip()
    if key is not None and (len(key) < MIN_KEY or not (key.isascii() and key.isprintable()) or " " in key):
        raise BundleMLLMError(
            f"The key of {path or KEY} has {len(key)} characters: take {MIN_KEY} or more letters and digits, such as "
            "those of `openssl rand -hex 32`."
        )
    return key


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listening(settings: ServiceSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise BundleMLLMError(
            f"{settings.host}:{settings.port} cannot be listened on ({error.strerror}): give another --port or --host."
        ) from error


def _configuration(app: Any, **options: Any) -> Any:
    from uvicorn import Config

    return Config(
        app,
        log_config=CONFIG,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=STOP_SECONDS,
        timeout_worker_healthcheck=HEALTH_SECONDS,
        **options,
    )


def _run_here(settings: ServiceSettings, key: str | None, listener: socket.socket, url: str) -> None:
    """Answer in this process; a model that cannot be loaded is an error in one line."""
    from uvicorn import Server

    app = _make_app(settings, key)
    logger.info("listening", extra={"fields": {"url": url, "model": str(settings.model)}})
    for stop in (signal.SIGTERM, signal.SIGINT):  # which the server repeats once it has stopped
        signal.signal(stop, lambda *_: None)
    Server(_configuration(app)).run([listener])


def _run_workers(settings: ServiceSettings, key: str | None, listener: socket.socket, url: str) -> None:
    """Answer in processes that share the socket, and replace those that die."""
    from uvicorn.config import STARTUP_FAILURE
    from uvicorn.supervisors import Multiprocess

    with TemporaryDirectory(prefix="bundle-mllm-metrics-") as folder:
        os.environ["PROMETHEUS_MULTIPROC_DIR"] = folder
        app = partial(_make_app_of_worker, settings, key)
        workers = Multiprocess(_configuration(app, factory=True, workers=settings.workers), [listener])
        logger.info("listening", extra={"fields": {"url": url, "model": str(settings.model)}})
        workers.run()
    if any(process.exitcode == STARTUP_FAILURE for process in workers.processes):
        raise BundleMLLMError("A worker process could not start, and the log above says why: mend that.")


def _make_app(settings: ServiceSettings, key: str | None) -> Any:
    from bundle_mllm.serving.app import create_app
    from bundle_mllm.serving.served_model import ServedModel

    set_up()
    model = ServedModel(settings.model, settings.device, settings.ranker, settings.retrieval)
    return create_app(settings, model, key)


def _make_app_of_worker(settings: ServiceSettings, key: str | None) -> Any:
    """Return the application in a worker process, or end the process so that it is not started again."""
    from uvicorn.config import STARTUP_FAILURE

    try:
        return _make_app(settings, key)
    except BundleMLLMError as error:
        logger.error(str(error))
        sys.exit(STARTUP_FAILURE)
