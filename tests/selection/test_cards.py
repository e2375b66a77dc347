"""Every method has a card, and the card says what the code does."""

import pathlib
import re

import pytest

from jsel.selectors import methods

CARDS = pathlib.Path(__file__).parent.parent.parent / "docs" / "methods"
PARTS = ("What it does", "Formula", "Needs", "Cost", "Memory", "When not to use it", "Sources")


def parameters(text: str) -> dict[str, str]:
  """The default that a card's table gives to each parameter."""
  rows = re.findall(r"^\| `(\w+)` \| ([^|]+) \| \S.*\|$", text, re.MULTILINE)
  assert len(dict(rows)) == len(rows), "a parameter stands twice"
  return {name: default.strip("` ") for name, default in rows}


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_card_has_every_parameter_with_its_default(name):
  text = (CARDS / f"{name}.md").read_text()
  assert parameters(text) == {what: str(value) for what, value in methods.constants(name).items()}


@pytest.mark.parametrize("name", methods.METHODS)
def test_a_card_says_what_one_chooses_by(name):
  text = (CARDS / f"{name}.md").read_text()
  assert text.startswith(f"# {name}: ")
  said = " ".join(re.findall(r"\*\*([^*]+)\*\*", text))
  assert [part for part in PARTS if part.lower() not in said.lower()] == []
  assert "BENCHMARKS.md" in text.split("**Measured.**")[1]
  needs = text.split("**Needs.**")[1].split("\n\n")[0]
  assert [need for need in methods.make(name).needs if f"`{need}`" not in needs] == []


def test_there_is_no_card_without_a_method_and_links_lead_somewhere():
  cards = sorted(CARDS.glob("*.md"))
  assert {card.stem for card in cards} <= set(methods.METHODS)
  for card in cards:
    for link in re.findall(r"\]\(([\w./]+)\)", card.read_text()):
      assert (CARDS / link).exists(), f"{card.name}: {link}"


def test_a_wrong_default_is_found():
  assert parameters("| `floor` | 0.05 | share |\n| `by` | `clusters` | which |\n") == {
    "floor": "0.05",
    "by": "clusters",
  }
  assert parameters("| parameter | default | meaning |\n|---|---|---|\n| `floor` | 0.1 | |") == {}
