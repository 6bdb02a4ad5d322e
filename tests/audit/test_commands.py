"""`appliance audit verify`, `appliance usage report` and `appliance usage rebuild`."""

from __future__ import annotations

import json
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from msgspec.structs import replace

from appliance.access import KeyStore
from appliance.audit.admin import admin_event
from appliance.audit.log import AuditLog
from appliance.audit.signer import create_signer
from appliance.config import AuditSettings, Layout
from installer.passing_key import passing_key
from tests.audit.sample import ORIGIN, exchange, response
from tests.fakes.command import run_command

COMMAND = [sys.executable, "-c", "from installer.cli import main; main()"]


def appliance(*arguments: str, root: Path) -> subprocess.CompletedProcess[str]:
    return run_command(*arguments, "--root", str(root))


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


def test_a_wrong_setting_stops_no_reader_of_the_log_and_is_named(layout: Layout) -> None:
    layout.config_file.parent.mkdir(parents=True)
    layout.config_file.write_text('[engine]\nthreads = "four"\n')
    for command in (["verify"], ["tail"], ["export", str(layout.root / "copy")]):
        done = appliance("audit", *command, root=layout.root)
        assert done.returncode == 0, done.stderr
        named = f"note: {layout.config_file}: engine.threads must be a whole number, not 'four'"
        assert named in done.stderr


def test_a_wrong_setting_stops_no_report_unless_it_is_of_money(layout: Layout) -> None:
    layout.config_file.parent.mkdir(parents=True)
    layout.config_file.write_text('[api]\nlisten_port = 0\n[money]\ncurrency = "EUR"\n')
    done = appliance("usage", "report", root=layout.root)
    assert done.returncode == 0, done.stderr
    assert "cost EUR" in done.stdout
    assert f"note: {layout.config_file}: api.listen_port is 0" in done.stderr
    for wrong, said in (
        ('[money]\ncurrency = "euro"\n', "money.currency is 'euro'"),
        ('[monye]\ncurrency = "EUR"\n', "unknown section [monye]"),
    ):
        layout.config_file.write_text(wrong)
        done = appliance("usage", "report", root=layout.root)
        assert (done.returncode, done.stdout) == (2, ""), done.stderr
        assert said in done.stderr


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


def test_tail_prints_the_newest_records_first_to_last(layout: Layout) -> None:
    done = appliance("audit", "tail", "-n", "3", root=layout.root)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert [(line[0], line[2]) for line in lines] == [("4", "RES"), ("5", "REQ"), ("6", "RES")]
    assert "request_id=req-c" in lines[-1]
    done = appliance("audit", "tail", "-n", "100", "--json", root=layout.root)
    records = [json.loads(line) for line in done.stdout.splitlines()]
    assert [record["seq"] for record in records] == list(range(7))
    done = appliance("audit", "tail", "--dir", str(layout.root / "no"), root=layout.root)
    assert done.returncode == 3


def test_tail_follows_the_log_until_it_is_interrupted(layout: Layout) -> None:
    command = [*COMMAND, "audit", "tail", "--follow", "-n", "0", "--root", str(layout.root)]
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Where the tests run in the background, the shell lets all children ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdout is not None
        seen: list[bytes] = []
        while not seen:  # it starts when it starts: append until it tells of one
            with AuditLog.open(layout.audit, layout.audit_key, AuditSettings()) as log:
                log.append(exchange(f"new-{log.size}"))
            ready, _, _ = select.select([process.stdout], [], [], 0.5)
            seen += [process.stdout.readline()] if ready else []
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=60)
    assert b"request_id=req-new-" in seen[0]


def test_evidence_goes_to_the_auditor_and_comes_back(layout: Layout, tmp_path: Path) -> None:
    vkey = (layout.audit_key / "audit.vkey").read_text().strip()
    done = appliance("audit", "export", str(tmp_path / "out"), root=layout.root)
    assert done.returncode == 0, done.stderr
    head, memory = str(tmp_path / "head"), str(tmp_path / "memory")
    arguments = [str(tmp_path / "out"), "--key", vkey, "--memory", memory, "--out", head]
    done = run_command("audit", "cosign", *arguments)
    assert done.returncode == 0, done.stderr
    assert "a continuation" not in done.stdout
    assert f"the first head of this log in {memory}: nothing to compare" in done.stdout
    again = run_command("audit", "cosign", *arguments[:-1], f"{head}-2")
    assert "verified: a continuation of the kept checkpoint" in again.stdout
    assert "the first head" not in again.stdout
    cosigner = done.stdout.split("cosigner key")[1].strip()
    done = appliance("audit", "import-cosignature", head, "--cosigner", cosigner, root=layout.root)
    assert done.returncode == 0, done.stderr
    done = appliance("audit", "verify", "--cosigner", cosigner, root=layout.root)
    assert "the first 5 records" in done.stdout
    assert "ADMIN 1" in done.stdout

    done = appliance("audit", "prove", "2", str(tmp_path / "proof"), root=layout.root)
    assert done.returncode == 0, done.stderr
    files = [str(tmp_path / "proof"), str(tmp_path / "proof.leaf")]
    done = run_command("audit", "check-proof", *files, "--key", vkey, "--json")
    assert json.loads(done.stdout)["record"] == 2
    (tmp_path / "proof.leaf").write_bytes(b"{}")
    done = run_command("audit", "check-proof", *files, "--key", vkey)
    assert done.returncode == 5


