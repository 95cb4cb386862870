#!/usr/bin/env python3
"""A skeleton of an adapter for Watertight: speaks the protocol, protects nothing. Replace the bodies of Client."""
import ipaddress, json, os, signal, sys

UNKNOWN_METHOD, BAD_PARAMS, NOT_INITIALIZED, FAILED = -32601, -32602, -32002, -32000


class Refused(Exception):
    def __init__(self, code, message):
        self.code, self.message = code, message


class Client:
    """Drives the VPN client. Each method returns when its state is in force; what it raises becomes an error answer."""

    def __init__(self, params):
        self.state_dir, self.uplink = params["state_dir"], params["uplink"]
        self.settings = None

    def configure(self, settings):
        try:
            endpoint = settings["tunnel"]["endpoint"]
            address, _, port = endpoint.rpartition(":")
            ipaddress.ip_address(address.strip("[]")), int(port)
        except (KeyError, ValueError) as error:
            raise Refused(BAD_PARAMS, f"bad settings: tunnel.endpoint: {error}")
        self.settings = settings

    def block(self): ...                # 1. the firewall, in one step
    def bring_up(self): ...             # 2. the tunnel, its routes, 3. DNS, verified
    def restore(self): ...              # 4. DNS back, verified; the firewall opens last


def send(**message):
    sys.stdout.write(json.dumps({"jsonrpc": "2.0", **message}) + "\n")
    sys.stdout.flush()


def main():
    client, state = None, "disconnected"

    def enter(new):
        nonlocal state
        if new != state:
            state = new
            send(method="state_changed", params={"state": new})

    def stop(*_):
        if client and state != "disconnected":
            client.restore()

    signal.signal(signal.SIGTERM, lambda *_: (stop(), os._exit(0)))
    for line in sys.stdin:              # its end means a clean stop
        request = json.loads(line)
        identity, method, params = request.get("id"), request["method"], request.get("params") or {}
        result = {}
        try:
            if method == "initialize":
                if params["protocol"] != 1:
                    raise Refused(BAD_PARAMS, "this adapter speaks protocol version 1")
                client = Client(params)
                result = {"protocol": 1, "name": "skeleton", "version": "0.1.0",
                          "capabilities": ["reports-states", "restores-on-sigterm"], "dns_methods": []}
            elif client is None:
                raise Refused(NOT_INITIALIZED, f"'{method}' before 'initialize'")
            elif method == "state":
                result = {"state": state}
            elif method == "configure":
                client.configure(params)
            elif method == "connect":
                client.block(); enter("connecting")
                client.bring_up(); enter("connected")
            elif method == "disconnect":
                enter("disconnecting"); client.restore(); enter("disconnected")
            elif method == "shutdown":
                stop()
            else:
                raise Refused(UNKNOWN_METHOD, f"no method '{method}'")
        except Refused as refused:
            send(id=identity, error={"code": refused.code, "message": refused.message})
            continue
        except Exception as error:
            send(id=identity, error={"code": FAILED, "message": f"'{method}' failed: {error}"})
            continue
        send(id=identity, result=result)
        if method == "shutdown":
            return
    stop()


main()
