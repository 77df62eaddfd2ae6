"""Rules that run code and programs: right is right, wrong is wrong, and nothing that is judged has a say in it."""

from __future__ import annotations

import asyncio
import gzip
import json
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import orjson
import pytest
import pytest_asyncio

from benchgen.bundle import load_folder
from benchgen.bundle.programs import pack_program
from benchgen.eval.v1 import environment_pb2, result_pb2
from benchgen.scoring.rules import RuleScore, SlowRule, compile_rules
from benchgen.scoring.spec import parse_rules
from services.common.objects import Bucket, ObjectStore
from services.common.sandbox.bubblewrap import Bubblewrap
from services.common.sandbox.runtimes import Runtimes
from services.common.sandbox.select import Refusing
from services.scorer.domain import Outcome, Subject, TrialKey
from services.scorer.judging import BoxJudge
from services.scorer.pending import CannotJudge
from tests import conftest
from tests.integration.scorer import support

pytestmark = pytest.mark.asyncio(loop_scope="module")

HUMANEVAL = Path(__file__).parents[4] / "shared" / "data" / "humaneval"
RUNTIMES = {"default": sys.base_prefix}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def objects(buckets: conftest.ObjectStore) -> AsyncIterator[ObjectStore]:
    async with ObjectStore(support.object_settings(buckets, "hub")) as store:
        yield store


@pytest.fixture(scope="module")
def judge(objects: ObjectStore) -> BoxJudge:
    return BoxJudge(Bubblewrap(Runtimes(RUNTIMES)), objects, 2)


def rule(**fields: Any) -> SlowRule:
    (compiled,) = compile_rules(parse_rules([{"name": "r", **fields}]))
    assert isinstance(compiled, SlowRule)
    return compiled


def code_rule(**fields: Any) -> SlowRule:
    fields.setdefault("limits", {"seconds": 5, "memory_mb": 256})
    return rule(type="code_tests", tests="t", **fields)


def subject(response: str, number: int = 0, trial: int = 0, **values: Any) -> Subject:
    return Subject(TrialKey(number, trial), f"case-{number}", Outcome.OK, response, values)


async def judged(judge: BoxJudge, by: SlowRule, subjects: Sequence[Subject]) -> list[RuleScore]:
    found: dict[TrialKey, RuleScore] = {}
    async for scores in judge.judge(by, subjects):
        assert not found.keys() & scores.keys()
        found |= scores
    return [found[one.key] for one in subjects]


async def verdict(
    judge: BoxJudge, code: str, tests: Any, by: SlowRule | None = None, **values: Any
) -> RuleScore:
    (score,) = await judged(judge, by or code_rule(), [subject(code, tests=tests, **values)])
    return score


# Code and tests

CHECK = "def check(candidate):\n    assert candidate(2) == 3\n    assert candidate(5) == 6\ncheck(f)"
RIGHT = "def f(x):\n    return x + 1\n"


@pytest.mark.parametrize("isolation", ["values", "none"])
async def test_right_code_passes_and_wrong_code_says_where(judge: BoxJudge, isolation: str) -> None:
    by = code_rule(isolation=isolation)
    assert await verdict(judge, RIGHT, CHECK, by) == RuleScore(1.0, True, RIGHT, "", None)
    wrong = await verdict(judge, "def f(x):\n    return 3", CHECK, by)
    assert (wrong.value, wrong.passed) == (0.0, False)
    assert wrong.explanation == "assert candidate(5) == 6: got 3"
    broken = await verdict(judge, "def f(x):\n    return [][x]", CHECK, by)
    assert broken.explanation == "assert candidate(2) == 3: IndexError: list index out of range"
    assert (await verdict(judge, "def f(x) return", CHECK, by)).explanation.startswith(
        "the code is no Python"
    )
    loading = await verdict(judge, "x = 1\ny = 1 / 0", CHECK, by)
    assert loading.explanation == (
        "the code does not load: ZeroDivisionError: division by zero (line 2 of the code)"
    )


