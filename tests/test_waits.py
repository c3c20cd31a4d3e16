"""Every wait in the library has a bound: no wait without one is written, but for those that name why they end."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import tokenvault

ROOT = Path(tokenvault.__file__).parent

# Where a wait without a bound is written, and why it ends, or whom it keeps waiting.
KNOWN = {
    "keys/pkcs11/worker.py Task.__init__ acquire": "a new lock, that no other thread knows",
    "keys/pkcs11/worker.py Worker._start with _starting": "held while a thread is started",
    "keys/pkcs11/worker.py Worker._serve get": "the worker's thread, which waits for something to do",
    "vault/observer.py _Worker._tell get": "the observer's thread, which waits for something to do",
    "vault/key_versions.py KeyVersions._use with _lock": "held for two assignments; a forked child has its own",
    "runtime.py LoopRuntime.ask result": "of a task that is done",
    "runtime.py Workers.call wait": "for a function that has begun: what it waits for has a bound",
    "testing/faults.py FaultSchedule.set with _lock": "held for two assignments",
    "testing/faults.py FaultSchedule.__call__ with _lock": "held for one step of a list, which the caller gave",
    "testing/key_stores.py _in_child waitpid": "the child was killed",
    "testing/token_store_harness.py run_processes join": "the process was killed",
    "testing/token_store_isolation.py _Child.run waitpid": "the child answered and ends, or was killed",
}

# What Python's own library writes in Python around a lock. An exception of a signal's handler in there leaves it
# held, and then also `set`, `put` and `release` wait for ever.
LOCKED_IN_PYTHON = {
    "threading": {"Barrier", "BoundedSemaphore", "Condition", "Event", "Semaphore", "Timer"},
    "queue": {"LifoQueue", "PriorityQueue", "Queue"},
    "futures": {"Future", "ProcessPoolExecutor", "ThreadPoolExecutor"},
}

# Where one is named, and why that does no harm. The checks of adapters (`testing`) are part of no vault.
KNOWN_LOCKED = {
    "audit/feed.py threading.Event": "the host's own, and what waits for it is over after an exception",
    "runtime.py futures.ThreadPoolExecutor": "of a loop, which an exception at any instant may break all the same",
}


def locked(tree: ast.AST) -> Iterator[str]:
    """Each name of a class above, wherever it stands in a module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module is not None:
            module = node.module.rpartition(".")[2]
            yield from (
                f"{module}.{each.name}"
                for each in node.names
                if each.name in LOCKED_IN_PYTHON.get(module, ())
            )
        elif isinstance(node, ast.Attribute):
            module = ast.unparse(node.value).rpartition(".")[2]
            if node.attr in LOCKED_IN_PYTHON.get(module, ()):
                yield f"{module}.{node.attr}"


def unbounded(node: ast.AST) -> str | None:
    """What waits without a bound here, or None."""
    if isinstance(node, ast.With):
        for item in node.items:
            name = ast.unparse(item.context_expr)
            if name.rpartition(".")[2].endswith(("lock", "mutex", "_starting", "condition", "semaphore")):
                return f"with {name.rpartition('.')[2]}"
        return None
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
        return None
    name, arguments = node.func.attr, [ast.unparse(each) for each in node.args]
    bounded = any(each.arg in ("timeout", "blocking", "block") for each in node.keywords)
    if name in ("flock", "lockf"):
        held = arguments[-1]
        return None if "LOCK_NB" in held or held.endswith("LOCK_UN") else name
    if name in ("acquire", "result", "join", "wait", "get", "select", "communicate"):
        of_asyncio = name == "wait" and ast.unparse(node.func.value) == "asyncio"
        return None if bounded or (arguments and not of_asyncio) else name
    return name if name == "waitpid" and "WNOHANG" not in arguments[-1] else None


def waits(node: ast.AST, place: str) -> Iterator[str]:
    found = unbounded(node)
    if found is not None:
        yield f"{place} {found}"
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef))
        inner = f"{place}{'' if place.endswith(' ') else '.'}{child.name}" if named else place  # type: ignore[attr-defined] # named
        yield from waits(child, inner)


def test_no_wait_without_a_bound_is_written() -> None:
    found = set()
    for path in ROOT.rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= set(waits(tree, f"{path.relative_to(ROOT).as_posix()} "))
    assert found == set(KNOWN)


def test_waits_of_every_kind_are_found() -> None:
    written = """
def f():
    with self._lock: pass
    a.acquire(); b.wait(); c.get(); d.join(); e.result(); g.flock(h, LOCK_EX); i.waitpid(j, 0)
    asyncio.wait([k])
    a.acquire(timeout=1); b.wait(1); c.get(True, 1); d.join(1); g.flock(h, LOCK_EX | LOCK_NB); i.waitpid(j, WNOHANG)
"""
    kinds = ["with _lock", "acquire", "wait", "get", "join", "result", "flock", "waitpid", "wait"]
    assert list(waits(ast.parse(written), "x.py ")) == [f"x.py f {kind}" for kind in kinds]


def test_nothing_waits_by_a_lock_that_an_interrupt_leaves_held() -> None:
    found = set()
    for path in ROOT.rglob("*.py"):
        name = path.relative_to(ROOT).as_posix()
        if not name.startswith("testing/"):
            found |= {f"{name} {each}" for each in locked(ast.parse(path.read_text(encoding="utf-8")))}
    assert found == set(KNOWN_LOCKED)


def test_locks_that_are_written_in_python_are_found() -> None:
    written = """
from threading import Event, Lock
from concurrent.futures import ThreadPoolExecutor
import queue, threading, concurrent.futures
attrs.field(factory=threading.Condition); queue.Queue(3); concurrent.futures.Future()
asyncio.Event(); queue.SimpleQueue(); threading.RLock(); Event(1)
"""
    assert sorted(locked(ast.parse(written))) == [
        "futures.Future",
        "futures.ThreadPoolExecutor",
        "queue.Queue",
        "threading.Condition",
        "threading.Event",
    ]
