"""What a launcher is given: hostfiles, Slurm's variables, forwarded variables, scripts, commands."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from deepspeed.launcher.runner import fetch_hostfile

from rankdrift.cli.main import main
from rankdrift.errors import UserError
from rankdrift.hosts import forwarded as forwarding
from rankdrift.hosts import ssh as shells
from rankdrift.hosts.forwarded import forwarded, write_forwarded
from rankdrift.hosts.hostfile import Host, read_hostfile
from rankdrift.hosts.interface import interface_towards
from rankdrift.hosts.slurm import describe_rank, host_names, tasks_per_node
from rankdrift.hosts.ssh import Answer, Ssh, require_reachable

TRAIN = ["--", "--config", "ds_configs/zero2.json"]


def test_a_hostfile_is_read_as_deepspeed_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "hosts"
    path.write_text("# three\nvm1 slots=8\n\nvm2   slots=4 # small\n10.0.0.3\tslots=8\n")
    hosts = read_hostfile(path)
    assert hosts == [Host("vm1", 8), Host("vm2", 4), Host("10.0.0.3", 8)]
    assert {host.name: host.slots for host in hosts} == dict(fetch_hostfile(str(path)))


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("vm1 slots=8\nvm2 slot=8\n", "hosts:2: 'vm2 slot=8' is not 'NAME slots=N'"),
        ("vm1\n", "hosts:1: 'vm1' is not"),
        ("vm1 slots=-1\n", "hosts:1: 'vm1 slots=-1' is not"),
        ("vm1 slots=0\n", "hosts:1: 'vm1' has slots=0; give it"),
        ("vm1 slots=1\nvm2 slots=1\nvm1 slots=2\n", "hosts:3: 'vm1' is named again"),
        ("# nobody\n", "names no host"),
    ],
)
def test_a_bad_hostfile_is_refused_with_its_line(
    text: str, part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hosts").write_text(text)
    assert main(["launch", "--hostfile", str(tmp_path / "hosts"), *TRAIN]) == 2
    assert part in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--no-ssh"], "--no-ssh and --node-rank N go together"),
        (["--no-ssh", "--node-rank", "2"], "--node-rank 2: "),
        (["--env", "NOT_SET_ANYWHERE"], "--env NOT_SET_ANYWHERE: not set here"),
        (["--env", "A=$(ls)"], "A='$(ls)' would not arrive as it is"),
    ],
)
def test_bad_options_are_refused(
    arguments: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "hosts").write_text("vm1 slots=1\nvm2 slots=1\n")
    assert main(["launch", "--hostfile", str(tmp_path / "hosts"), *arguments, *TRAIN]) == 2
    assert part in capsys.readouterr().err


def test_arguments_of_the_training_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["launch", "--slurm", "--", "training.steps=3"]) == 2
    assert "needs --config" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("said", "part"),
    [
        ("ssh: Could not resolve hostname vm9: Name or service not known", "name does not resolve"),
        ("root@vm9: Permission denied (publickey).", "ssh-copy-id vm9"),
        ("Host key verification failed.", "ssh vm9 once by hand"),
        ("ssh: connect to host vm9 port 22: Connection refused", "start sshd there"),
        ("ssh: connect to host vm9 port 22: Connection timed out", "does not answer"),
        ("ssh: connect to host vm9 port 22: No route to host", "no way to it"),
        ("motd\nbash: nonsense: not found", "vm9: bash: nonsense: not found"),
        ("", "vm9: exit code 255"),
    ],
)
def test_what_ssh_says_becomes_a_remedy(said: str, part: str) -> None:
    problem = Answer("vm9", 255, "", said).problem
    assert problem
    assert problem.startswith("vm9: ")
    assert part in problem
    assert Answer("vm9", 0, "", said).problem is None


def test_all_hosts_that_cannot_be_used_are_named_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A stand-in for ssh runs the command here, but on one host."""
    fake = tmp_path / "ssh"
    fake.write_text(
        '#!/bin/sh\nwhile [ "${1#-}" != "$1" ]; do shift 2; done\n'
        '[ "$1" = vm3 ] && { echo "ssh: Could not resolve hostname vm3" >&2; exit 255; }\nsh -c "$2"\n'
    )
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    require_reachable(["vm1", "vm2"], Ssh(), "/bin/sh", tmp_path)
    with pytest.raises(UserError, match=r"localhost and 127\.0\.0\.1 are one host"):
        require_reachable(["vm1", "localhost", "127.0.0.1"], Ssh(), "/bin/sh", tmp_path)
    with pytest.raises(UserError, match=r"1 of 3 hosts cannot be used:\n  vm3: its name does not resolve"):
        require_reachable(["vm1", "vm2", "vm3"], Ssh(22), "/bin/sh", tmp_path)
    with pytest.raises(UserError, match=r"2 of 2 hosts .*\n  vm1: no folder /none\n  vm2: no folder /none"):
        require_reachable(["vm1", "vm2"], Ssh(), "/bin/sh", Path("/none"))
    with pytest.raises(UserError, match="vm1: no /none/python"):
        require_reachable(["vm1"], Ssh(), "/none/python", tmp_path)


def test_a_missing_ssh_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(UserError, match="ssh: no such command"):
        shells.Ssh().run("vm1", "true")


def test_variables_that_ranks_need_are_forwarded_and_secrets_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = {"NCCL_DEBUG": "INFO", "HF_HOME": "/models", "HF_TOKEN": "secret", "HOME": "/root", "MINE": "1"}
    chosen = forwarded(here, ["MINE", "YOURS=a=b"])
    assert chosen == {"NCCL_DEBUG": "INFO", "HF_HOME": "/models", "MINE": "1", "YOURS": "a=b"}
    own = tmp_path / ".deepspeed_env"
    own.write_text("NCCL_DEBUG=WARN\nUSERS=own\n")
    monkeypatch.setattr(forwarding, "OWN_FILES", (own,))
    write_forwarded(tmp_path / "launch.env", chosen)
    lines = (tmp_path / "launch.env").read_text().splitlines()
    assert lines == ["USERS=own", "HF_HOME=/models", "MINE=1", "NCCL_DEBUG=INFO", "YOURS=a=b"]


SLURM = {
    "SLURM_JOB_ID": "4711",
    "SLURM_PROCID": "5",
    "SLURM_NTASKS": "6",
    "SLURM_LOCALID": "1",
    "SLURM_NODEID": "2",
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[07-09]",
    "SLURM_NODELIST": "gpu[01-09]",
    "SLURM_STEP_TASKS_PER_NODE": "2(x3)",
}


def test_a_task_of_slurm_is_a_rank() -> None:
    environment = dict(SLURM)
    describe_rank(environment)
    assert {name: value for name, value in environment.items() if name not in SLURM} == {
        "RANK": "5",
        "WORLD_SIZE": "6",
        "LOCAL_RANK": "1",
        "LOCAL_WORLD_SIZE": "2",
        "LOCAL_SIZE": "2",
        "MASTER_ADDR": "gpu07",
        "MASTER_PORT": str(20000 + 4711),
    }


@pytest.mark.parametrize("change", [{"RANK": "0"}, {"SLURM_PROCID": None}, {"SLURM_STEP_ID": None}])
def test_what_is_no_task_or_is_a_rank_already_stays_as_it_is(change: dict[str, str | None]) -> None:
    environment = {name: value for name, value in (SLURM | change).items() if value is not None}
    before = dict(environment)
    describe_rank(environment)
    assert environment == before


def test_a_task_without_a_list_of_nodes_is_refused() -> None:
    environment = {name: value for name, value in SLURM.items() if "NODELIST" not in name}
    with pytest.raises(UserError, match="SLURM_NODELIST is not set"):
        describe_rank(environment)