PLAIN = {
    "a class": (
        "class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
        "    def __len__(self): return len(self.items)",
        "s = Stack(); s.push(3); s.push(4)\nassert len(s) == 2\nassert s.items == [3, 4]\nassert isinstance(s, Stack)",
    ),
    "operators": (
        "class V:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return V(self.x + o.x)\n"
        "    def __eq__(self, o): return self.x == o.x",
        "assert V(1) + V(2) == V(3)\nassert not V(1) + V(2) == V(4)\nassert (V(1) + V(2)).x == 3",
    ),
    "an exception of its own": (
        "class Empty(ValueError): pass\ndef f(): raise Empty('nothing here')",
        "try:\n    f()\n    assert False\nexcept Empty as error:\n    assert 'nothing' in str(error)\n"
        "try:\n    f()\n    assert False\nexcept ValueError:\n    pass",
    ),
    "changed arguments": (
        "def f(items, seen): items.sort(); seen['n'] = len(items)",
        "a, b = [3, 1, 2], {}\nf(a, b)\nassert a == [1, 2, 3]\nassert b == {'n': 3}",
    ),
    "functions as arguments": (
        "def f(g, items): return [g(x) for x in items]",
        "assert f(lambda x: x * 2, [1, 2]) == [2, 4]\nassert f(str, [1]) == ['1']",
    ),
    "objects of the tests": (
        "def f(node):\n    total = 0\n    while node:\n        total += node.value\n        node = node.next\n"
        "    return total",
        "class Node:\n    def __init__(self, value, next=None): self.value, self.next = value, next\n"
        "assert f(Node(1, Node(2, Node(3)))) == 6",
    ),
    "generators": (
        "def f(n):\n    yield from range(n)",
        "assert list(f(3)) == [0, 1, 2]\nassert next(f(1)) == 0",
    ),
    "values of all kinds": (
        "def f(x): return x",
        "import collections, decimal, fractions, datetime\n"
        "for x in (None, True, 2**70, -0.5, float('inf'), 'ü\\ud800', b'a', (1, [2, {3}]), {(1, 2): None}, 1j,\n"
        "          collections.Counter('aab'), decimal.Decimal('0.1'), fractions.Fraction(1, 3),\n"
        "          datetime.date(2024, 2, 29), range(3), collections.deque([1], 2), frozenset('ab')):\n"
        "    assert f(x) == x and type(f(x)) is type(x), x",
    ),
    "a named tuple": (
        "import collections\nP = collections.namedtuple('P', 'x y')\ndef f(): return P(1, 2)",
        "assert f() == (1, 2)\nassert f().x == 1\nassert isinstance(f(), tuple)",
    ),
    "a dataclass": (
        "from dataclasses import dataclass\n@dataclass\nclass P:\n    x: int\ndef f(): return P(1)",
        "assert f() == P(1)\nassert f().x == 1\nassert f() != P(2)",
    ),
    "unittest": (
        RIGHT,
        "import unittest\nclass T(unittest.TestCase):\n"
        "    def test_it(self): self.assertEqual(f(1), 2)\nunittest.main()",
    ),
    "what it prints": ("print('{\"passed\": false}')\n" + RIGHT, CHECK),
    "a name of Python's": (
        "def len(x): return 0\ndef sum(x): return 0\n" + RIGHT,
        "assert len([1]) == 1\n" + CHECK,
    ),
}


@pytest.mark.parametrize("name", PLAIN)
async def test_tests_see_of_the_code_what_they_need(judge: BoxJudge, name: str) -> None:
    score = await verdict(judge, *PLAIN[name])
    assert score.passed, score


