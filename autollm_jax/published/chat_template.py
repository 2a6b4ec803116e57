"""Renders chat templates: Jinja source that published vocabularies bring along.

The same variables, filters and tags as in transformers (utils/chat_template_utils.py), but for
one: `strftime_now`, today's date, is not defined. Prompts must not change from day to day, since a
policy would be trained on one prompt and asked another. Templates that test for it take their own
fixed date (Llama 3.2's: 26 Jul 2024); the others are refused.
"""

import json
from collections.abc import Callable, Mapping

import jinja2
import jinja2.ext
import jinja2.sandbox
from jinja2 import nodes

from autollm_jax.errors import UserError, one_line


class _Generation(jinja2.ext.Extension):
    """The block `{% generation %}`, which marks the agent's words and adds no text of its own."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_content"), [], [], body).set_lineno(line)

    def _content(self, caller: Callable[[], str]) -> str:
        return caller()


def renderer(template: str, names: Mapping[str, str]) -> Callable[[list[dict]], str]:
    """Compile a template in Jinja's sandbox, so that it reaches nothing outside its variables.

    Args:
      template: Jinja source.
      names: further variables, as bos_token and eos_token.

    Returns:
      A function from messages (each with `role` and `content`) to the conversation's text, up to
      the place of the agent's next turn. It raises UserError where the template cannot be rendered.
    """
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[jinja2.ext.loopcontrols, _Generation],
    )
    environment.globals["raise_exception"] = _refuse
    environment.filters["tojson"] = _to_json

    def render(messages: list[dict]) -> str:
        try:
            return environment.from_string(template).render(
                messages=messages, add_generation_prompt=True, tools=None, documents=None, **names
            )
        except Exception as error:  # a template may divide by zero, or ask for too much memory
            if isinstance(error, jinja2.UndefinedError) and "strftime_now" in str(error):
                raise UserError(
                    "chat template: it asks for today's date (strftime_now), and prompts must not "
                    "change from day to day; write a fixed date in its place"
                ) from error
            raise UserError(f"chat template: {one_line(error)}") from error

    return render


def split(text: str, placeholder: str) -> tuple[str, str]:
    """Return the text before and after a placeholder.

    Raises:
      UserError: the placeholder does not occur exactly once.
    """
    before, found, after = text.partition(placeholder)
    if not found or placeholder in after:
        raise UserError("chat template: it does not repeat each message once and unchanged")
    return before, after


def _refuse(message):
    raise jinja2.TemplateError(message)


def _to_json(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )
