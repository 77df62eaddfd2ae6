"""The client library: everything that a BenchGen server offers, as plain blocking Python.

::

    from benchgen.client import Client

    with Client("127.0.0.1:50051", api_key) as client:
        run = client.run("gsm8k-mini", model="gpt", limit=100)
        for run in client.watch(run.name):
            print(run.progress.recorded, "of", run.progress.planned)
        print(client.report(run.name).metrics["correct"].mean)

Errors are those of ``benchgen.errors``.
"""

from benchgen.client.client import TERMINAL, Client

__all__ = ["TERMINAL", "Client"]
