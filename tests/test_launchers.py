"""The launchers of schedulers: their scripts against stand-ins, their manifests against what Kubernetes documents."""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import yaml

from lepton_jax import processes
from lepton_jax.errors import Exit

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = ROOT / "scripts"
STANDINS = ROOT / "tests" / "standins"

# an experiment, as far as a launcher knows: finds its place as every experiment does, and ends as the test says
EXPERIMENT = """
import json, os, pathlib, signal, sys, time
from lepton_jax import processes
place, code = pathlib.Path(sys.argv[1]), sys.argv[2]
member = processes.find({}, os.environ)
with (place / f"lives-{member.process_id}").open("a") as file:
    file.write(json.dumps([member.coordinator, member.processes]) + "\\n")
number, life = member.process_id, len((place / f"lives-{member.process_id}").read_text().splitlines())
exec(code)
"""


@pytest.fixture
def environment(tmp_path):
    path = f"{STANDINS}:{pathlib.Path(sys.executable).parent}:{os.environ['PATH']}"
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LEPTON_", "SLURM_"))}
    return {**clean, "PATH": path, "PYTHONPATH": f"{ROOT}:{STANDINS}", "SCONTROL_ASKED": str(tmp_path / "asked")}


def experiment(place: pathlib.Path, code: str) -> list[str]:
    return [sys.executable, "-c", EXPERIMENT, str(place), code, "--run", str(place / "run")]


def lives(place: pathlib.Path, number: int) -> list[list]:
    path = place / f"lives-{number}"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture
def slurm(tmp_path, environment):
    begun = []

    def start(code: str) -> subprocess.Popen[str]:
        """As sbatch runs the script on the first node."""
        settings = {"SLURM_JOB_ID": "4242", "SLURM_NTASKS": "2", "SLURM_PROCID": "0", "BACKOFF": "0"}
        command = ["bash", str(SCRIPTS / "slurm.sbatch"), *experiment(tmp_path, code)]
        pipe = subprocess.PIPE
        begun.append(
            subprocess.Popen(
                command, env={**environment, **settings}, cwd=tmp_path, stdout=pipe, stderr=pipe, text=True
            )
        )
        return begun[-1]

    yield start
    for process in begun:
        process.kill()
        process.communicate()


def test_slurm_gives_each_task_its_place(slurm, tmp_path):
    process = slurm("")
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, (out, err)
    assert lives(tmp_path, 0) == lives(tmp_path, 1) == [[f"localhost:{61440 + 4242 % 4096}", 2]]


CODES = {
    "refused": ("sys.exit(2)", 2, 1),
    "beyond repair": ("sys.exit(65)", 65, 1),
    "a crash, once": ("sys.exit(70 if life == 1 and number else 0)", 0, 2),
    "a crash, always": ("os.kill(os.getpid(), signal.SIGKILL)", 137, 4),
    "a crash, but it moves on": (
        "(place / 'run' / 'checkpoints' / str(life)).mkdir(parents=True, exist_ok=True); sys.exit(70 * (life < 7))",
        0,
        7,
    ),
}


@pytest.mark.parametrize("case", CODES)
def test_slurm_restarts_what_a_restart_can_help(case, slurm, tmp_path):
    code, expected, times = CODES[case]
    process = slurm(code)
    out, err = process.communicate(timeout=90)
    assert process.returncode == expected, (out, err)
    assert [len(lives(tmp_path, number)) for number in (0, 1)] == [times, times]
    assert not (tmp_path / "asked").exists()


def test_slurm_puts_a_job_that_has_saved_back_into_the_queue(slurm, tmp_path):
    saving = (
        "def save(*_): (place / f'saved-{number}').touch(); os._exit(75)\n"
        "signal.signal(signal.SIGTERM, save)\n"
        "(place / f'ready-{number}').touch()\n"
        "time.sleep(60)"
    )
    process = slurm(saving)
    deadline = time.monotonic() + 60
    while not all((tmp_path / f"ready-{number}").exists() for number in (0, 1)):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    (step,) = children(process.pid)
    process.send_signal(signal.SIGTERM)  # Slurm sends it to the script as well where the job is cancelled
    os.kill(step, signal.SIGTERM)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0, (out, err)
    assert (tmp_path / "asked").read_text() == "requeue 4242\n"
    assert all((tmp_path / f"saved-{number}").exists() for number in (0, 1))