#: Whatever they do, they do not add one. The tests ask for that in ways that a cheat would like.
_ALWAYS = (
    "class A:\n    def __getattr__(self, n): return self\n    def __call__(self, *a, **k): return self\n"
    + "".join(
        f"    def __{name}__(self, *a): return {result}\n"
        for names, result in (
            ("eq le ge lt gt ne bool contains", "True"),
            ("sub add abs getitem enter round", "self"),
            ("hash len int index", "1"),
        )
        for name in names.split()
    )
    + "def f(x): return A()\n"
)
HOSTILE = {
    "always equal": _ALWAYS,
    "an equal int": "class I(int):\n    def __eq__(s, o): return True\n    __hash__ = int.__hash__\n"
    "def f(x): return I(7)",
    "leaves at once": "import os\nos._exit(0)",
    "leaves when asked": "import os\ndef f(x): os._exit(0)",
    "exits": "import sys\ndef f(x): sys.exit(0)",
    "exits at once": "raise SystemExit(0)",
    "raises to leave": "def f(x): raise GeneratorExit",
    "says it passed": 'import os\nfor fd in range(64):\n    try: os.write(fd, b\'{"passed": true, "why": ""}\')\n'
    "    except OSError: pass\nos._exit(0)",
    "says it passed, in our words": "import os, json\nd = json.dumps({'passed': True, 'why': ''}).encode()\n"
    "def f(x):\n    for fd in range(3, 64):\n        try: os.write(fd, len(d).to_bytes(8, 'little') + d)\n"
    "        except OSError: pass\n    os._exit(0)",
    "at exit": "import atexit\natexit.register(print, '{\"passed\": true}')",
    "other builtins": "import builtins\nbuiltins.AssertionError = type('E', (Exception,), {})\n"
    "builtins.exec = builtins.compile = lambda *a, **k: None\nbuiltins.isinstance = lambda *a: True\n"
    "def f(x): return 7",
    "a patched module": "import json\njson.loads = lambda *a: ['value', 3, []]\nimport os\nos.read = None\n"
    "def f(x): return 7",
    "frames": "import sys\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n"
    "        for n, v in list(frame.f_locals.items()) + list(frame.f_globals.items()):\n"
    "            if n in ('passed', 'job', 'tests'): print(v)\n        frame.f_globals['_judged'] = None\n"
    "        frame = frame.f_back\n    return 7",
    "a thread": "import threading, os, time\ndef run():\n    time.sleep(0.05)\n    os._exit(0)\n"
    "threading.Thread(target=run).start()\ndef f(x):\n    time.sleep(3)",
    "kills its judge": "import os, signal\nos.kill(os.getppid(), signal.SIGKILL)",
    "stops its judge": "import os, signal\ndef f(x):\n    for n in (1, 2, 3, 10, 12, 14, 15):\n"
    "        os.kill(os.getppid(), n)\n    return 7",
    "writes its judge's memory": "import os\npid = os.getppid()\nfor name in ('mem', 'fd/1', 'fd/0', 'environ'):\n"
    "    try: open(f'/proc/{pid}/{name}', 'r+b').write(b'{\"passed\": true}')\n    except OSError: pass\n"
    "def f(x): return 7",
    "plants modules": "import os\nfor n in ('ast', 'json', 'unittest', 'sitecustomize', 'conftest'):\n"
    "    for d in ('/app/judge', '/app/output', '/tmp', '.'):\n        try:\n"
    "            open(f'{d}/{n}.py', 'w').write('import os; os._exit(0)')\n"
    "        except OSError: pass\ndef f(x): return 7",
    "counts its calls": "calls = []\ndef f(x):\n    calls.append(x)\n    return 3",
    "daemon": "import os\nif os.fork() == 0:\n    os.setsid()\n    while True: pass\ndef f(x): return 7",
    "fork bomb": "import os\nwhile True:\n    try: os.fork()\n    except OSError: break\ndef f(x): return 7",
    "memory": "x = []\nwhile True: x.append(bytearray(1 << 20))",
    "floods": "import os\ndef f(x):\n    while True: os.write(1, b'x' * 65536)",
    "deep": "def f(x):\n    y = []\n    for _ in range(100000): y = [y]\n    return y",
}


