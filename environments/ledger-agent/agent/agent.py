"""An agent of about a hundred lines: it plans, works with tools, and checks its answer. Standard library only.

One case comes on standard input as a line of JSON; one line of JSON with the answer goes to the file that
BENCHGEN_RESULTS names. The model is reached at the address and with the key that come with the case.
"""

from __future__ import annotations

import json
import os
import sys
import urllib.error
import urllib.request

from tools import Ledger, ToolError

MOST_STEPS = 12

RULES = """You answer questions about a small ledger. Amounts are in euros; refunds are negative.
You never calculate in your head. Each of your messages is ONE line with ONE command:
  SHOW                                 the whole ledger
  SUM [where]                          the sum of the amounts of rows
  COUNT [where]                        how many rows
  LIST [where]                         the rows
  CALC <expression>                    numbers, + - * / ( ) and round(x, digits), min, max, abs
  ANSWER <number>                      your final answer, a plain number without a unit
[where] is: where <column> <op> <value> [and <column> <op> <value> ...]
with the columns date (YYYY-MM-DD), item, category, amount, and the operators = != < <= > >=.
Example: SUM where category = food and date >= 2026-03-15"""

PLAN = "Before you begin: in at most five short lines, which commands will you need? Do not answer yet."
BEGIN = "Now work. Send the first command, and nothing else."
CHECK = (
    "You gave {answer}. Check it against the question: rounding, refunds, dates, what was asked for. "
    "Send CONFIRM if it is right, or one more command if it is not."
)


class Model:
    """The run's model, by OpenAI's API."""

    def __init__(self, name: str, base_url: str, api_key: str) -> None:
        self._name, self._url, self._key = name, base_url + "/chat/completions", api_key

    def ask(self, messages: list[dict[str, str]]) -> str:
        """What the model says next."""
        body = json.dumps({"model": self._name, "messages": messages}).encode()
        headers = {"Authorization": f"Bearer {self._key}", "Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(self._url, body, headers)) as response:
            return json.load(response)["choices"][0]["message"]["content"] or ""


def command_of(said: str) -> tuple[str, str]:
    """The last line of a message that is a command, and what comes after its first word."""
    for line in reversed(said.strip().splitlines()):
        word, _, rest = line.strip().strip("`*").partition(" ")
        word = word.upper().rstrip(":")
        if word in ("SHOW", "SUM", "COUNT", "LIST", "CALC", "ANSWER", "CONFIRM"):
            return word, rest.strip().strip("`*")
    return "", ""


def solve(model: Model, question: str, ledger: Ledger) -> str:
    """Plan, work, check; returns the final answer as it is scored."""
    messages = [
        {"role": "system", "content": RULES},
        {
            "role": "user",
            "content": f"The ledger has {len(ledger.rows)} rows. Question: {question}\n\n{PLAN}",
        },
    ]

    def ask(text: str = "") -> str:
        if text:
            messages.append({"role": "user", "content": text})
        said = model.ask(messages)
        messages.append({"role": "assistant", "content": said})
        print(said, file=sys.stderr)
        return said

    ask()
    said, answer = ask(BEGIN), ""
    for _ in range(MOST_STEPS):
        word, rest = command_of(said)
        if word == "CONFIRM" and answer:
            break
        if word == "ANSWER":
            if rest == answer:
                break  # It says the same again.
            answer = rest
            said = ask(CHECK.format(answer=answer))
            continue
        try:
            result = ledger.run(word, rest)
        except ToolError as error:
            result = f"error: {error}"
        said = ask(result)
    return f"ANSWER {answer}" if answer else said


def main() -> None:
    """Answer every case on standard input."""
    with open(os.environ["BENCHGEN_RESULTS"], "a", encoding="utf-8") as results:
        for line in sys.stdin:
            case = json.loads(line)
            given = case["fields"]
            said: dict[str, str] = {"case_id": case["case_id"], "trial": case["trial"]}
            try:
                said["response"] = solve(Model(**case["model"]), given["question"], Ledger(given["ledger"]))
            except urllib.error.HTTPError as error:
                said["error"] = f"{error.code}: {error.read().decode(errors='replace')[:500]}"
            results.write(json.dumps(said) + "\n")
            results.flush()


if __name__ == "__main__":
    main()
