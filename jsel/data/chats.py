"""Rows of chats, instructions and plain texts: who says what, and the text of a part of it."""

import difflib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

from jsel.data import files

Format = Literal["text", "alpaca", "messages", "sharegpt"]
Span = Literal["prompt", "answer", "both"]

# The column that makes a row one of a format, unless another is named.
COLUMNS = {
  "messages": "messages",
  "sharegpt": "conversations",
  "alpaca": "instruction",  # and input and output, which may be missing
  "text": "text",
}
# What ShareGPT calls those who speak.
ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}
ANSWERS = "assistant"
INSTALL = "pip install 'jsel[text]'"


class Layout(NamedTuple):
  """How rows are read."""

  kind: Format
  column: str  # of the text, the turns or the instruction


class Turn(NamedTuple):
  """What is said at a time."""

  role: str  # "user", "assistant", "system" or another; "" of a plain text
  content: str


class Chat(NamedTuple):
  """A row; a plain text is a prompt without an answer."""

  prompt: tuple[Turn, ...]  # all before the answer
  answer: tuple[Turn, ...]  # the last turn of the assistant, or none


Template = Callable[[Sequence[Turn]], str]


def layout_of(row: Mapping[str, Any], *, kind: str = "", column: str = "") -> Layout:
  """How rows like ``row`` are read.

  Args:
    row: the first, by column.
    kind: a `Format`; "" finds it out.
    column: of the text, the turns or the instruction; "" is that of the format.

  Raises:
    ValueError: if it is of no format, or the column is missing, naming the nearest.

  >>> layout_of({"id": 1, "instruction": "Add.", "output": "3"})
  Layout(kind='alpaca', column='instruction')
  >>> layout_of({"said": [{"from": "human", "value": "Hi"}]}, column="said").kind
  'sharegpt'
  """
  if kind and kind not in get_args(Format):
    raise ValueError(f"text.format must be one of {', '.join(get_args(Format))}, got {kind!r}")
  found = column or (COLUMNS[kind] if kind else next((c for c in COLUMNS.values() if c in row), ""))
  if found not in row:
    wanted = [found] if found else list(COLUMNS.values())
    near = [match for name in wanted for match in difflib.get_close_matches(name, row, 1)]
    near = near or difflib.get_close_matches(wanted[0], row, 1, 0)
    raise ValueError(
      f"no column {' or '.join(wanted)}: did you mean {near[0] if near else 'none'!r}? Set"
      f" --config.text.column to one of {', '.join(row)}"
    )
  if kind:
    return Layout(kind, found)  # pyrefly: ignore[bad-argument-type]
  if found == COLUMNS["alpaca"] and not column:
    return Layout("alpaca", found)
  if isinstance(row[found], Sequence) and not isinstance(row[found], str):
    entry = row[found][0] if row[found] else {}
    given = isinstance(entry, Mapping) and ("from" in entry or "role" in entry)
    sharegpt = "from" in entry if given else found == COLUMNS["sharegpt"]
    return Layout("sharegpt" if sharegpt else "messages", found)
  return Layout("text", found)


def read_chat(row: Mapping[str, Any], layout: Layout) -> Chat:
  """The turns of a row.

  An instruction and its input are one turn of the user, with a blank line between them. Turns after
  the last of the assistant are left out where there is one: nothing can be learned from them.

  Raises:
    ValueError: if the column is missing or holds something else.

  >>> row = {"instruction": "Add.", "input": "1 2", "output": "3"}
  >>> chat = read_chat(row, layout_of(row))
  >>> chat.prompt[0].content, chat.answer[0].content
  ('Add.\\n\\n1 2', '3')
  """
  kind, name = layout
  if name not in row:
    raise ValueError(f"there is no {name!r}, the first row has one")
  if kind == "text":
    return Chat((Turn("", _text(row[name], name)),), ())
  if kind == "alpaca":
    asked = [_text(row.get(part), part) for part in (name, "input")]
    prompt = Turn("user", "\n\n".join(piece for piece in asked if piece))
    answer = _text(row.get("output"), "output")
    return Chat((prompt,), (Turn(ANSWERS, answer),) if answer else ())
  role, content = ("role", "content") if kind == "messages" else ("from", "value")
  if not isinstance(row[name], Sequence) or isinstance(row[name], str):
    raise ValueError(f"{name} is {_kind(row[name])}, expected a list of {role} and {content}")
  turns = [_turn(entry, role, content, f"{name}[{n}]") for n, entry in enumerate(row[name])]
  last = max((n for n, turn in enumerate(turns) if turn.role == ANSWERS), default=None)
  if last is None:
    return Chat(tuple(turns), ())
  return Chat(tuple(turns[:last]), (turns[last],))


