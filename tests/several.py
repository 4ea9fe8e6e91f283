"""Functions run in several joined processes, as torchrun would start them; forked, so they begin at once."""

import multiprocessing
import os
import pickle
import socket
import traceback

from pipeline import processes

FORK = multiprocessing.get_context("fork")


def in_processes(number, work, *arguments, seconds=60):
    """What `work` returns or raises in each of `number` processes, in their order."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [FORK.Pipe(duplex=False) for _ in range(number)]
    children = [
        FORK.Process(target=_child, args=(rank, number, port, pipes[rank][1], work, arguments))
        for rank in range(number)
    ]
    for child in children:
        child.start()
    try:
        return [_answer(pipe, seconds) for pipe, _ in pipes]
    finally:
        for child in children:
            child.kill()
            child.join()


def _answer(pipe, seconds):
    assert pipe.poll(seconds), f"no answer after {seconds} s"
    return pickle.loads(pipe.recv())


def _child(rank, number, port, pipe, work, arguments):
    launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": number, "LOCAL_WORLD_SIZE": number}
    launch |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "test"}
    os.environ.update({name: str(value) for name, value in launch.items()})
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    try:
        answer = work(*arguments)
    except BaseException as error:
        traceback.print_exc()
        answer = error
    try:
        pipe.send(pickle.dumps(answer))
    except Exception:
        pipe.send(pickle.dumps(RuntimeError(repr(answer))))
    processes.tell_reason("done")
