"""Let the API reference show the arguments of functions that are configured by a settings class.

Static analysis sees `def evaluate(settings: EvaluationSettings)`; callers pass the fields of the class by keyword.
"""

import inspect
from importlib import import_module

import griffe


class SettingsAsArguments(griffe.Extension):
    """Replaces the parameters of functions under `@configured_by(Settings)` by the fields of the class."""

    def on_function(self, *, func: griffe.Function, **kwargs: object) -> None:
        """Read the signature that `configured_by` gives the function, from the imported function."""
        if not any(str(each.value).startswith("configured_by(") for each in func.decorators):
            return
        signature = inspect.signature(getattr(import_module(func.module.path), func.name))
        func.parameters = griffe.Parameters(
            *(
                griffe.Parameter(
                    each.name,
                    annotation=None if each.annotation is each.empty else str(each.annotation),
                    kind=griffe.ParameterKind.keyword_only
                    if each.kind is each.KEYWORD_ONLY
                    else griffe.ParameterKind.positional_or_keyword,
                    default=None if each.default is each.empty else repr(each.default),
                )
                for each in signature.parameters.values()
            )
        )
