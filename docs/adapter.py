#!/usr/bin/env python3
"""An adapter for Watertight, and a small VPN client at that: nft is its firewall, wireguard-go its tunnel, DNS is the file
/etc/resolv.conf. It needs the programs nft, ip and wireguard-go; the last one's path may be given as an argument."""
import base64, ipaddress, json, os, pathlib, re, select, shutil, signal, socket, subprocess, sys

CODES = {NotImplementedError: -32601, ValueError: -32602, LookupError: -32002}      # the protocol's, for wrong requests
CAPABILITIES = ["reports-states", "error-state", "restores-on-sigterm", "ipv6"]
WIREGUARD = sys.argv[1] if len(sys.argv) > 1 else "wireguard-go"
MARK, TABLE = 0x7A11, 7911              # of the tunnel's own packets; of the routes of all others
FILE, ORIGINAL, NEW = "/etc/resolv.conf", "/etc/resolv.conf.adapter-original", "/etc/resolv.conf.adapter-new"
ALWAYS = "oifname lo accept; udp sport { 68, 546 } udp dport { 67, 547 } accept; icmpv6 type { 133, 135, 136, 143 } accept;"

def run(*command, text=""):
    done = subprocess.run(command, input=text, text=True, capture_output=True)
    if done.returncode:
        raise RuntimeError(f"`{' '.join(command)}`: {done.stderr.strip()}")

def send(**message):
    os.write(1, (json.dumps({"jsonrpc": "2.0", **message}) + "\n").encode())

def to(address):
    return ("ip6" if ":" in address else "ip") + " daddr " + address.split("/")[0]

