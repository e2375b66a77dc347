"""Rows of text: formats, spans, templates, and what is wrong with a row told."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jsel.data import chats
from jsel.data.chats import Turn
from jsel.data.text_files import TextFile, columns_of

USER, ANSWER = Turn("user", "Add.\n\n1 2"), Turn("assistant", "3")
SAME = {
  "alpaca": {"instruction": "Add.", "input": "1 2", "output": "3"},
  "messages": {
    "messages": [
      {"role": "user", "content": "Add.\n\n1 2"},
      {"role": "assistant", "content": "3"},
    ]
  },
  "sharegpt": {
    "conversations": [{"from": "human", "value": "Add.\n\n1 2"}, {"from": "gpt", "value": "3"}]
  },
}


def write_lines(path, rows):
  path.write_text("".join(json.dumps(row) + "\n" for row in rows))
  return str(path)


def read(path, **options):
  return [chat for _, chat, _ in TextFile(str(path), **options).rows()]


@pytest.mark.parametrize("kind", SAME)
@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("suffix", ["jsonl", "ndjson", "parquet"])
def test_all_formats_say_the_same(tmp_path, kind, given, suffix):
  rows = [SAME[kind]] * 3
  path = tmp_path / f"a.{suffix}"
  if suffix == "parquet":
    pq.write_table(pa.Table.from_pylist(rows), path)
  else:
    write_lines(path, rows)
  file = TextFile(str(path), kind=kind if given else "")
  assert file.layout.kind == kind
  assert [chat for _, chat, _ in file.rows()] == [chats.Chat((USER,), (ANSWER,))] * 3


def test_a_span_is_of_the_last_answer_and_what_follows_it_is_left_out():
  said = ["system", "user", "assistant", "user", "assistant", "user"]
  row = {"messages": [{"role": role, "content": f"{n}"} for n, role in enumerate(said)]}
  chat = chats.read_chat(row, chats.layout_of(row))
  of = lambda span: "".join(turn.content for turn in chats.spanned(chat, span))
  assert (of("prompt"), of("answer"), of("both")) == ("0123", "4", "01234")
  row["messages"] = row["messages"][:2]
  chat = chats.read_chat(row, chats.layout_of(row))
  assert (of("prompt"), of("answer"), of("both")) == ("01", "", "01")


def test_plain_texts_are_as_they_are_and_have_no_parts():
  row = {"said": "user: hello"}
  chat = chats.read_chat(row, chats.layout_of(row, column="said"))
  assert chats.joined(chats.spanned(chat, "both")) == "user: hello"
  with pytest.raises(ValueError, match=r"a plain text has no answer: set --config.text.span=both"):
    chats.spanned(chat, "answer")
  with pytest.raises(ValueError, match=r"span must be one of prompt, answer, both, got 'all'"):
    chats.spanned(chat, "all")


def test_parts_of_a_message_are_joined_and_pictures_refused():
  parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]
  row = {"messages": [{"role": "user", "content": parts}, {"role": "tool", "content": None}]}
  chat = chats.read_chat(row, chats.layout_of(row))
  assert chats.joined(chat.prompt) == "user: one\ntwo"
  parts.append({"type": "image_url"})
  with pytest.raises(ValueError, match=r"messages\[0\].content has parts that are no text"):
    chats.read_chat(row, chats.layout_of(row))


def test_columns_come_along_by_name(tmp_path):
  rows = [{"text": f"t{n}", "id": f"a{n}", "from": "web", "score": n / 2} for n in range(3)]
  path = write_lines(tmp_path / "a.jsonl", rows)
  names = {"id": None, "source": "from", "score": "", "length": None}
  found = [columns for _, _, columns in TextFile(path, names=names).rows()]
  assert found == [{"id": f"a{n}", "source": "web"} for n in range(3)]
  with pytest.raises(ValueError, match=r"a.jsonl:1 has no column 'frmo': did you mean 'from'"):
    TextFile(path, names={"source": "frmo"})
  columns = columns_of({"id": ["a", None], "length": [1, 2]}, "a.jsonl")
  assert [columns[name].to_pylist() for name in columns] == [["a", None], [1, 2]]
  with pytest.raises(ValueError, match=r"a.jsonl: values of id are of several kinds"):
    columns_of({"id": ["a", 1]}, "a.jsonl")


@pytest.mark.parametrize(
  ("line", "message"),
  [
    ("{not json", r"a.jsonl:3 is no JSON"),
    ("[1]", r"a.jsonl:3 is a list, expected an object"),
    (b'{"text": "\xff"}', r"a.jsonl:3 is no JSON .*utf-8"),
    ('{"txt": "c"}', r"a.jsonl:3: there is no 'text', the first row has one"),
    ('{"text": 5}', r"a.jsonl:3: text is of type int, expected a text"),
  ],
)
def test_a_bad_line_is_named(tmp_path, line, message):
  # An empty line is no row, and yet a line.
  line = line if isinstance(line, bytes) else line.encode()
  (tmp_path / "a.jsonl").write_bytes(b'{"text": "a"}\n\n' + line + b"\n")
  with pytest.raises(ValueError, match=message):
    read(tmp_path / "a.jsonl")


@pytest.mark.parametrize(
  ("row", "message"),
  [
    ({"messages": "hello"}, None),
    ({"messages": [{"role": "user"}]}, r"messages\[0\] is no object with 'role' and 'content'"),
    (
      {"conversations": [{"from": "human", "value": 3}]},
      r"conversations\[0\].value is of type int",
    ),
  ],
)
def test_turns_that_are_none_are_told(row, message):
  if message is None:
    row, message = (
      {"messages": [], **row},
      r"messages is of type str, expected a list of",
    )
    layout = chats.Layout("messages", "messages")
  else:
    layout = chats.layout_of(row)
  with pytest.raises(ValueError, match=message):
    chats.read_chat(row, layout)


def test_no_column_of_text_names_the_nearest(tmp_path):
  write_lines(tmp_path / "a.jsonl", [{"id": 1, "textt": "a"}])
  with pytest.raises(ValueError, match=r"a.jsonl:1: no column messages or .* mean 'textt'\?"):
    read(tmp_path / "a.jsonl")
  with pytest.raises(ValueError, match=r"no column instruction: did you mean"):
    read(tmp_path / "a.jsonl", kind="alpaca")
  with pytest.raises(ValueError, match=r"text.format must be one of text, .* got 'vicuna'"):
    read(tmp_path / "a.jsonl", kind="vicuna")
  assert read(tmp_path / "a.jsonl", column="textt")[0].prompt == (Turn("", "a"),)


def test_files_of_no_rows_or_another_kind_are_told(tmp_path):
  (tmp_path / "a.jsonl").write_text("\n\n")
  with pytest.raises(ValueError, match=r"a.jsonl has no rows: leave it out"):
    read(tmp_path / "a.jsonl")
  with pytest.raises(ValueError, match=r"a.csv is of an unknown kind: texts are in .jsonl or"):
    read(tmp_path / "a.csv")
  with pytest.raises(ValueError, match=r"there is no file .*b.jsonl"):
    read(tmp_path / "b.jsonl")


def test_a_template_is_run_in_a_sandbox(tmp_path):
  pytest.importorskip("jinja2", reason="pip install 'jsel[text]'")
  path = tmp_path / "chat.jinja"
  path.write_text(
    "{% for m in messages %}\n<|{{ m.role }}|>{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
  )
  turns = [USER, Turn("tool", " "), ANSWER]
  assert chats.open_template(str(path))(turns) == "<|user|>Add.\n\n1 2\n<|assistant|>3\n"
  assert chats.open_template(str(path))([]) == ""
  path.write_text("{{ messages.__class__.__mro__[1].__subclasses__() }}")
  with pytest.raises(ValueError, match=r"the template .*chat.jinja fails \(access to attribute"):
    chats.open_template(str(path))(turns)
  path.write_text("{{ raise_exception('no tools') }}")
  with pytest.raises(ValueError, match=r"fails \(no tools\)"):
    chats.open_template(str(path))(turns)
  path.write_text("{% for m in messages %}")
  with pytest.raises(ValueError, match=r"chat.jinja is no Jinja template"):
    chats.open_template(str(path))
