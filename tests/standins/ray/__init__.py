"""A stand-in for Ray: actors are objects here, and their methods run in threads."""

import concurrent.futures

from ray import exceptions, util

__all__ = ["exceptions", "get", "init", "kill", "remote", "util", "wait"]

_POOL = concurrent.futures.ThreadPoolExecutor(32)


def init(address):
    assert address == "auto"


class _Method:
    def __init__(self, function):
        self._function = function

    def remote(self, *arguments):
        return _POOL.submit(self._function, *arguments)


class _Handle:
    def __init__(self, actor):
        self._actor = actor

    def __getattr__(self, name):
        return _Method(getattr(self._actor, name))


class _Class:
    def __init__(self, actor):
        self._actor = actor

    def options(self, *, max_concurrency, num_cpus, num_gpus, scheduling_strategy):
        assert max_concurrency == 2
        assert scheduling_strategy.placement_group_bundle_index < len(scheduling_strategy.placement_group.bundles)
        return self

    def remote(self):
        return _Handle(self._actor())


def remote(actor):
    return _Class(actor)


def get(reference):
    return None if reference is None else reference.result()


def wait(references, num_returns):
    done, _ = concurrent.futures.wait(references, return_when=concurrent.futures.FIRST_COMPLETED)
    ready = [reference for reference in references if reference in done][:num_returns]
    return ready, [reference for reference in references if reference not in ready]


def kill(actor):
    assert isinstance(actor, _Handle)