@pytest.mark.parametrize(
    ("compressed", "names"),
    [
        ("vm1", ["vm1"]),
        ("vm1,vm2", ["vm1", "vm2"]),
        ("gpu[1-3]", ["gpu1", "gpu2", "gpu3"]),
        ("gpu[008-010,12]-ib,login", ["gpu008-ib", "gpu009-ib", "gpu010-ib", "gpu12-ib", "login"]),
        ("rack[1-2]n[1-2]", ["rack1n1", "rack1n2", "rack2n1", "rack2n2"]),
    ],
)
def test_lists_of_hosts(compressed: str, names: list[str]) -> None:
    assert host_names(compressed) == names


def test_tasks_of_nodes() -> None:
    assert tasks_per_node("4") == [4]
    assert tasks_per_node("2(x3),1") == [2, 2, 2, 1]
    with pytest.raises(UserError, match="not understood"):
        tasks_per_node("two")


def test_the_script_for_slurm_is_a_shell_script_with_what_was_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    asked = [
        "--nodes",
        "2",
        "--ranks-per-node",
        "4",
        "--hours",
        "1.5",
        "--partition",
        "gpu",
        "--sbatch=--account=a",
    ]
    assert main(["launch", "--slurm", *asked, "--env", "NAME=two words", *TRAIN, "data.tasks=[sst2]"]) == 0
    text = (tmp_path / "launch.sbatch").read_text()
    for line in ("--nodes=2", "--ntasks-per-node=4", "--time=1:30:00", "--partition=gpu", "--account=a"):
        assert f"#SBATCH {line}\n" in text
    assert "export NAME='two words'\n" in text
    assert "-m rankdrift.cli.train --config ds_configs/zero2.json 'data.tasks=[sst2]'\n" in text
    assert subprocess.run(["bash", "-n", "launch.sbatch"]).returncode == 0


def test_a_job_that_was_stopped_is_queued_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the script itself, run with stand-ins for srun and scontrol."""
    monkeypatch.chdir(tmp_path)
    assert main(["launch", "--slurm", *TRAIN]) == 0
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" > requeued\n')
    (tmp_path / "scontrol").chmod(0o755)
    for status, queued in ((1, False), (75, True)):
        (tmp_path / "srun").write_text(f"#!/bin/sh\nexit {status}\n")
        (tmp_path / "srun").chmod(0o755)
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "12"}
        script = (tmp_path / "launch.sbatch").read_text().replace(os.environ["PATH"], environment["PATH"])
        assert subprocess.run(["bash", "-c", script], env=environment).returncode == status
        assert (tmp_path / "requeued").exists() == queued
    assert (tmp_path / "requeued").read_text() == "requeue 12\n"


def test_a_job_that_lost_a_rank_is_queued_again_so_many_times(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the script itself, run with stand-ins for srun and scontrol, as the same job each time."""
    monkeypatch.chdir(tmp_path)
    assert main(["launch", "--slurm", "--max-restarts", "2", *TRAIN]) == 0
    (tmp_path / "scontrol").write_text('#!/bin/sh\necho "$@" >> requeued\n')
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "12"}
    script = (tmp_path / "launch.sbatch").read_text().replace(os.environ["PATH"], environment["PATH"])
    queued = []
    for status in (4, 1, 137, 4):
        (tmp_path / "srun").write_text(f"#!/bin/sh\nexit {status}\n")
        for program in ("srun", "scontrol"):
            (tmp_path / program).chmod(0o755)
        assert subprocess.run(["bash", "-c", script], env=environment).returncode == status
        queued.append((tmp_path / "requeued").read_text().count("requeue 12"))
    assert queued == [1, 1, 2, 2]


def test_without_ssh_there_are_no_restarts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "hosts").write_text("vm1 slots=1\nvm2 slots=1\n")
    options = ["--no-ssh", "--node-rank", "0", "--max-restarts", "1"]
    assert main(["launch", "--hostfile", str(tmp_path / "hosts"), *options, *TRAIN]) == 2
    assert "--max-restarts needs ssh to the hosts" in capsys.readouterr().err


def test_the_interface_towards_this_machine_is_the_loopback_only_for_other_addresses_of_it() -> None:
    assert interface_towards("no-such-host.invalid") is None
    assert interface_towards("127.0.0.1") != "lo"