def children(pid: int) -> list[int]:
    """Its children that run srun."""
    found = []
    for task in pathlib.Path("/proc").glob("[0-9]*"):
        try:
            parent = int((task / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if parent == pid and b"srun" in (task / "cmdline").read_bytes():
                found.append(int(task.name))
        except (OSError, ValueError):
            continue
    return found


def test_ssh_starts_one_process_on_each_machine(tmp_path, environment):
    command = [str(SCRIPTS / "ssh"), "localhost,127.0.0.1", "--no-probe", "--", *experiment(tmp_path, "")]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, (done.stdout, done.stderr)
    assert [life[1] for number in (0, 1) for life in lives(tmp_path, number)] == [2, 2]


RAY = {
    "done": ("", 0, 1),
    "refused": ("sys.exit(2 if number else 0)", 2, 1),
    "a crash, once": ("time.sleep(0 if number else 30) if life == 1 else None; sys.exit(70 if life == 1 else 0)", 0, 2),
    "saved": ("sys.exit(75 if life < 3 else 0)", 0, 3),
}


@pytest.mark.parametrize("case", RAY)
def test_ray_starts_one_process_on_each_node(case, tmp_path, environment):
    code, expected, times = RAY[case]
    command = [sys.executable, str(SCRIPTS / "ray_submit.py"), "--nodes", "2", "--", *experiment(tmp_path, code)]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=90)
    assert done.returncode == expected, (done.stdout, done.stderr)
    assert [len(lives(tmp_path, number)) for number in (0, 1)] == [times, times]
    assert [life[1] for life in lives(tmp_path, 1)] == [2] * times


@pytest.mark.parametrize("script", ["slurm.sbatch", "ssh"])
def test_a_script_without_arguments_says_how_it_is_called(script, environment):
    done = subprocess.run(["bash", str(SCRIPTS / script)], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert f"scripts/{script}" in done.stdout
    assert "python -m experiments.resnet" in done.stdout


# What Kubernetes and JobSet document of the fields that are used: a field that is not here is a typing error.
# A type; a set of allowed values; a list of one item's schema; a dict of fields, of which `name?` may be missing.

EXIT_CODES = {"containerName?": str, "operator": {"In", "NotIn"}, "values": [int]}
LABELS = dict[str, str]
SELECTOR = {"matchLabels": LABELS}
PEER = {"podSelector?": SELECTOR, "namespaceSelector?": SELECTOR}
ENV = {"name": str, "value?": str, "valueFrom?": {"fieldRef": {"fieldPath": {"status.podIP"}}}}
CONTAINER = {
    "name": str,
    "image": str,
    "command": [str],
    "args": [str],
    "env": [ENV],
    "resources": {"requests": dict[str, str], "limits": dict[str, str]},
    "securityContext": {
        "allowPrivilegeEscalation": bool,
        "readOnlyRootFilesystem": bool,
        "capabilities": {"drop": [str]},
    },
    "volumeMounts": [{"name": str, "mountPath": str, "readOnly?": bool}],
}
VOLUME = {"name": str, "persistentVolumeClaim?": {"claimName": str}, "emptyDir?": {"medium?": {"Memory"}}}
POD = {
    "restartPolicy": {"Never"},  # which podFailurePolicy asks for
    "terminationGracePeriodSeconds": int,
    "automountServiceAccountToken": bool,
    "securityContext": {
        "runAsNonRoot": bool,
        "runAsUser": int,
        "runAsGroup": int,
        "fsGroup": int,
        "seccompProfile": {"type": {"RuntimeDefault"}},
    },
    "containers": [CONTAINER],
    "volumes": [VOLUME],
}
JOB = {
    "parallelism": int,
    "completions": int,
    "completionMode": {"Indexed", "NonIndexed"},
    "backoffLimit": int,
    "podFailurePolicy": {"rules": [{"action": {"FailJob", "Ignore", "Count"}, "onExitCodes": EXIT_CODES}]},
    "template": {"metadata": {"labels": LABELS}, "spec": POD},
}
ACTIONS = {"FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts"}
JOB_SET = {
    "apiVersion": {"jobset.x-k8s.io/v1alpha2"},
    "kind": {"JobSet"},
    "metadata": {"name": str},
    "spec": {
        "network": {"enableDNSHostnames": bool, "subdomain": str, "publishNotReadyAddresses": bool},
        "failurePolicy": {
            "maxRestarts": int,
            "rules": [{"name": str, "action": ACTIONS, "onJobFailureReasons": [{"PodFailurePolicy"}]}],
        },
        "replicatedJobs": [{"name": str, "replicas": int, "template": {"spec": JOB}}],
    },
}
NETWORK_POLICY = {
    "apiVersion": {"networking.k8s.io/v1"},
    "kind": {"NetworkPolicy"},
    "metadata": {"name": str},
    "spec": {
        "podSelector": SELECTOR,
        "policyTypes": [{"Ingress", "Egress"}],
        "ingress": [{"from": [PEER]}],
        "egress": [{"to": [PEER], "ports?": [{"protocol": {"UDP", "TCP"}, "port": int}]}],
    },
}


def faults(value: Any, schema: Any, at: str = "") -> list[str]:
    """What does not fit the schema, by path."""
    if schema == LABELS:
        return [at] if not all(type(x) is str for pair in value.items() for x in pair) else []
    if isinstance(schema, type):
        return [] if type(value) is schema else [f"{at}: {value!r} is no {schema.__name__}"]
    if isinstance(schema, set):
        return [] if value in schema else [f"{at}: {value!r} is none of {sorted(schema)}"]
    if isinstance(schema, list):
        items = value if isinstance(value, list) and value else [None]
        return [fault for n, item in enumerate(items) for fault in faults(item, schema[0], f"{at}[{n}]")]
    if not isinstance(value, dict):
        return [f"{at}: {value!r} has no fields"]
    known = {name.rstrip("?"): part for name, part in schema.items()}
    found = [f"{at}.{name}: unknown" for name in value.keys() - known.keys()]
    found += [f"{at}.{name}: missing" for name in schema if not name.endswith("?") and name not in value]
    return found + [
        x for name, part in value.items() if name in known for x in faults(part, known[name], f"{at}.{name}")
    ]


@pytest.fixture(scope="module")
def manifests():
    return list(yaml.safe_load_all((SCRIPTS / "kubernetes" / "jobset.yaml").read_text()))


def test_the_manifests_fit_what_kubernetes_documents(manifests):
    assert [faults(m, s) for m, s in zip(manifests, (JOB_SET, NETWORK_POLICY), strict=True)] == [[], []]


def test_the_schema_finds_typing_errors(manifests):
    text = yaml.safe_dump(manifests[0])
    for right, wrong, fault in (
        ("parallelism:", "paralelism:", ".paralelism: unknown"),
        ("completions: 2", "completions: two", ".completions: 'two' is no int"),
        ("value: '2'", "value: 2", ".value: 2 is no str"),
        ("restartPolicy: Never", "restartPolicy: OnFailure", ".restartPolicy: 'OnFailure' is none of"),
    ):
        assert right in text
        found = faults(yaml.safe_load(text.replace(right, wrong)), JOB_SET)
        assert any(fault in line for line in found), (fault, found)


def test_the_jobset_says_the_same_everywhere(manifests):
    jobs, policy = manifests
    (replicated,) = jobs["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    pod = job["template"]["spec"]
    (container,) = pod["containers"]
    given = {entry["name"]: entry.get("value", "10.1.2.3") for entry in container["env"]}
    given["LEPTON_COORDINATOR_BIND"] = given["LEPTON_COORDINATOR_BIND"].replace("$(POD_IP)", given["POD_IP"])
    found = processes.find({}, {**given, "JOB_COMPLETION_INDEX": "1"})
    host = f"{jobs['metadata']['name']}-{replicated['name']}-0-0.{jobs['spec']['network']['subdomain']}"
    assert found == (f"{host}:8476", 1, 2, "10.1.2.3:8476")
    assert job["parallelism"] == job["completions"] == found.processes
    assert (job["backoffLimit"], replicated["replicas"]) == (0, 1)
    actions = {rule["action"]: rule["onExitCodes"] for rule in job["podFailurePolicy"]["rules"]}
    assert actions["FailJob"]["values"] == [Exit.BAD_INPUT, Exit.BEYOND_REPAIR]
    assert actions["Ignore"]["values"] == [Exit.PREEMPTED]
    assert {rule["containerName"] for rule in actions.values()} == {container["name"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    grace = int(container["command"][container["command"].index("--grace") + 1])
    assert grace < pod["terminationGracePeriodSeconds"]
    run = container["args"][container["args"].index("--run") + 1]
    assert any(run.startswith(mount["mountPath"]) for mount in container["volumeMounts"] if not mount.get("readOnly"))
    labels = policy["spec"]["podSelector"]["matchLabels"]
    assert labels.items() <= job["template"]["metadata"]["labels"].items()
    assert [rule["from"] for rule in policy["spec"]["ingress"]] == [[{"podSelector": {"matchLabels": labels}}]]


def test_the_pods_are_not_root_and_may_do_nothing_else(manifests):
    pod = manifests[0]["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    recipe = (SCRIPTS / "kubernetes" / "Dockerfile").read_text()
    (user,) = re.findall(r"^USER (\d+):\d+$", recipe, re.MULTILINE)
    assert int(user) == pod["securityContext"]["runAsUser"] > 0
    assert pod["securityContext"]["runAsNonRoot"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not pod["automountServiceAccountToken"]
    for source in re.findall(r"^COPY (.+) \S+$", recipe, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split())
    assert all(
        (ROOT / "requirements" / f"{pins}.txt").exists() for pins in re.findall(r"(?:base|cuda|tpu)-3\.11", recipe)
    )
