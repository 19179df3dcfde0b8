"""Routers in front of two servers: SMG, SGLang's router and vLLM's.

    python3 routers.py FERRUM MODEL ROUTER...     (each the path of `smg`, `sglang-router` or `vllm-router`)
"""

import contextlib
import os
import socket
import subprocess
import sys
import time

import httpx
import openai

from server import start

ferrum, model, *routers = sys.argv[1:]
ASK = dict(model="m", messages=[{"role": "user", "content": "Say hello."}], temperature=0, max_tokens=8)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextlib.contextmanager
def routing(program, workers):
    """The router's URL, when it has found both workers to be healthy."""
    port = free_port()
    command = [program] if program.endswith("vllm-router") else [program, "launch"]
    options = ["--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port()), "--policy", "power_of_two"]
    router = subprocess.Popen([*command, *options, "--worker-urls", *workers], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        soon = time.monotonic() + 60
        while True:
            with contextlib.suppress(httpx.TransportError):
                state = httpx.get(f"{url}/readiness")
                if state.status_code == 200 and state.json()["healthy_workers"] == 2:
                    break
            assert time.monotonic() < soon, "the router finds no healthy workers"
            time.sleep(0.2)
        yield url
    finally:
        router.kill()
        router.wait()


def check(program):
    workers = [start(ferrum, model) for _ in range(2)]
    try:
        with routing(program, [url for _, url in workers]) as url:
            client = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)
            assert [m.id for m in client.models.list()] == ["m"]
            text = client.chat.completions.create(**ASK).choices[0].message.content
            for _ in range(4):
                pieces = client.chat.completions.create(**ASK, stream=True)
                assert "".join(p.choices[0].delta.content or "" for p in pieces) == text
            assert client.completions.create(model="m", prompt="one two", max_tokens=4).choices[0].text
            assert client.embeddings.create(model="m", input="a cat").data[0].embedding
            assert client.responses.create(model="m", input="Say hello.", max_output_tokens=8).output_text
            loads = httpx.get(f"{url}/get_loads").json()
            # What a router could not read is -1. vLLM's asks for a form that vLLM does not have either, and goes by its own counts.
            if not program.endswith("vllm-router"):
                assert all(worker.get("load", 0) >= 0 for worker in loads.get("workers", loads.get("loads"))), loads

            # One dies, the other goes on: after a while no request fails any more.
            workers[0][0].kill()
            soon, good = time.monotonic() + 60, 0
            while good < 8:
                assert time.monotonic() < soon, "requests fail although one server lives"
                try:
                    assert client.chat.completions.create(**ASK).choices[0].message.content == text
                    good += 1
                except openai.APIStatusError:
                    good = 0
    finally:
        for worker, _ in workers:
            worker.terminate()
        assert workers[1][0].wait(60) == 0


for program in routers:
    check(program)
    print(os.path.basename(program), "ok")
