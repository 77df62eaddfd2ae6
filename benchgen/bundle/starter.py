"""Small working environments to start from, for ``benchgen env init``."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import orjson

from benchgen.bundle.tree import MANIFEST_FILE
from benchgen.errors import AlreadyExists, InvalidInput


class Starter(NamedTuple):
    """One starting point: a line about it, its ``environment.yaml``, the rows of ``data/test.jsonl``, more files."""

    about: str
    manifest: str
    rows: tuple[dict[str, Any], ...]
    files: tuple[tuple[str, str], ...] = ()


_HEAD = """\
# A BenchGen environment. `benchgen env validate .` checks it, `benchgen env push .` publishes it.
schema: 1
name: {name}
version: 0.1.0                # semver; a published version never changes
"""

_MATH = (
    _HEAD
    + """\
title: Word problems with a number as answer
description: One line for the card.
category: reasoning
tags: [math]
license: CC0-1.0
dataset:
  file: data/test.jsonl       # .jsonl .json .csv .tsv .parquet, plain or .gz/.zst
  id: id                      # a field; without it the row number
  target: answer              # a field, or a template such as "{{{{ answer.split()[-1] }}}}"
  slices: [difficulty]        # fields that results are broken down by
harness:
  type: chat
  system: You are a careful mathematician.
  prompt: |
    {{{{ question }}}}
    Think step by step. End with a line "#### <number>".
  generation: {{temperature: 0, max_tokens: 512}}
# The reference solution. It must get full marks, or the version is rejected.
oracle: "{{{{ solution }}}}\\n#### {{{{ answer }}}}"
scoring:
  - name: correct
    type: numeric
    extract: {{regex: '####\\s*(-?[\\d.,]+)', take: last}}
    primary: true
"""
)

_CHOICE = (
    _HEAD
    + """\
title: Multiple choice
description: One line for the card.
category: domain-knowledge
tags: [science]
license: CC0-1.0
dataset:
  file: data/test.jsonl
  id: id
  target: answer              # the letter of the right option
  slices: [topic]
harness:
  type: chat
  prompt: |
    {{{{ question }}}}
    {{% for option in options %}}
    {{{{ "ABCDEFGH"[loop.index0] }}}}. {{{{ option }}}}
    {{% endfor %}}
    Answer with one letter, on a line "Answer: <letter>".
  generation: {{temperature: 0, max_tokens: 256}}
oracle: "Answer: {{{{ answer }}}}"
scoring:
  - name: correct
    type: choice
    choices: options          # a field or template with the list of option texts
    primary: true
"""
)

_INSTRUCT = (
    _HEAD
    + """\
title: Does it follow the instruction
description: One line for the card.
category: instruction-following
tags: [format]
license: CC0-1.0
dataset:
  file: data/test.jsonl
  id: id
  target: pattern             # the pattern that the whole response must match
  slices: [kind]
harness:
  type: chat
  prompt: "{{{{ instruction }}}}"
  generation: {{temperature: 0, max_tokens: 128}}
oracle: example
scoring:
  - name: followed
    type: regex
    match: fullmatch
    primary: true
  - name: mentions            # a second figure beside the primary one
    type: includes
    target: keyword
"""
)

_MATH_ROWS = (
    (
        "apples",
        "Ana has 3 bags with 4 apples each and eats 2 apples. How many are left?",
        "3 * 4 - 2 = 10",
        10,
        "easy",
    ),
    (
        "train",
        "A train runs 180 km in 2 hours. How many km does it run in 5 hours?",
        "180 / 2 * 5 = 450",
        450,
        "easy",
    ),
    (
        "price",
        "A 40 dollar coat is sold at 25% off. What does it cost, in dollars?",
        "40 * 0.75 = 30",
        30,
        "medium",
    ),
    (
        "pages",
        "Bo reads 12 pages a day. How many days for 150 pages, at most 12 a day?",
        "150 / 12 > 12",
        13,
        "medium",
    ),
)
_CHOICE_ROWS = (
    (
        "planet",
        "Which planet is nearest to the sun?",
        ["Venus", "Mercury", "Mars", "Earth"],
        "B",
        "astronomy",
    ),
    (
        "gas",
        "Which gas do plants take up for photosynthesis?",
        ["Carbon dioxide", "Oxygen", "Neon"],
        "A",
        "biology",
    ),
    ("unit", "What is the unit of electric resistance?", ["Volt", "Ampere", "Watt", "Ohm"], "D", "physics"),
    ("water", "What is water made of?", ["Helium and oxygen", "Hydrogen and oxygen"], "B", "chemistry"),
)
_INSTRUCT_ROWS = (
    (
        "upper",
        "Write the word harbour in capital letters and nothing else.",
        "HARBOUR",
        "HARBOUR",
        "harbour",
        "case",
    ),
    (
        "two",
        "Name two colours, lower case, with a comma between them.",
        "[a-z]+, ?[a-z]+",
        "red, blue",
        ",",
        "list",
    ),
    ("year", "Write the year of the first Moon landing, digits only.", "1969", "1969", "1969", "digits"),
    ("yes", "Is ice cold? Answer only with Yes. or No.", r"Yes\.|No\.", "Yes.", "yes", "fixed"),
)


_AGENT = (
    _HEAD
    + """\
