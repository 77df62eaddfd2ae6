"""Asks every question three times and answers what was said most often. Standard library only."""

import json
import os
import sys
import urllib.request
from collections import Counter


def ask(model: dict[str, str], question: str) -> str:
    """What the model says to a question."""
    body = json.dumps({"messages": [{"role": "user", "content": question}]}).encode()
    headers = {"Authorization": "Bearer " + model["api_key"], "Content-Type": "application/json"}
    request = urllib.request.Request(model["base_url"] + "/chat/completions", body, headers)
    with urllib.request.urlopen(request) as response:
        return str(json.load(response)["choices"][0]["message"]["content"]).strip()


with open(os.environ["BENCHGEN_RESULTS"], "a") as results:
    for line in sys.stdin:
        case = json.loads(line)
        question = f"What is the capital of {case['fields']['country']}? Only the name of the city."
        votes = Counter(ask(case["model"], question) for _ in range(3))
        answer = {"case_id": case["case_id"], "trial": case["trial"], "response": votes.most_common(1)[0][0]}
        print(json.dumps(answer), file=results, flush=True)
