"""A chat template comes with a model: it is rendered once, apart, and bounded; titles do not reach it."""

import os
import threading
import time
import warnings

import pytest
from tiny_models import CHAT_TEMPLATE, make_processor, make_tokenizer

from bundle_mllm.modeling import chat_bundle_mllm
from bundle_mllm.modeling.chat_bundle_mllm import around_message

QUESTION = {"partial": ["i0"], "candidates": ["i1", "i2"]}
LOOP = "{% for a in range(99999) %}"
ENDLESS = LOOP * 3 + "{% endfor %}" * 3
DOUBLING = (
    "{% set n = namespace(s='x' * 1000) %}{% for i in range(40) %}{% set n.s = n.s ~ n.s %}{% endfor %}"
    "{{ messages[0].content }}"
)
HUGE = "{{ messages[0].content }}{{ 'x' * 2000000000000 }}"
LONG = "{{ messages[0].content }}{{ 'x' * 2000000 }}"
REFUSES = "{{ raise_exception('no system message') }}"
TWICE = "{{ messages[0].content }}{{ messages[0].content }}"


def test_a_question_is_asked_as_the_template_asks_any_message():
    processor = make_processor(make_tokenizer(True, CHAT_TEMPLATE), conversational=True)
    plain = make_processor(make_tokenizer(True, CHAT_TEMPLATE), conversational=False).render(QUESTION)
    message = {"role": "user", "content": plain.removesuffix(processor.answer_cue).strip()}
    text = processor.tokenizer.apply_chat_template([message], add_generation_prompt=True, tokenize=False)
    assert processor.render(QUESTION) == text.removeprefix(processor.tokenizer.bos_token) + processor.answer_cue
    processor.tokenizer.chat_template = "[{{ messages[0].content }}]"
    assert processor.render(QUESTION).startswith("[") and processor.render(QUESTION).endswith("]Answer:")


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (ENDLESS, "more than 2 seconds.*or 512 MiB"),
        (DOUBLING, "cannot be rendered"),
        (HUGE, "cannot be rendered"),
        (LONG, "writes 2000"),
        (REFUSES, "no system message"),
        (TWICE, "writes the message of a user 2 times"),
        ("Hello!", "writes the message of a user 0 times"),
        ("{{ messages[0]", "cannot be rendered"),
    ],
)
def test_a_template_that_loops_or_allocates_or_fails_is_refused_in_seconds(template, reason):
    started = time.process_time()
    with pytest.raises(ValueError, match=reason):
        around_message(make_tokenizer(True, template))
    assert time.process_time() - started < 5  # of this process: the other one is ended


class Blocked:
    """A tokenizer whose template waits for a lock that another thread held when the process was copied."""

    def apply_chat_template(self, *_, **__):
        threading.Event().wait()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="nothing bounds a template here")
def test_a_process_that_waits_for_ever_is_ended_and_leaves_nothing(monkeypatch):
    started, fork = [], os.fork

    def noted():
        pid = fork()
        started.append(pid)
        return pid

    monkeypatch.setattr(os, "fork", noted)
    monkeypatch.setattr(chat_bundle_mllm, "MAX_WAIT", 0.2)
    with pytest.raises(ValueError, match=r"takes more than 2 seconds, 0\.2 if the machine is busy"):
        around_message(Blocked())
    with pytest.raises(ProcessLookupError):  # not even as a zombie
        os.kill(started[0], 0)


def test_a_program_with_threads_is_not_warned():
    wait = threading.Event()
    thread = threading.Thread(target=wait.wait)
    thread.start()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert around_message(make_tokenizer(True, "[{{ messages[0].content }}]")) == ("[", "]")
    finally:
        wait.set()
        thread.join()


def test_where_no_process_can_be_copied_the_template_is_rendered_in_this_one(monkeypatch):
    monkeypatch.delattr(os, "fork", raising=False)
    assert around_message(make_tokenizer(True, "[{{ messages[0].content }}]")) == ("[", "]")


def test_the_template_sees_no_title():
    template = "{% if 'red' in messages[0].content %}Answer: A{% endif %}{{ messages[0].content }}"
    processor = make_processor(make_tokenizer(True, template), conversational=True)
    assert "red" in processor.render(QUESTION) and not processor.render(QUESTION).startswith("Answer: A")
