"""How the service starts: what it refuses, and which model it takes."""

import socket

import pytest
from uvicorn.config import STARTUP_FAILURE

from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.serving import serve as module
from bundle_mllm.serving.serve import read_key, serve
from bundle_mllm.serving.settings import ServiceSettings

KEY = "0123456789abcdef"


@pytest.fixture
def started(monkeypatch):
    """What would be started."""
    calls = []
    monkeypatch.setattr(module, "_run_here", lambda *arguments: calls.append(arguments))
    monkeypatch.setattr(module.logging.config, "dictConfig", lambda _: None)
    monkeypatch.delenv(module.KEY, raising=False)
    return calls


def test_the_model_behind_a_link_is_that_of_the_start(started, tmp_path):
    (tmp_path / "2026-11-28").mkdir()
    (tmp_path / "current").symlink_to("2026-11-28")
    serve(model=tmp_path / "current", port=0)
    assert started[0][0].model == tmp_path / "2026-11-28"


def test_others_are_let_in_with_a_key_alone(started, tmp_path, monkeypatch):
    for host in ("0.0.0.0", "::", "192.0.2.1", "shop.example.org"):
        with pytest.raises(BundleMLLMError, match="there is no key"):
            serve(model=tmp_path, host=host)
    for host in ("127.0.0.1", "localhost"):
        serve(model=tmp_path, host=host, port=0)
    monkeypatch.setenv(module.KEY, KEY)
    serve(model=tmp_path, host="0.0.0.0", port=0)
    assert [arguments[1] for arguments in started] == [None, None, KEY]


def test_a_key_is_read_from_a_file_or_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv(module.KEY, raising=False)
    file = tmp_path / "key"
    assert read_key(None) is None
    for text, message in (("short", "has 5 characters"), ("", "has 0 characters"), ("é" * 20, "letters and digits")):
        file.write_text(text)
        with pytest.raises(BundleMLLMError, match=message):
            read_key(file)
    file.write_bytes(b"\xff" * 20)
    with pytest.raises(BundleMLLMError, match="has 20 characters: take 16 or more letters and digits"):
        read_key(file)
    file.write_text(f"{KEY}\n")
    assert read_key(file) == KEY
    monkeypatch.setenv(module.KEY, KEY)
    with pytest.raises(BundleMLLMError, match="give one of them"):
        read_key(file)


def test_what_cannot_work_is_refused_in_a_line(started, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(BundleMLLMError, match="cannot be listened"):
        serve(model=tmp_path, port=taken.getsockname()[1])
    with pytest.raises(BundleMLLMError, match="There is no folder"):
        serve(model=tmp_path / "none")
    with pytest.raises(BundleMLLMError, match="cannot be written"):
        serve(model=tmp_path, log=tmp_path / "none" / "log.jsonl")
    for name, value in {"workers": 0, "port": -1, "batch_size": 0, "batch_window": -1.0, "time_limit": 0.0}.items():
        with pytest.raises(BundleMLLMError, match=name):
            serve(model=tmp_path, **{name: value})


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_cannot_be_loaded_ends_the_service_in_a_line(tmp_path, caplog, monkeypatch, workers):
    (tmp_path / "config.json").write_text("{")
    monkeypatch.setattr(module, "set_up", lambda: None)
    settings = ServiceSettings(tmp_path, workers=workers)
    if workers == 1:
        with pytest.raises(BundleMLLMError, match="is no readable Bundle-MLLM model"):
            module._run_here(settings, None, None, "")
    else:
        with pytest.raises(SystemExit, match=str(STARTUP_FAILURE)):
            module._make_app_of_worker(settings, None)  # which the supervisor does not start again
        [message] = caplog.messages
        assert "is no readable Bundle-MLLM model" in message
