"""From keys to the first token: what a packager types, then an operator, step after step."""

from __future__ import annotations

import argparse
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from openai import OpenAI

REPOSITORY = Path(__file__).resolve().parent.parent
PACKAGER = REPOSITORY / ".venv/bin/appliance"
WHEELS = REPOSITORY / ".build/wheels"
SYSTEM_PYTHON = shutil.which("python3", path=os.defpath) or shutil.which("python3") or "python3"
READY_SECONDS = 120


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, metavar="DIR", help="leave the node running in DIR")
    keep: Path | None = parser.parse_args().keep
    if keep is None:
        with tempfile.TemporaryDirectory(prefix="appliance-demo-") as directory:
            node = run(Path(directory), keep=False)
            node.send_signal(signal.SIGTERM)
            node.wait(timeout=60)
    else:
        if (keep / "node").exists():
            sys.exit(f"{keep} already holds a demo: name a new directory")
        keep.mkdir(parents=True, exist_ok=True)
        run(keep.absolute(), keep=True)


def run(work: Path, *, keep: bool) -> subprocess.Popen[bytes]:
    """The whole way inside `work`; returns the running node."""
    step("fetch the wheels that the media carry (cached between runs)")
    appliance("media", "wheels", "--wheels", str(WHEELS))
    begin = time.monotonic()

    step("packager: make the keys of every role")
    passphrase = work / "passphrase"
    passphrase.touch(mode=0o600)
    passphrase.write_text(secrets.token_urlsafe(24))
    os.environ["APPLIANCE_PASSPHRASE_FILE"] = str(passphrase)
    keys, bundles, media, root = (work / name for name in ("keys", "bundles", "media", "node"))
    appliance("trust", "init", str(keys))

    step("packager: build and verify two bundles from published checkpoints")
    built = {
        "guide": build(REPOSITORY / "model-bundles/guide/checkpoint", "guide", bundles, keys),
        "minilm": build(REPOSITORY / ".build/minilm", "minilm", bundles, keys),
    }

    step("packager: write the media and read them back")
    named = [word for path in built.values() for word in ("--bundle", str(path))]
    appliance(
        "media", "build", "--out", str(media), *named, "--keys", str(keys), "--wheels", str(WHEELS)
    )
    appliance("media", "verify", str(media))

    step("operator: install from the media into a prefix")
    config = root / "etc/appliance/appliance.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f"[api]\nlisten_port = {free_port()}\n")
    installed = install(media, root)
    command = root / "opt/appliance/current/venv/bin/appliance"

    step("operator: start both daemons")
    log = (work / "serve.log").open("ab")
    node = subprocess.Popen(
        [command, "serve", "--root", root],
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        base_url, api_key = str(installed["base_url"]), str(installed["api_key"])
        wait_until_serving(node, command, root)
        ask_the_guide(base_url, api_key)
        embed(base_url, api_key)
        step("operator: the same question, with the handbook's passages found by the embeddings")
        call(command, "ask", "how do I add a model?", "--root", str(root))
        step("operator: who used what")
        call(command, "usage", "report", "--root", str(root))
        step("auditor: was anything altered?")
        call(command, "audit", "verify", "--root", str(root))
    except BaseException:
        node.terminate()
        sys.stderr.write((work / "serve.log").read_text()[-4000:])
        raise
    if keep:
        document = {
            "base_url": base_url,
            "api_key": api_key,
            "root": str(root),
            "media": str(media),
            "bundles": {name: str(path) for name, path in built.items()},
            "appliance": str(command),
            "pid": node.pid,
        }
        (work / "demo.json").write_text(json.dumps(document, indent=2) + "\n")
        print(f"\nThe node is running; {work / 'demo.json'} says how to reach it.")
    print(f"\ndemo: {time.monotonic() - begin:.1f} s after downloads")
    return node


def step(text: str) -> None:
    print(f"\n== {text}", flush=True)


def call(*command: str | Path) -> None:
    print("$", " ".join(str(word) for word in command), flush=True)
    subprocess.run(command, check=True)


def appliance(*arguments: str) -> None:
    call(PACKAGER, *arguments)


def build(checkpoint: Path, name: str, bundles: Path, keys: Path) -> Path:
    out = bundles / name
    appliance(
        "bundle",
        "build",
        str(checkpoint),
        "--name",
        name,
        "--version",
        "1.0",
        "--out",
        str(out),
        "--keys",
        str(keys),
    )
    appliance("bundle", "verify", str(out), "--keys", str(keys))
    return out


def install(media: Path, root: Path) -> dict[str, object]:
    """Install with progress on the terminal; the result document is the last JSON line."""
    command: Sequence[str | Path] = [
        SYSTEM_PYTHON,
        media / "appliance.pyz",
        "install",
        media,
        "--root",
        root,
        "--json",
    ]
    print("$", " ".join(str(word) for word in command), flush=True)
    lines: list[str] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            event = json.loads(line)
            if event.get("event") == "step":
                print("  ", event.get("title"), flush=True)
    if process.returncode:
        sys.exit(process.returncode)
    document: dict[str, object] = json.loads(lines[-1])
    return document


def wait_until_serving(node: subprocess.Popen[bytes], command: Path, root: Path) -> None:
    deadline = time.monotonic() + READY_SECONDS
    while time.monotonic() < deadline:
        if node.poll() is not None:
            sys.exit(f"the node stopped with status {node.returncode}")
        status = subprocess.run(
            [command, "status", "--root", root, "--json"],
            capture_output=True,
            text=True,
            check=False,
        )
        if status.returncode == 0 and json.loads(status.stdout).get("serving"):
            return
        time.sleep(0.5)
    sys.exit("the node did not start serving in time")


def ask_the_guide(base_url: str, api_key: str) -> None:
    step("developer: the unmodified OpenAI SDK, streaming")
    question = "How do I create an API key?"
    print(">", question, flush=True)
    client = OpenAI(base_url=base_url, api_key=api_key)
    begin = time.monotonic()
    first: float | None = None
    stream = client.chat.completions.create(
        model="guide",
        messages=[{"role": "user", "content": question}],
        stream=True,
        temperature=0,
        stream_options={"include_usage": True},
    )
    tokens = 0
    for chunk in stream:
        if chunk.usage:
            tokens = chunk.usage.completion_tokens
        for choice in chunk.choices:
            if choice.delta.content:
                first = first or time.monotonic() - begin
                print(choice.delta.content, end="", flush=True)
    print(
        f"\n  first token after {1000 * (first or 0):.0f} ms, "
        f"{tokens} tokens in {time.monotonic() - begin:.2f} s"
    )


def embed(base_url: str, api_key: str) -> None:
    step("developer: two sentences as embeddings")
    client = OpenAI(base_url=base_url, api_key=api_key)
    sentences = ["The node has no network.", "This machine is not connected to anything."]
    answer = client.embeddings.create(model="minilm", input=sentences)
    left, right = (item.embedding for item in answer.data)
    cosine = sum(a * b for a, b in zip(left, right, strict=True))
    print(f"  {len(left)} dimensions each, cosine similarity {cosine:.3f}")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


if __name__ == "__main__":
    main()