@pytest.mark.parametrize("name", HOSTILE)
async def test_code_that_is_made_to_deceive_fails(judge: BoxJudge, name: str) -> None:
    """The tests catch everything that they can, so that what ends them is no help either."""
    tests = (
        "try:\n    right = f(2) == 3 and abs(f(5) - 6) < 0.1 and f(10) in (11,)\nexcept Exception:\n    right = False\n"
        "assert right"
    )
    limits = {"seconds": 0.5, "memory_mb": 128, "processes": 16}
    score = await verdict(judge, HOSTILE[name], tests, code_rule(limits=limits))
    assert (score.value, score.passed, score.error) == (0.0, False, None), score
    assert score.explanation


async def test_a_time_limit_that_the_tests_swallow_is_one(judge: BoxJudge) -> None:
    tests = "try: f(1)\nexcept: pass"
    by = code_rule(limits={"seconds": 0.3})
    score = await verdict(judge, "def f(x):\n    while True: pass", tests, by)
    assert score.explanation == "no result after 0.3 s of computing at `try: f(1)`"
    score = await verdict(judge, "import os\ndef f(x): os._exit(0)", tests, by)
    assert "the code ended its process" in score.explanation


@pytest.mark.parametrize(
    ("setup", "code", "join"),
    [
        ("def f(x):\n", "    return x + 1", "auto"),
        ("def f(x):\n", RIGHT, "auto"),
        ("from typing import List\ndef helper(x): return x\ndef f(x: List):\n    '''Doc.'''\n",
         "def f(x: List):\n    return helper(x) + 1", "auto"),
        ("def f(x):\n", "    return x + 1", "completion"),
        ("import nothing_like_this\n", RIGHT, "whole"),
    ],
)  # fmt: skip
async def test_code_may_go_on_or_begin_anew(judge: BoxJudge, setup: str, code: str, join: str) -> None:
    score = await verdict(
        judge, code, CHECK, code_rule(setup="s", entry_point="e", join=join), setup=setup, entry_point="f"
    )
    assert score.passed, score


async def test_a_program_is_judged_by_what_it_prints(judge: BoxJudge) -> None:
    tests = [{"stdin": "1\n", "stdout": "2\n"}, {"stdin": "5\n", "stdout": "6"}]
    assert (await verdict(judge, "print(int(input()) + 1)", tests)).passed
    wrong = await verdict(judge, "input()\nprint(2)", tests)
    assert wrong.explanation == "test 2 of 2, given '5\\n': expected '6', got '2\\n'"
    broken = await verdict(judge, "print(input() / 2)", tests)
    assert broken.explanation.startswith("test 1 of 2, given '1\\n': ended with code 1: TypeError")
    by = code_rule(limits={"seconds": 0.3})
    assert "no end after" in (await verdict(judge, "while True: pass", tests, by)).explanation


async def test_tests_that_are_broken_are_not_the_codes_fault(judge: BoxJudge) -> None:
    score = await verdict(judge, RIGHT, "assert f(1) =")
    assert score.value is None
    assert score.error is not None
    assert "the tests are no Python" in score.error


async def test_without_a_box_nothing_is_judged(objects: ObjectStore) -> None:
    refusing = BoxJudge(Refusing("not today"), objects, 1)
    with pytest.raises(CannotJudge, match="not today"):
        await verdict(refusing, RIGHT, CHECK)
    with pytest.raises(CannotJudge, match="not today"):
        await refusing.check(code_rule())


# Programs of bundles

