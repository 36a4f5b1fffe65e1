"""Renders a chat template in a process of its own.

A template is a program of whoever published the model. Jinja's sandbox keeps it
from the system; limits on time, memory and output end one that never would.

Run as a script; reads and writes lines of JSON: first the template, its
variables and the limits (see chat.py), then requests [[messages, whether the
model is to answer], ...], answered by {"texts": [...]} or {"error": ...}. It
imports nothing of ours, so that it starts quickly.
"""

import datetime
import json
import signal
import sys
from typing import Any

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.sandbox


class Generation(jinja2.ext.Extension):
  """`{% generation %}...{% endgeneration %}`: what the assistant writes."""

  tags = {'generation'}  # noqa: RUF012  as the base class has it

  def parse(self, parser: Any) -> jinja2.nodes.Node:
    """The node of the block."""
    line = next(parser.stream).lineno
    body = parser.parse_statements(('name:endgeneration',), drop_needle=True)
    call = self.call_method('_mark')
    return jinja2.nodes.CallBlock(call, [], [], body).set_lineno(line)

  def _mark(self, caller: Any) -> str:
    before, after = self.environment.globals['generated']
    return before + caller() + after


def compile_template(source: str, generated: list[str]) -> jinja2.Template:
  """The template, with the functions that transformers gives it.

  Args:
    source: of the template.
    generated: marks around what the assistant writes.
  """
  environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
    trim_blocks=True,
    lstrip_blocks=True,
    extensions=[Generation, jinja2.ext.loopcontrols],
  )

  def raise_exception(message: Any):
    raise jinja2.TemplateError(str(message))

  def to_json(
    value, ensure_ascii=False, indent=None, separators=None, **kwargs
  ):
    # Jinja's own escapes what is special in HTML.
    return json.dumps(
      value,
      ensure_ascii=ensure_ascii,
      indent=indent,
      separators=separators,
      sort_keys=kwargs.get('sort_keys', False),
    )

  environment.filters['tojson'] = to_json
  environment.globals['generated'] = tuple(generated)
  environment.globals['raise_exception'] = raise_exception
  environment.globals['strftime_now'] = lambda format: (
    datetime.datetime.now().strftime(format)
  )
  return environment.from_string(source)


def render(
  template: jinja2.Template, first: dict[str, Any], messages: Any, ask: bool
) -> str:
  """The text of a conversation.

  Args:
    template: compiled.
    first: with `variables` and `max_characters`.
    messages: of the conversation.
    ask: whether the text ends where the assistant begins to answer.
  """
  limit = first['max_characters']
  pieces, size = [], 0
  for piece in template.generate(
    messages=messages,
    add_generation_prompt=ask,
    tools=None,
    documents=None,
    **first['variables'],
  ):
    pieces.append(piece)
    size += len(piece)
    if size > limit:
      raise ValueError(f'it writes more than {limit:,} characters')
  return ''.join(pieces)


def main():
  """Answers requests until the input ends."""
  read = lambda: json.loads(sys.stdin.buffer.readline() or 'null')
  start_timer = getattr(signal, 'setitimer', None)
  first, template = read(), None
  _limit_memory(first['memory_bytes'])
  while (request := read()) is not None:
    if start_timer is not None:
      # No handler: it must also end what Python can't interrupt.
      start_timer(signal.ITIMER_PROF, first['seconds'])
    try:
      if template is None:
        template = compile_template(first['template'], first['generated'])
      answer = {
        'texts': [
          render(template, first, messages, ask) for messages, ask in request
        ]
      }
      line = json.dumps(answer).encode()
    except MemoryError:
      line = json.dumps({'error': 'it needs too much memory'}).encode()
    # The edge of a process: a template can raise anything.
    except Exception as error:
      reason = ' '.join(f'{error}'.split())[:300] or type(error).__name__
      line = json.dumps({'error': reason}).encode()
    if start_timer is not None:
      start_timer(signal.ITIMER_PROF, 0)
    sys.stdout.buffer.write(line + b'\n')
    sys.stdout.buffer.flush()


def _limit_memory(num_bytes: int):
  try:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
  except (ImportError, ValueError, OSError):
    # Not on Windows; macOS does not always take it.
    pass


if __name__ == '__main__':
  main()