def spanned(chat: Chat, span: Span) -> tuple[Turn, ...]:
  """The turns of ``span``.

  Raises:
    ValueError: if there is no such span, or a plain text is asked for its parts.
  """
  if span not in get_args(Span):
    raise ValueError(f"text.span must be one of {', '.join(get_args(Span))}, got {span!r}")
  if span != "both" and len(chat.prompt) == 1 and not chat.prompt[0].role:
    raise ValueError(f"a plain text has no {span}: set --config.text.span=both")
  return {"prompt": chat.prompt, "answer": chat.answer, "both": chat.prompt + chat.answer}[span]


def joined(turns: Sequence[Turn]) -> str:
  r"""A line ``role: content`` a turn; a plain text, and a turn of no role, as it is.

  This is the template where no other is given. It is the same for all formats, so that an
  instruction and a chat that say the same have the same embedding.

  >>> joined([Turn("user", "Add 1 and 2."), Turn("assistant", "3")])
  'user: Add 1 and 2.\nassistant: 3'
  """
  line = lambda turn: f"{turn.role}: {turn.content}" if turn.role else turn.content
  return "\n".join(line(turn) for turn in turns if turn.content.strip())


def contents(turns: Sequence[Turn]) -> str:
  """What was said, without who said it: a paragraph a turn."""
  return "\n\n".join(turn.content for turn in turns)


def open_template(path: str) -> Template:
  """The Jinja template in the file ``path``, of the kind that tokenizers come with.

  It is given ``messages``, a list of {role, content}, ``add_generation_prompt`` False and empty
  ``bos_token`` and ``eos_token``. It runs in Jinja's sandbox: it sees nothing else, and changes
  nothing. Turns without content are none, as with `joined`.

  Raises:
    ValueError: if it is missing or no template, or the package jinja2 is not installed.
  """
  if importlib.util.find_spec("jinja2") is None:
    raise ValueError(f"jinja2 is not installed, {path} cannot be used: {INSTALL}")
  import jinja2  # of the extra `text`
  from jinja2.sandbox import ImmutableSandboxedEnvironment

  environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
  environment.add_extension("jinja2.ext.loopcontrols")

  def refuse(message: str) -> str:
    raise jinja2.TemplateError(message)

  try:
    template = environment.from_string(files.read(path).decode())
  except (jinja2.TemplateError, UnicodeDecodeError) as error:
    raise ValueError(f"{path} is no Jinja template ({error}): repair it") from error
  given = {"add_generation_prompt": False, "bos_token": "", "eos_token": ""}
  given |= {"raise_exception": refuse}

  def render(turns: Sequence[Turn]) -> str:
    messages = [turn._asdict() for turn in turns if turn.content.strip()]
    try:
      return template.render(messages=messages, **given) if messages else ""
    except Exception as error:  # a template may raise anything that Python does
      raise ValueError(f"the template {path} fails ({error}): repair it or the row") from error

  return render


def _turn(entry: Any, role: str, content: str, where: str) -> Turn:
  if not isinstance(entry, Mapping) or role not in entry or content not in entry:
    raise ValueError(f"{where} is no object with {role!r} and {content!r}")
  name = _text(entry[role], f"{where}.{role}")
  return Turn(ROLES.get(name, name), _text(entry[content], f"{where}.{content}"))


def _text(value: Any, where: str) -> str:
  """A text, or the texts of a list of parts as APIs of chats have it; nothing is no text."""
  if value is None:
    return ""
  if isinstance(value, Sequence) and not isinstance(value, str):
    if all(isinstance(part, Mapping) and isinstance(part.get("text"), str) for part in value):
      return "\n".join(part["text"] for part in value)
    raise ValueError(f"{where} has parts that are no text: drop the row")
  if not isinstance(value, str):
    raise ValueError(f"{where} is {_kind(value)}, expected a text")
  return value


def _kind(value: Any) -> str:
  return f"of type {type(value).__name__}" if value is not None else "missing"