def newest_key(layout: Layout) -> str:
    """As the auditor reads it."""
    [line] = [
        line
        for line in appliance("audit", "verify", root=layout.root).stdout.splitlines()
        if line.startswith("newest key")
    ]
    return line.split()[-1]


def test_the_newest_key_checks_a_proof_also_when_an_epoch_has_just_ended(
    layout: Layout, tmp_path: Path
) -> None:
    with AuditLog.open(layout.audit, layout.audit_key, AuditSettings()) as log:
        log.roll()
    files = [str(tmp_path / "proof"), str(tmp_path / "proof.leaf")]
    assert appliance("audit", "prove", "2", files[0], root=layout.root).returncode == 0
    done = run_command("audit", "check-proof", *files, "--key", newest_key(layout))
    assert done.returncode == 0, done.stderr


def test_a_proof_is_checked_with_the_key_of_its_time(layout: Layout, tmp_path: Path) -> None:
    vkey = (layout.audit_key / "audit.vkey").read_text().strip()
    with AuditLog.open(layout.audit, layout.audit_key, AuditSettings()) as log:
        log.roll()
        log.append(exchange("after"))
        log.checkpoint()
    files = [str(tmp_path / "proof"), str(tmp_path / "proof.leaf")]
    assert appliance("audit", "prove", "2", files[0], root=layout.root).returncode == 0
    newest = newest_key(layout)
    assert run_command("audit", "check-proof", *files, "--key", newest).returncode == 0
    done = run_command("audit", "check-proof", *files, "--key", vkey)
    assert done.returncode == 5
    assert "the newest when the proof was made" in done.stderr


def test_a_directory_with_nothing_of_a_log_is_no_log_that_was_altered(tmp_path: Path) -> None:
    done = run_command("audit", "verify", "--dir", str(tmp_path))
    assert done.returncode == 3
    assert f"there is no audit log in {tmp_path}" in done.stderr
    (tmp_path / "tile").mkdir()
    done = run_command("audit", "verify", "--dir", str(tmp_path))
    assert done.returncode == 5
    assert "log_missing" in done.stdout or "file_unreadable" in done.stdout


def test_cosigning_what_does_not_verify_gives_nothing(layout: Layout, tmp_path: Path) -> None:
    path = layout.audit / "tile/entries/000.p/5"
    path.write_bytes(path.read_bytes().replace(b"req-a", b"req-x"))
    vkey = (layout.audit_key / "audit.vkey").read_text().strip()
    arguments = ["--key", vkey, "--memory", str(tmp_path / "m"), "--out", str(tmp_path / "head")]
    done = run_command("audit", "cosign", str(layout.audit), *arguments)
    assert done.returncode == 5
    assert "record_differs" in done.stdout
    assert not (tmp_path / "head").exists()


def test_prune_needs_an_age_and_says_how_many(layout: Layout) -> None:
    with AuditLog.open(layout.audit, layout.audit_key, AuditSettings()) as log:
        log.append([event for i in range(300) for event in exchange(f"many-{i}")])
    done = appliance("audit", "prune", root=layout.root)
    assert done.returncode == 2
    done = appliance("audit", "prune", "--older-than", "0", "--json", root=layout.root)
    assert json.loads(done.stdout) == {"pruned": 512}
    done = appliance("audit", "verify", root=layout.root)
    assert done.returncode == 0, done.stdout
    assert "pruned          512" in done.stdout
    done = appliance("usage", "report", "--json", root=layout.root)
    assert json.loads(done.stdout)["rows"][0]["requests"] == 303


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
        **({"node": False} if by != "model" else {}),
    }


def test_what_the_node_asked_itself_stands_behind_what_the_organisation_asked(
    layout: Layout,
) -> None:
    layout.keys_db.parent.mkdir(parents=True)
    with KeyStore(layout.keys_db) as keys:
        billing, _ = keys.create("billing")
    for name in ("a bench", "a bench", "a proof"):
        with passing_key(layout, name):
            pass
    with KeyStore(layout.keys_db) as keys:
        made = [billing.id, *(key.id for key in keys.list() if key.of_node)]
    with AuditLog.open(layout.audit, layout.audit_key, AuditSettings()) as log:
        for number, key in enumerate(made):
            asked, said = exchange(f"own-{number}")
            log.append([replace(event, key_id=key) for event in (asked, said)])
    table = appliance("usage", "report", root=layout.root).stdout.splitlines()[1:]
    groups = [line.split()[0] for line in table]
    assert (set(groups[:2]), groups[2:]) == ({"key-1", billing.id}, ["node", "node"])
    assert ["node", "a", "bench", "2", "14"] in [line.split()[:5] for line in table]
    text = appliance("usage", "report", "--format", "csv", root=layout.root).stdout
    assert [line.split(",")[:3] for line in text.splitlines()[-2:]] == [
        ["node", "a bench", "2"],
        ["node", "a proof", "1"],
    ]
    rows = json.loads(appliance("usage", "report", "--json", root=layout.root).stdout)["rows"]
    assert {row["group"] for row in rows if row["node"]} == set(made[1:])
    table = appliance("usage", "report", "--by", "project", root=layout.root).stdout.splitlines()
    assert [line.split()[1:4] for line in table[1:]] == [
        ["default", "4", "28"],
        ["node", "3", "21"],
    ]
    told = appliance("usage", "report", "--by", "project", "--json", root=layout.root).stdout
    assert [(row["group"], row["requests"], row["node"]) for row in json.loads(told)["rows"]] == [
        ("proj_default", 4, False),
        ("node", 3, True),
    ]


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