class Client:
    state, tunnel, wireguard, dns_is_set = None, None, None, False
    def enter(self, state):
        self.state = state
        send(method="state_changed", params={"state": state})

    def firewall(self, state):          # in one transaction, whatever was there before
        name, rules, dns = self.tunnel["interface"], "", "meta l4proto { tcp, udp } th dport 53"
        if state in ("connecting", "connected"):
            rules = f"meta mark {MARK} {self.relay} @th,64,8 1-4 @th,72,24 0 accept; "      # what looks like WireGuard
        if state == "connected":
            rules += "".join(f"oifname {name} {to(server)} {dns} accept; " for server in self.tunnel["gateways"])
            rules += f"oifname {name} {dns} goto refuse; oifname {name} accept; "
        own = "".join(f"iifname != {{ lo, {name} }} {to(address)} drop; " for address in self.tunnel["addresses"])
        table = f"""table inet adapter {{
            chain refuse {{ meta l4proto tcp reject with tcp reset; reject; }}
            chain early {{ type filter hook prerouting priority raw; {own} }}
            chain forward {{ type filter hook forward priority filter; policy drop; {rules} goto refuse; }}
            chain output {{ type filter hook output priority filter; policy drop; {ALWAYS} {rules} goto refuse; }}
        }}""" if state != "disconnected" else ""
        run("nft", "-f", "-", text="table inet adapter {}; delete table inet adapter; " + table)

    def ask(self, *lines):              # https://www.wireguard.com/xplatform/
        self.wireguard.sendall(("\n".join(lines) + "\n\n").encode())
        answer = self.wireguard.recv(65536).decode()
        if "errno=0" not in answer:
            raise RuntimeError(f"WireGuard: {answer.strip() or 'its process has ended'}")
        return answer

    def look(self):                     # WireGuard tells of no handshake: it has to be asked
        if re.search(r"last_handshake_time_sec=[1-9]", self.ask("get=1")):
            self.set_dns()
            self.firewall("connected")
            self.enter("connected")

    def set_dns(self):
        if not self.dns_is_set and os.path.lexists(FILE):
            os.link(FILE, ORIGINAL, follow_symlinks=False)      # the file or the link itself, under another name
        self.dns_is_set = True
        pathlib.Path(NEW).write_text("".join(f"nameserver {server}\n" for server in self.tunnel["gateways"]))
        os.replace(NEW, FILE)

    def close(self):                    # the tunnel and the way to it; wireguard-go ends with its interface
        for undo in (f"-4 rule del table {TABLE}", f"-6 rule del table {TABLE}", f"link del {self.tunnel['interface']}"):
            subprocess.run(["ip", *undo.split()], capture_output=True)
        self.wireguard = self.wireguard and self.wireguard.recv(65536) or None

    def block(self):                    # DNS stays as it is until somebody disconnects
        self.firewall("error")
        self.close()
        self.enter("error")

    def disconnect(self):
        if self.state not in (None, "disconnected"):
            self.firewall("disconnecting")
            self.enter("disconnecting")
            if self.dns_is_set:
                os.replace(ORIGINAL, FILE) if os.path.lexists(ORIGINAL) else os.remove(FILE)
            self.dns_is_set = False
            self.close()
            self.firewall("disconnected")
            self.enter("disconnected")

    def connect(self):
        self.firewall("connecting")
        self.enter("connecting")
        self.close()
        tunnel, name, key = self.tunnel, self.tunnel["interface"], lambda text: base64.b64decode(text).hex()
        run(WIREGUARD, name)            # comes back when the interface and its socket are there
        self.wireguard = socket.socket(socket.AF_UNIX)
        self.wireguard.connect(f"/var/run/wireguard/{name}.sock")
        self.ask("set=1", "private_key=" + key(tunnel["private_key"]), f"fwmark={MARK}",
                 "public_key=" + key(tunnel["peer_public_key"]), "endpoint=" + tunnel["endpoint"],
                 "persistent_keepalive_interval=25", *("allowed_ip=" + network for network in tunnel["allowed_ips"]))
        addresses = "".join(f"address add {address} dev {name}\n" for address in tunnel["addresses"])
        run("ip", "-batch", "-", text=f"{addresses}link set {name} mtu {tunnel.get('mtu', 1420)} up\n")
        for family in ("-4", "-6"):
            way = f"route add default dev {name} table {TABLE}\nrule add not fwmark {MARK} table {TABLE}\n"
            run("ip", family, "-batch", "-", text=way)

    def configure(self, settings):
        old, new = self.tunnel, settings["tunnel"]
        address, _, port = new["endpoint"].rpartition(":")
        self.relay = f"{to(str(ipaddress.ip_address(address.strip('[]'))))} udp dport {int(port)}"
        self.tunnel = new
        if self.state in ("connecting", "connected") and new != old:
            self.connect()

    def answer(self, method, params):
        if method == "initialize":
            if params["protocol"] != 1:
                raise ValueError("this adapter speaks version 1 of the protocol")
            self.state = "disconnected"
            return {"protocol": 1, "name": "adapter.py", "version": "0.1", "capabilities": CAPABILITIES, "dns_methods": []}
        if self.state is None:
            raise LookupError(f"'{method}' before 'initialize'")
        calls = {"configure": lambda: self.configure(params), "connect": self.connect, "disconnect": self.disconnect,
                 "shutdown": self.disconnect, "block": self.block, "look": self.look, "state": lambda: {"state": self.state}}
        if method not in calls:
            raise NotImplementedError(f"no method '{method}'")
        return calls[method]() or {}

for program in (program for program in ("nft", "ip", WIREGUARD) if not shutil.which(program)):
    sys.exit(f"{program} is not on this machine; install it, or see the first lines of adapter.py")
client, text, request = Client(), b"", {}
socket.setdefaulttimeout(5)
signal.signal(signal.SIGTERM, lambda *_: sys.exit())
try:
    while request.get("method") != "shutdown":
        ready = select.select([0, client.wireguard or 0], [], [], 0.05 if client.state == "connecting" else None)[0]
        if 0 in ready:
            data = os.read(0, 65536)
            *lines, text = (text + data).split(b"\n")
            requests = [json.loads(line) for line in lines] if data else [{"method": "shutdown"}]
        else:                           # the interface was removed, or the tunnel's process has ended; or time has passed
            requests = [{"method": "block" if ready else "look"}]
        for request in requests:
            try:
                result = {"result": client.answer(request["method"], request.get("params"))}
            except Exception as error:
                code = CODES.get(type(error)) or client.block() or -32000       # what fails ends in blocking
                result = {"error": {"code": code, "message": f"'{request['method']}': {error}"}}
            if "id" in request:
                send(id=request["id"], **result)
finally:
    client.disconnect()