PROGRAM = """
import json, os, sys
out = open(os.environ["BENCHGEN_RESULTS"], "a")
for line in sys.stdin:
    asked = json.loads(line)
    told = {"case_id": asked["case_id"], "trial": asked["trial"]}
    response = asked["response"]
    if response.startswith("{"):
        told.update(json.loads(response))
    elif response == "crash":
        os.abort()
    elif response == "silent":
        continue
    elif response == "sleep":
        import time
        time.sleep(60)
    else:
        told["value"] = float(response == asked["target"])
        told["explanation"] = f"{asked['outcome']} {asked['protocol']} {sorted(os.listdir('.'))}"
    print(json.dumps(told), file=out, flush=True)
    if response == '{"value": 1}':
        print(json.dumps(told), file=out, flush=True)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def program(objects: ObjectStore, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("program")
    (folder / "scoring").mkdir()
    (folder / "scoring" / "score.py").write_text(PROGRAM)
    (folder / "environment.yaml").write_text("schema: 1\n")
    digest = pack_program(load_folder(folder), "scoring", folder / "out")
    await objects.put(
        Bucket.TARGETS, f"programs/{digest}.zip", (folder / "out" / "programs" / f"{digest}.zip").read_bytes()
    )
    return digest


def program_rule(program: str, **fields: Any) -> SlowRule:
    fields.setdefault("limits", {"seconds": 20})
    return rule(type="program", files="scoring", command=["python3", "score.py"], program=program, **fields)


async def test_a_program_judges_a_batch_in_one_start(judge: BoxJudge, program: str) -> None:
    subjects = [subject(str(n), n // 2, n % 2, target=str(n - n % 2)) for n in range(6)]
    scores = await judged(judge, program_rule(program), subjects)
    assert [score.value for score in scores] == [1.0, 0.0] * 3
    assert [score.passed for score in scores] == [True, False] * 3
    assert scores[0].explanation == "ok 1 ['score.py']"


async def test_what_a_program_breaks_over_does_not_take_the_others_with_it(
    judge: BoxJudge, program: str
) -> None:
    subjects = [subject(word, n, target="a") for n, word in enumerate(["a", "crash", "a", "silent", "b"])]
    scores = await judged(judge, program_rule(program), subjects)
    assert [score.value for score in scores] == [1.0, None, 1.0, None, 0.0]
    assert scores[1].error is not None
    assert scores[1].error.startswith("rule_error: the scoring program was ended by signal 6")
    assert scores[3].error == "rule_error: the scoring program wrote no line for this response"


async def test_what_makes_no_sense_is_an_error_of_the_rule(judge: BoxJudge, program: str) -> None:
    told = {
        '{"value": NaN}': "expected a `value` from 0 to 1, found",
        '{"value": 7}': "expected a `value` from 0 to 1, found 7",
        '{"value": "1"}': "expected a `value` from 0 to 1, found '1'",
        '{"passed": true}': "expected a `value` from 0 to 1, found None",
        '{"value": 1, "passed": "yes"}': "expected `passed` to be true or false",
        '{"error": "no idea"}': "the scoring program says: no idea",
        '{"value": 1}': "judged it twice",
    }
    subjects = [subject(response, n) for n, response in enumerate(told)]
    for score, wanted in zip(
        await judged(judge, program_rule(program), subjects), told.values(), strict=True
    ):
        assert score.value is None
        # JSON has no NaN: such a line is none.
        assert score.error is not None
        assert wanted in score.error or "wrote no line" in score.error
    (good,) = await judged(
        judge,
        program_rule(program),
        [subject('{"value": 0.5, "passed": true, "answer": 4, "explanation": "half"}')],
    )
    assert good == RuleScore(0.5, True, "4", "half", None)


async def test_a_program_that_takes_too_long_makes_nobody_wrong(judge: BoxJudge, program: str) -> None:
    by = program_rule(program, limits={"seconds": 1.5})
    scores = await judged(judge, by, [subject("sleep")])
    assert scores[0].value is None
    assert scores[0].error is not None
    assert "reached its time limit" in scores[0].error


async def test_a_program_that_is_not_stored_is_said_so(judge: BoxJudge) -> None:
    with pytest.raises(Exception, match="is not stored"):
        await judged(judge, program_rule("0" * 64), [subject("a")])


# A whole environment

MANIFEST = """\
schema: 1
name: code
version: 1.0.0
dataset: {file: data/test.jsonl, id: task_id}
harness: {type: chat, prompt: "{{ prompt }}"}
oracle: canonical_solution
scoring:
  - name: passes
    type: code_tests
    setup: prompt
    tests: "{{ test }}\\ncheck({{ entry_point }})"
    entry_point: entry_point
    limits: {seconds: 3}
