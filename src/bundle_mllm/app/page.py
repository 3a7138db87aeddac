"""The page in the browser: its components, which function of the state each of them calls, and the server.

Knows nothing about how a model answers or how items look.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bundle_mllm.app.answers import AppModel, Result, compare
from bundle_mllm.app.items import ShownItems, uploaded_picture
from bundle_mllm.app.settings import AppSettings
from bundle_mllm.app.state import (
    MAX_ANSWERS,
    MIN_ANSWERS,
    OwnItem,
    State,
    act,
    add_own,
    clear_rules,
    search,
    set_rules,
)
from bundle_mllm.app.view import (
    PICTURES,
    SOUNDS,
    render_answers,
    render_bundle,
    render_error,
    render_header,
    render_results,
)
from bundle_mllm.data.catalog import MEDIA
from bundle_mllm.errors import BundleMLLMError
from bundle_mllm.settings import configured_by

TITLE = "What completes the bundle?"
MAX_UPLOAD = "10mb"
COVERAGES = (0.8, 0.9, 0.95)
"""The probabilities that can be asked for."""
_HERE = Path(__file__).parent
_RULE_FIELDS = (
    "max_per_category",
    "required_categories",
    "budget",
    "variant_column",
    "diversity",
    "promoted",
    "promoted_share",
)


@configured_by(AppSettings)
def run_app(settings: AppSettings) -> None:
    """Open a model in the browser, until it is interrupted.

    Args:
        settings: Whose fields are the arguments: see `AppSettings`.

    Raises:
        BundleMLLMError: If gradio is missing, the port is taken, or a model or the data cannot be read.
    """
    _gradio()  # before the models are loaded
    _check_free(settings.host, settings.port)
    names = [settings.model, *([settings.compare] if settings.compare else [])]
    models = [AppModel(name, settings.data, settings.device) for name in names]
    launch(models, settings.host, settings.port, open=settings.open)


def launch(models: Sequence[AppModel], host: str, port: int | None, *, open: bool = False, wait: bool = True) -> Any:
    """Serve the page; return the page, unless it waits until it is interrupted.

    Args:
        models: One model, or two that are compared. The items of the first are shown.
        host: The address to listen on.
        port: The port; a free one if not given.
        open: Whether to open the page in this machine's browser.
        wait: Whether to wait.
    """
    gr = _gradio()
    page = build_page(models)
    page.launch(
        server_name=host,
        server_port=port,
        inbrowser=open,
        prevent_thread_lock=not wait,
        share=False,
        ssr_mode=False,
        footer_links=[],
        max_file_size=MAX_UPLOAD,
        theme=gr.themes.Base(
            primary_hue="teal",
            neutral_hue="stone",
            radius_size="lg",
            font=["system-ui", "sans-serif"],
            font_mono=["ui-monospace", "monospace"],
        ),
        css_paths=_HERE / "style.css",
        app_kwargs={"routes": media_routes(models[0].items)},
    )
    return page


def media_routes(items: ShownItems) -> list[Any]:
    """Return the routes of the pictures and sounds of items, by their rows; there are no other files."""
    from starlette.responses import FileResponse, Response
    from starlette.routing import Route

    headers = {"Cache-Control": "private, max-age=3600", "X-Content-Type-Options": "nosniff"}

    def picture(request: Any) -> Response:
        row = request.path_params["row"]
        content = items.picture(row) if row < len(items) else None
        if content is None:
            return Response("There is no such picture.", 404)
        return Response(content, media_type="image/jpeg", headers=headers)

    def sound(request: Any) -> Response:
        row = request.path_params["row"]
        found = items.sound(row) if row < len(items) else None
        if found is None:
            return Response("There is no such sound.", 404)
        path, media_type = found
        return FileResponse(path, media_type=media_type, headers=headers)

    return [Route(f"/{PICTURES}/{{row:int}}", picture), Route(f"/{SOUNDS}/{{row:int}}", sound)]


def build_page(models: Sequence[AppModel]) -> Any:
    """Return the page, a `gradio.Blocks`."""
    gr = _gradio()
    items = models[0].items
    with gr.Blocks(title=TITLE, analytics_enabled=False, delete_cache=(3600, 86400)) as page:
        state = gr.State(State())
        _html(gr, render_header(items, [(model.name, model.parts) for model in models]))
        message = _html(gr, "", elem_id="bm-message")
        with gr.Row(elem_id="bm-layout", equal_height=False):
            with gr.Column(scale=5, min_width=340, elem_id="bm-find"):
                with gr.Row(elem_id="bm-search"):
                    query = gr.Textbox(label="Search", placeholder="Words of a title", scale=3, min_width=160)
                    category = gr.Dropdown(
                        label="Category",
                        choices=[("All", ""), *items.categories],
                        value="",
                        visible=bool(items.categories),
                        scale=2,
                        min_width=120,
                    )
                results = _html(gr, render_results(items, State()), "shelf")
            with gr.Column(scale=6, min_width=340, elem_id="bm-mine"):
                bundle = _html(gr, render_bundle(items, State()), "shelf")
                form = _RulesForm(gr, models)
                own = _OwnForm(gr, models)
                answers = _html(gr, "", "shelf", elem_id="bm-answers")

        shelves = [state, message, bundle, results]

        def changed(change: Callable[[State], State], before: State) -> list[Any]:
            """Change the state, and show it; or show why it cannot be changed."""
            try:
                after, error = change(before), ""
            except BundleMLLMError as problem:
                after, error = before, str(problem)
            return [after, render_error(error), render_bundle(items, after), render_results(items, after)]

        def on_action(before: State, event: Any) -> list[Any]:
            asked = event._data or {}
            return changed(lambda s: act(s, str(asked.get("action")), asked.get("item"), items.item_ids), before)

        on_action.__annotations__["event"] = gr.EventData  # by which gradio knows what to give

        def on_search(before: State, words: str, name: str) -> list[Any]:
            return changed(lambda s: search(s, words or "", name), before)

        def on_rules(before: State, *values: Any) -> list[Any]:
            return changed(lambda s: form.apply(s, values), before)

        def on_own(before: State, *values: Any) -> list[Any]:
            shown = changed(lambda s: add_own(s, own.read(values)), before)
            return [*shown, *(own.empty if shown[0] is not before else values)]

        def complete(now: State) -> str:
            found = [model.complete(items, now) if now.bundle else Result() for model in models]
            found = compare(found) if len(found) == 2 else found
            return render_answers(items, now, list(zip([model.name for model in models], found, strict=True)))

        private: Any = {"api_visibility": "private", "show_progress": "hidden"}
        slow: Any = {
            "api_visibility": "private",
            "show_progress": "minimal",
            "concurrency_limit": 1,
            "trigger_mode": "always_last",
        }
        acted = gr.on(
            [bundle.click, results.click, answers.click], on_action, state, shelves, trigger_mode="multiple", **private
        )
        gr.on(
            [query.input, category.input],
            on_search,
            [state, query, category],
            shelves,
            trigger_mode="always_last",
            **private,
        )
        ruled = form.apply_button.click(on_rules, [state, *form.fields], shelves, **private)
        cleared = form.clear_button.click(
            lambda before: [*changed(clear_rules, before), *form.empty], state, [*shelves, *form.fields], **private
        )
        gr.on(
            [own.button.click, own.title.submit], on_own, [state, *own.fields], [*shelves, *own.fields], **private
        ).then(complete, state, answers, **slow)
        for event in (acted, ruled, cleared):
            event.then(complete, state, answers, **slow)
    return page


class _RulesForm:
    """The fields of the rules, folded away at first."""

    def __init__(self, gr: Any, models: Sequence[AppModel]):
        items = models[0].items
        columns = [name for name in items.columns.names if name not in (*MEDIA, "description")]
        numbers = [name for name in columns if items.columns[name].kind == "number"]
        some = bool(items.categories)
        with gr.Accordion("Rules", open=False, elem_classes="bm-fold"):
            with gr.Row():
                top_k = gr.Slider(MIN_ANSWERS, MAX_ANSWERS, State.top_k, step=1, label="Answers", min_width=150)
                diversity = gr.Slider(0, 1, 0, step=0.05, label="Diversity", min_width=150)
            coverage = gr.Radio(
                [("the best items", 0), *((f"{share:.0%}", share) for share in COVERAGES)],
                value=0,
                label="Show what holds the right item with a probability of",
                info="and nothing where nothing fits",
                visible=any(model.is_calibrated for model in models),
            )
            with gr.Row():
                choices: Any = {"choices": items.categories, "value": [], "multiselect": True, "visible": some}
                categories = gr.Dropdown(label="Only these categories", min_width=150, **choices)
                required = gr.Dropdown(label="At least one of each", min_width=150, **choices)
            with gr.Row():
                quota = gr.Number(
                    None, label="Most of one category (0: any)", precision=0, minimum=0, visible=some, min_width=150
                )
                budget = gr.Number(
                    None, label="Most that all may cost (0: any)", minimum=0, visible="price" in numbers, min_width=150
                )
                variants = gr.Dropdown([("—", ""), *columns], value="", label="One item for each", min_width=150)
            where = gr.Textbox(label="Condition", info=f"About {', '.join(columns)}", placeholder='category != "bag"')
            with gr.Row():
                promoted = gr.Textbox(label="Promote items where", placeholder='category == "hat"', min_width=150)
                share = gr.Slider(0, 1, 0, step=0.05, label="Share of answers that are promoted", min_width=150)
            with gr.Row():
                self.apply_button = gr.Button("Apply rules", variant="primary", min_width=120)
                self.clear_button = gr.Button("Clear rules", min_width=120)
        self.fields = [
            top_k,
            coverage,
            categories,
            where,
            quota,
            required,
            budget,
            variants,
            diversity,
            promoted,
            share,
        ]
        self.empty = [State.top_k, 0, [], "", None, [], None, "", 0, "", 0]

    def apply(self, state: State, values: Sequence[Any]) -> State:
        """Return the state with the rules of the form."""
        top_k, coverage, categories, where, *rules = values
        return set_rules(
            state,
            int(top_k),
            coverage or None,
            categories or (),
            where or "",
            **dict(zip(_RULE_FIELDS, rules, strict=True)),
        )


class _OwnForm:
    """The fields of an item of the visitor's own, folded away at first."""

    def __init__(self, gr: Any, models: Sequence[AppModel]):
        categories = models[0].items.categories
        pictured = any("image" in model.reads for model in models)
        with gr.Accordion("Try an item of your own", open=False, elem_classes="bm-fold", visible=models[0].takes_own):
            with gr.Row():
                self.title = gr.Textbox(
                    label="Title of your item", placeholder="linen summer shirt", scale=3, min_width=160
                )
                category = gr.Dropdown(
                    [("None", ""), *categories],
                    value="",
                    label="Category of your item",
                    visible=bool(categories),
                    scale=2,
                    min_width=120,
                )
            picture = gr.Image(
                label="Picture of your item",
                type="filepath",
                sources=["upload"],
                height=160,
                visible=pictured,
                buttons=[],
            )
            self.button = gr.Button("See where it ranks", variant="primary")
        self.fields, self.empty = [self.title, category, picture], ["", "", None]

    def read(self, values: Sequence[Any]) -> OwnItem:
        """Return the item of the form."""
        title, category, picture = values
        return OwnItem(title or "", category or None, picture, uploaded_picture(picture) if picture else None)


def _html(gr: Any, value: str, script: str | None = None, **options: Any) -> Any:
    """Return a part of the page; its buttons are those of the template."""
    code = None if script is None else (_HERE / f"{script}.js").read_text(encoding="utf-8")
    return gr.HTML(value, js_on_load=code, apply_default_css=False, padding=False, **options)


def _check_free(host: str, port: int) -> None:
    """Refuse an address that the page cannot have, before the models are loaded."""
    try:
        with socket.create_server((host, port)):
            pass
    except (OSError, OverflowError) as error:
        raise BundleMLLMError(
            f"The page cannot be opened at {host}, port {port} ({error}): give another --port, or --host."
        ) from error


def _gradio() -> Any:
    try:
        import gradio
    except ImportError as error:
        raise BundleMLLMError('The app needs gradio: pip install "bundle-mllm[app]".') from error
    return gradio
