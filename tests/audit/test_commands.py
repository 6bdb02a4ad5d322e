"""`appliance audit verify`, `appliance usage report` and `appliance usage rebuild`."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from appliance.audit.admin import admin_event
from appliance.audit.log import AuditLog
from appliance.audit.signer import create_signer
from appliance.config import AuditSettings, Layout
from tests.audit.sample import ORIGIN, exchange, response

COMMAND = [sys.executable, "-c", "from installer.cli import main; main()"]


def appliance(*arguments: str, root: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments, "--root", str(root)], capture_output=True, text=True, check=False
    )


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """A node that served two requests."""
    layout = Layout(tmp_path)
    create_signer(layout.audit_key, ORIGIN)
    layout.metering.mkdir(parents=True)
    admin_event(layout, AuditSettings(), "install", version="0.1.0")
    with AuditLog.open(layout.audit, layout.audit_key, AuditSettings()) as log:
        log.append([*exchange("a"), *exchange("b")])
        log.checkpoint()
        log.append(exchange("c"))
    return layout


def test_verify_prints_what_it_verified(layout: Layout) -> None:
    done = appliance("audit", "verify", root=layout.root)
    assert done.returncode == 0, done.stderr
    assert "verified: every record, tile and signature" in done.stdout
    assert "INSTALL 1, REQ 2, RES 2" in done.stdout
    assert "The key came from the log itself" in done.stdout


def test_verify_needs_only_the_directory_and_the_key(layout: Layout, tmp_path: Path) -> None:
    vkey = (layout.audit_key / "audit.vkey").read_text().strip()
    copy = layout.audit.rename(tmp_path / "copy")
    kept = tmp_path / "kept"
    kept.write_bytes((copy / "checkpoint").read_bytes())
    arguments = ["--dir", str(copy), "--key", vkey, "--since", str(kept)]
    done = appliance("audit", "verify", *arguments, "--json", root=tmp_path / "nowhere")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["ok"] is True
    assert document["key_pinned"] is True
    assert (document["size"], document["unpublished"]) == (5, 2)


def test_verify_says_what_is_wrong_and_fails(layout: Layout) -> None:
    path = layout.audit / "tile/entries/000.p/5"
    path.write_bytes(path.read_bytes().replace(b"req-a", b"req-x"))
    done = appliance("audit", "verify", root=layout.root)
    assert done.returncode == 5
    assert "record_differs" in done.stdout
    assert done.stderr.startswith("error: the audit log does not verify: ")
    done = appliance("audit", "verify", "--json", root=layout.root)
    assert done.returncode == 5
    assert json.loads(done.stdout)["findings"][0]["path"] == "tile/entries/000.p/5"
    assert json.loads(done.stderr)["error"]["code"] == "audit_invalid"


def test_verify_refuses_what_is_not_a_log_or_not_a_key(layout: Layout, tmp_path: Path) -> None:
    done = appliance("audit", "verify", "--dir", str(tmp_path / "no"), root=layout.root)
    assert (done.returncode, done.stdout) == (3, "")
    done = appliance("audit", "verify", "--key", "no key", root=layout.root)
    assert (done.returncode, done.stdout) == (5, "")
    done = appliance("audit", "verify", "--since", str(tmp_path / "no"), root=layout.root)
    assert (done.returncode, done.stdout) == (3, "")


@pytest.mark.parametrize(("by", "group"), [("key", "key-1"), ("model", "guide")])
def test_usage_is_reported_up_to_the_last_acknowledged_record(
    layout: Layout, by: str, group: str
) -> None:
    done = appliance("usage", "report", "--by", by, "--json", root=layout.root)
    assert done.returncode == 0, done.stderr
    [row] = json.loads(done.stdout)["rows"]
    assert row == {
        "group": group,
        "requests": 3,
        "prompt_tokens": 21,
        "cached_tokens": 0,
        "completion_tokens": 9,
        "reasoning_tokens": 0,
        "cost": 0,
        "name": group,
    }


def test_usage_per_day_is_a_table(layout: Layout) -> None:
    done = appliance("usage", "report", "--by", "day", root=layout.root)
    heading, row = done.stdout.splitlines()
    counts = ["requests", "prompt", "cached", "completion", "reasoning"]
    assert heading.split() == ["day", *counts, "cost", "USD"]
    assert row.split()[0] == response("x").t_utc[:10]
    assert row.split()[1:] == ["3", "21", "0", "9", "0", "0.00"]


def test_usage_is_rebuilt_from_the_log(layout: Layout) -> None:
    before = appliance("usage", "report", "--json", root=layout.root).stdout
    layout.usage_db.unlink()
    done = appliance("usage", "rebuild", "--json", root=layout.root)
    assert json.loads(done.stdout) == {"requests": 3}
    assert appliance("usage", "report", "--json", root=layout.root).stdout == before


def test_usage_of_no_node_is_an_error(tmp_path: Path) -> None:
    done = appliance("usage", "report", root=tmp_path)
    assert done.returncode == 3
    assert "hint: install the node first" in done.stderr
