"""The service's own log: one JSON object a line on standard error.

Knows nothing about what is logged.
"""

from __future__ import annotations

import json
import logging
import logging.config
import traceback
from datetime import UTC, datetime
from typing import Any

LOGGER = "bundle_mllm.serving"


class JsonFormatter(logging.Formatter):
    """Writes a record as JSON: time, level, message, the `fields` it was given, and where an error came from.

    Of an error its type and the lines of code are written, not its message, which may hold a title.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        entry: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info and (error := record.exc_info[1]) is not None:
            frames = traceback.extract_tb(error.__traceback__)
            entry["error"] = type(error).__name__
            entry["lines"] = [f"{frame.filename}:{frame.lineno}" for frame in frames]
        return json.dumps(entry)


CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": f"{__name__}.JsonFormatter"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "loggers": {
        **{name: {"handlers": ["stderr"], "level": "INFO", "propagate": False} for name in (LOGGER, "uvicorn")},
        "uvicorn.access": {"handlers": [], "propagate": False},
    },
}
"""For `logging.config.dictConfig`."""


def set_up() -> None:
    """Write this log alone: neither progress bars nor the warnings of models, which name items."""
    from transformers.utils import logging as of_transformers

    logging.config.dictConfig(CONFIG)
    of_transformers.set_verbosity_error()
    of_transformers.disable_progress_bar()
