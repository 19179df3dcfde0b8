"""A server for the tests beside it."""

import contextlib
import re
import subprocess
import threading

# The arguments of the one tool, and the schema of structured answers.
SCHEMA = {
    "type": "object",
    "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["n"],
    "additionalProperties": False,
}


def start(ferrum, model, *options):
    """Starts a server on a free port; returns its process and URL when it answers."""
    context = () if "--ctx" in options else ("--ctx", "1024")
    command = [ferrum, "serve", model, "--port", "0", "--backend", "cpu", "--served-model-name", "m", *context, *options]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    log, url = "", None
    for line in server.stderr:
        log += line
        url = url or (re.search(r"listening on (http://[\d.:]+)", line) or [None, None])[1]
        if "ready" in line:
            # A log that nobody reads would fill its pipe.
            threading.Thread(target=server.stderr.read, daemon=True).start()
            return server, url
    raise SystemExit(log)


@contextlib.contextmanager
def serving(ferrum, model, *options):
    """A server that must end well when it is told to."""
    server, url = start(ferrum, model, *options)
    try:
        yield url
    finally:
        server.terminate()
        assert server.wait(60) == 0
