"""`serve` and `join`: the coordinator and a client of an experiment's job, as processes."""

import contextlib
import dataclasses
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from lepton_jax import checkpoint, lease, mesh, preemption, progress, runs, tree, weights
from lepton_jax.config import Config
from lepton_jax.errors import InputError, PreemptedError
from lepton_jax.federation import dialling, gathering, job, tls
from lepton_jax.federation.coordinator import Coordinator
from lepton_jax.federation.health import ANEW, Standing
from lepton_jax.federation.job import Job
from lepton_jax.federation.listening import Listener, bound
from lepton_jax.federation.participant import Participant
from lepton_jax.federation.terms import Terms
from lepton_jax.launch.ledger import Events
from lepton_jax.types import TrainState

EVENTS, WEIGHTS = "events.jsonl", "weights.safetensors"


class Begun(NamedTuple):
    """Where a run goes on: its state, how its clients stand, the last round's metrics."""

    state: TrainState
    standing: Standing
    metrics: Mapping[str, float]


def serve(job_: Job, config: Config, terms: Terms, own: tls.Identity, host: str, port: int) -> pathlib.Path:
    """Hold all rounds of a job, or those that are left of them: the run directory.

    It gets config.json, checkpoints/ (a step for each round), events.jsonl, result.json and weights.safetensors. Raises
    InputError, and PreemptedError where asked to stop: the same command goes on.
    """
    job_ = agreed(job_, config)
    job.check(job_)
    terms.check(len(job_.clients))
    require_one_device(config)
    state = job_.state()
    gathering.chosen(job_, job.sent_like(job_, state), terms)  # refuses what cannot be, before anything is written
    with contextlib.ExitStack() as stack:
        listening = stack.enter_context(bound(host, port))
        directory = opened(job_, config, terms, state)
        stack.enter_context(runs.writing(directory))
        stack.enter_context(lease.held(directory))
        events = stack.enter_context(contextlib.closing(Events(directory / EVENTS)))
        place = config.checkpoints or directory / "checkpoints"
        checkpoints = stack.enter_context(checkpoint.Checkpoints(place, config.keep, config.monitor))
        begun = gone_on(checkpoints, state)
        coordinating = Coordinator(job_, begun.state, terms, events, begun.standing, say)
        most = job.most_bytes(job_, state)
        listener = Listener(listening, own, coordinating.answer, most, coordinating.refused, coordinating.heard)
        with contextlib.closing(listener):
            events.write("start", round=int(begun.state.step), address=[host, port])
            say(f"listening  {host}:{port} for {len(job_.clients)} clients: {', '.join(job_.clients[:8])}")
            ended = held(coordinating, checkpoints, begun, directory)
        finish(directory, job_, coordinating.state, ended, config)
    return directory


def agreed(job_: Job, config: Config) -> Job:
    """The job with the flags that decide its trajectory, for both sides to agree on."""
    flags = {name: value for name, value in dataclasses.asdict(config).items() if name not in runs.NEUTRAL}
    return job_._replace(flags=runs.strict(flags))


def opened(job_: Job, config: Config, terms: Terms, state: TrainState) -> pathlib.Path:
    """The run directory, new or this very run's. Raises InputError and leaves others untouched."""
    directory = pathlib.Path(config.run) if config.run else runs.fresh(job_.name)
    flags = {name: value for name, value in dataclasses.asdict(config).items() if name != "run"}
    known = {"job": job.fingerprint(job_, state), "secure": terms.secure, "cohort": terms.cohort}
    runs.check(directory, job_.name, flags, known)
    size = tree.nbytes(state._replace(key=jax.random.key_data(state.key)))
    record = {"experiment": job_.name, "config": flags, "identity": known}
    runs.create(directory, record, (config.keep + 3) * size)  # checkpoints, one being written, and the weights
    return directory


def gone_on(checkpoints: checkpoint.Checkpoints, state: TrainState) -> Begun:
    """The newest good checkpoint, or the beginning. Raises DamagedError where none is good."""
    if checkpoints.latest() is None:
        return Begun(state, ANEW, {})
    found, info = checkpoints.restore(state, mesh.make("1x1"))
    for step, why in checkpoints.aside.items():
        say(f"damaged    round {step}: {why}")
    say(f"resumed    after round {int(found.step)}")
    return Begun(found, Standing(info["lost"], info["taken"]), info["metrics"])


def held(
    coordinating: Coordinator, checkpoints: checkpoint.Checkpoints, begun: Begun, directory: pathlib.Path
) -> Mapping[str, float]:
    """Round after round, each saved: the last one's metrics. Raises PreemptedError where asked to stop."""
    last, committed = begun.metrics, None

    def save(state: TrainState, standing: Standing, metrics: Mapping[str, float]) -> None:
        nonlocal last
        last = metrics
        checkpoints.save(state, {**standing._asdict(), "metrics": dict(metrics)}, metrics)

    def leave(number: int) -> bool:
        nonlocal committed
        if (step := checkpoints.committed()) not in (None, committed):
            committed = step
            progress.reporter().committed(step)
        return preemption.is_asked(number)

    if coordinating.run(save, leave):
        return last
    checkpoints.close()
    number = int(coordinating.state.step)
    raise PreemptedError(f"saved after round {number} in {directory}; the same command goes on from there")


def finish(directory: pathlib.Path, job_: Job, state: TrainState, metrics: Mapping[str, float], config: Config) -> None:
    """weights.safetensors and result.json."""
    weights.save(directory / WEIGHTS, {"params": state.params, **state.stats.get("model", {})})
    record: dict[str, Any] = {"experiment": job_.name, "status": "complete", "rounds": job_.rounds}
    measured = dict(job_.evaluate(state)) if job_.evaluate else {}
    record |= {"clients": list(job_.clients), "metrics": {**metrics, **measured}, "seed": config.seed}
    runs.write(directory / "result.json", record)
    if measured:
        say("evaluated  " + "  ".join(f"{name} {value:.4f}" for name, value in list(measured.items())[:4]))
    say(f"files      {directory}/result.json  {WEIGHTS}  {EVENTS}")


def join(
    job_: Job,
    config: Config,
    own: tls.Identity,
    name: str,
    host: str,
    port: int,
    steps: int | None,
    patience: float,
    memory: pathlib.Path | None = None,
) -> int:
    """Take part in all rounds of a job that are left: the rounds in which this client's update was taken.

    steps: local steps of a round that this machine can do; None for all. patience: seconds for which the coordinator
    may be away. memory: a directory for what the client keeps from round to round. Raises InputError, and
    UnreachableError where it is away for longer.
    """
    job_ = agreed(job_, config)
    job.check(job_)
    require_one_device(config)
    if not 0 < patience < 1e9:
        raise InputError(f"--wait {patience} is not a number above 0", "600 is ten minutes")
    most = job.most_bytes(job_, jax.eval_shape(job_.state))
    with contextlib.closing(dialling.Dialled(host, port, own, most, patience)) as transport:
        participant = Participant(job_, name, transport, steps, memory)
        say(f"joining    {host}:{port} as {name}")
        participant.run()
    say(f"done       {name} took part in {len(participant.rounds)} of {job_.rounds} rounds")
    return len(participant.rounds)


def require_one_device(config: Config) -> None:
    """Raise InputError where a mesh is asked for: rounds between machines are computed on one device of each."""
    if config.mesh not in (None, "1x1"):
        problem = f"--mesh {config.mesh} cannot be had between machines"
        raise InputError(problem, "leave it out: each client computes on one device")


def say(text: str) -> None:
    """A line on standard output, at once."""
    print(text, flush=True)