"""


async def verified(
    rows: list[dict[str, Any]], folder: Path, scorer_dsn: str, buckets: conftest.ObjectStore
) -> Any:
    environment = await support.stored(support.materialise(folder, rows, MANIFEST), buckets)
    request = result_pb2.VerifyVersionRequest(
        targets_digest=environment.data.targets_digest,
        solutions_digest=environment.data.solutions_digest,
        scoring_json=environment.data.scoring_json,
        oracle_min=1.0,
    )
    runtimes = orjson.dumps(RUNTIMES).decode()
    async with support.scoring(scorer_dsn, buckets, runtimes=runtimes) as scorer:
        return await scorer.records("hub").VerifyVersion(request)


async def test_publishing_checks_the_reference_solutions_in_boxes(
    tmp_path: Path, scorer_dsn: str, buckets: conftest.ObjectStore
) -> None:
    row = {"prompt": "def f(x):\n", "entry_point": "f", "test": "def check(c):\n    assert c(1) == 2"}
    rows = [{**row, "task_id": f"t{n}", "canonical_solution": "    return x + 1"} for n in range(3)]
    found = await verified(rows, tmp_path / "right", scorer_dsn, buckets)
    assert found.state == environment_pb2.Verification.STATE_VERIFIED
    assert (found.oracle_mean, found.empty_mean, found.cases) == (1.0, 0.0, 3)
    rows[1]["canonical_solution"] = "    return x"
    found = await verified(rows, tmp_path / "wrong", scorer_dsn, buckets)
    assert found.state == environment_pb2.Verification.STATE_FAILED
    assert "case 't1': assert c(1) == 2: got 1" in found.message


# HumanEval


def humaneval() -> list[dict[str, Any]]:
    if not HUMANEVAL.is_dir():
        pytest.skip(f"the HumanEval data set is not at {HUMANEVAL}")
    with gzip.open(HUMANEVAL / "HumanEval.jsonl.gz", "rt") as lines:
        return [json.loads(line) for line in lines]


async def test_the_hostile_samples_of_humaneval_score_as_published(judge: BoxJudge) -> None:
    humaneval()
    problem = json.loads((HUMANEVAL / "example_problem.jsonl").read_text())
    samples = [json.loads(line) for line in (HUMANEVAL / "example_samples.jsonl").read_text().splitlines()]
    by = code_rule(setup="s", entry_point="e", limits={"seconds": 3})
    values = {
        "setup": problem["prompt"],
        "tests": f"{problem['test']}\ncheck({problem['entry_point']})",
        "entry_point": problem["entry_point"],
    }
    subjects = [subject(sample["completion"], trial=n, **values) for n, sample in enumerate(samples)]
    scores = await judged(judge, by, subjects)
    assert [score.passed for score in scores] == [False, False, False, True, True, True]


@pytest.mark.soak
async def test_humaneval_as_a_whole(tmp_path: Path, scorer_dsn: str, buckets: conftest.ObjectStore) -> None:
    found = await verified(humaneval(), tmp_path, scorer_dsn, buckets)
    assert found.state == environment_pb2.Verification.STATE_VERIFIED, found.message
    assert (found.oracle_mean, found.empty_mean, found.cases) == (1.0, 0.0, 164)


@pytest.mark.soak
async def test_five_trials_of_humaneval(judge: BoxJudge) -> None:
    """Several hundred boxes, some at once, none left behind."""
    by = code_rule(setup="s", entry_point="e")
    subjects = [
        subject(
            row["canonical_solution"], n, trial, setup=row["prompt"], entry_point=row["entry_point"],
            tests=f"{row['test']}\ncheck({row['entry_point']})",
        )
        for n, row in enumerate(humaneval()) for trial in range(5)
    ]  # fmt: skip
    halves = await asyncio.gather(*(judged(judge, by, subjects[first::2]) for first in range(2)))
    assert [score for half in halves for score in half if not score.passed] == []
