"""Requests on connections of their own, which the kernel shares out; waits whose limit only failures meet; ports."""

import random
import socket
import ssl
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import httpx

LIMIT_S = 60  # what takes a second, or a start that takes three, on a machine that has much else to do
PLAIN = ssl.create_default_context()  # made once; httpx would make one a request, which takes 30 ms


def request(method: str, url: str, **options: Any) -> httpx.Response:
    return httpx.request(method, url, verify=PLAIN, timeout=LIMIT_S, **options)


get, post = partial(request, "GET"), partial(request, "POST")


def wait_until(true: Callable[[], Any]) -> None:
    end_s = time.monotonic() + LIMIT_S
    while not true():
        assert time.monotonic() < end_s, f"not so after {LIMIT_S} s"
        time.sleep(0.01)


def free_ports(number: int) -> list[str]:
    """Ports that are free now, and below those that the kernel gives to others until they are used."""
    return [str(port) for port in random.sample(range(20_000, 32_000), 100 * number) if is_free(port)][:number]


def is_free(port: int) -> bool:
    try:
        socket.create_server(("127.0.0.1", port)).close()
    except OSError:
        return False
    return True
