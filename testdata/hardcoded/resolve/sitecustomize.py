# Stands for the hosts file of a container: has Python resolve every name, with
# port 443, to the gateway, whose address is in GATEWAY. Python imports this file at
# start if its directory is in PYTHONPATH.

import os
import socket

host, port = os.environ["GATEWAY"].split(":")
getaddrinfo = socket.getaddrinfo


def resolve(name, service, *args, **kwargs):
    if service in (443, "443", "https"):
        name, service = host, int(port)
    return getaddrinfo(name, service, *args, **kwargs)


socket.getaddrinfo = resolve