title: An agent that checks its answer
description: One line for the card.
category: agentic
license: CC0-1.0
dataset:
  file: data/test.jsonl
  id: id
  target: answer
harness:
  type: program               # a program of this folder, in a sandbox: docs/programs.md
  files: agent                # what it sees, at /app/program
  command: [python3, agent.py]
  fields: [question]          # what it sees of a row
  calls: 10                   # model calls that one case may take
  generation: {{temperature: 0, max_tokens: 512}}
oracle: answer
scoring:
  - name: correct
    type: numeric
"""
)
_AGENT_ROWS = (
    ("boxes", "Each of 4 boxes holds 6 eggs. 5 eggs break. How many are whole?", "19"),
    ("train", "A train leaves at 9:40 and arrives at 11:05. How many minutes does it take?", "85"),
    ("price", "A 60 euro coat is 15 percent off. What does it cost in euros?", "51"),
)
_AGENT_PROGRAM = '''\
"""Answers a question, and asks the model to check the answer. Standard library only."""

import json
import os
import sys
import urllib.request


def ask(model, messages):
    body = json.dumps({"messages": messages}).encode()
    headers = {"Authorization": "Bearer " + model["api_key"], "Content-Type": "application/json"}
    request = urllib.request.Request(model["base_url"] + "/chat/completions", body, headers)
    with urllib.request.urlopen(request) as response:
        return json.load(response)["choices"][0]["message"]["content"] or ""


def solve(model, question):
    messages = [{"role": "user", "content": question + " Work step by step. End with the number alone."}]
    messages.append({"role": "assistant", "content": ask(model, messages)})
    messages.append({"role": "user", "content": "Check this. End with the right number alone."})
    return ask(model, messages)


# One line of JSON for each case comes in, and one line with its answer goes to this file.
with open(os.environ["BENCHGEN_RESULTS"], "a") as results:
    for line in sys.stdin:
        case = json.loads(line)
        answer = solve(case["model"], case["fields"]["question"])
        said = {"case_id": case["case_id"], "trial": case["trial"], "response": answer}
        print(json.dumps(said), file=results, flush=True)
'''


def _rows(names: str, values: tuple[tuple[Any, ...], ...]) -> tuple[dict[str, Any], ...]:
    return tuple(dict(zip(names.split(), row, strict=True)) for row in values)


STARTERS: dict[str, Starter] = {
    "math": Starter(
        "a number at the end of a solution",
        _MATH,
        _rows("id question solution answer difficulty", _MATH_ROWS),
    ),
    "choice": Starter(
        "multiple choice",
        _CHOICE,
        _rows("id question options answer topic", _CHOICE_ROWS),
    ),
    "instruct": Starter(
        "instructions that a pattern can check",
        _INSTRUCT,
        _rows("id instruction pattern example keyword kind", _INSTRUCT_ROWS),
    ),
    "agent": Starter(
        "a program that calls the model several times",
        _AGENT,
        _rows("id question answer", _AGENT_ROWS),
        (("agent/agent.py", _AGENT_PROGRAM),),
    ),
}


def write_starter(folder: Path, name: str, template: str = "math") -> list[Path]:
    """Writes a small environment that validates into a folder, and answers which files it wrote.

    Raises ``InvalidInput`` for an unknown template, and ``AlreadyExists`` where a file is there already;
    nothing is written then.
    """
    if template not in STARTERS:
        raise InvalidInput(f"expected one of the templates {', '.join(STARTERS)}, found {template!r}")
    starter = STARTERS[template]
    contents = {
        folder / MANIFEST_FILE: starter.manifest.format(name=name).encode(),
        folder / "data" / "test.jsonl": b"".join(orjson.dumps(row) + b"\n" for row in starter.rows),
        **{folder / path: content.encode() for path, content in starter.files},
    }
    for path in contents:
        if path.exists():
            raise AlreadyExists(f"{path} exists already")
    for path, content in contents.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return list(contents)
