#!/usr/bin/env python3
"""Compares the readers of MAIL and RCPT: Spillway's, Postfix's, and the one of Python's standard library.

    fuzz/differential.py [--seed N] [--count N] [--seconds N] [--spillway PROGRAM] [--group NAME]

Generates arguments of MAIL and RCPT from a seed, gives each to a running Spillway, to a running smtpd of Postfix (both on
loopback, in a temporary folder) and to Python, and compares who takes it, and for which mailbox. Every difference belongs to a
group in GROUPS, which says why it is right. The program prints the groups with their counts and an example; it exits with 1 if
a difference belongs to none. Needs root, for Postfix.
"""

import argparse
import base64
import collections
import email._header_value_parser as reader
import ipaddress
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

sys.dont_write_bytecode = True
from differential_groups import GROUPS

COMMANDS_AT_ONCE = 50
# The sender of every RCPT.
SENDER = b"sender@differential.test"

# --- What is sent ------------------------------------------------------------------------------------------------------------

LOCALS = ["a", "joe", "a.b", "a..b", ".a", "a.", "a+b", "a=b", "a/b", "a%b", "a!b", "#a", "a'b", "-a", "a_b", "l" * 70, '"a b"', '""',
          '"a@b"', '"<>"', '"a\\"b"', '"a\\\\"', '"a"', 'a"b"', '"a".b', '"a', 'a\\b', "a b", "a,b", "a:b", "a;b", "(a)", "a(b)",
          "[a]", "a@b", "", "ü", '"ü"', "a\x7f", '"\t"', "postmaster", "a\u200bb", "l" * 240, "l" * 490, "=?x?=", "..", "@x"]
DOMAINS = ["b.test", "B.Test", "b", "b.test.", "b..c", ".b", "b.", ".", "-b", "b-", "b_c.test", "b|c", "%41", "b c", "b,c", "b(c)", "",
           "1.2.3.4", "[192.0.2.1]", "[192.0.2.1", "192.0.2.1]", "[1.2.3.400]", "[01.2.3.4]", "[IPv6:2001:db8::1]", "[ipv6:::1]",
           "[IPv6:zz]", "[::1]", "[x:y]", "[]", "bücher.test", "b。test", "b\xadc.test", "d" * 64 + ".test", "d." * 126 + "de",
           "d." * 130 + "de", "x-" + "d" * 60, "b.test@c.test", '"b"', "b/c", "b*c", "*", "b\x01c", "xn--bcher-kva.test", "b<c", "b>c"]
ROUTES = ["", "", "", "", "", "", "@x.test:", "@x.test,@y.test:", "@[192.0.2.1]:", "@[IPv6:::1]:", "@x:", "@:", "@x", "@x,:", "@-x:", "x:"]
FORMS = ["<{}>"] * 8 + ["{}", " <{}>", "<{}", "{}>", "< {}>", "<{} >", "<<{}>>", "<{}>junk", "<{}>,", "  {}", '"n" <{}>', "n <{}>", "\t<{}>"]
XTEXT = ["a", "a+2Bb", "a+2bb", "+ZZ", "a+4", "+", "a=b", "+0D+0A", "+00", "+E9", "+20", "a b", "ü", "", "x" * 99, "x" * 100, "x" * 101, "x" * 300,
         "x" * 500, "x" * 501, "<>", "a@b.test", "a;b", "\x7f"]
SIZES = ["0", "3", "1000", "", "-1", "+1", "1x", "99999999999999999999", "184467440737095516155", "0x5", "1,0", " 3"]


def address(rng):
    """A path, mostly of the usual form."""
    local, domain = rng.choice(LOCALS), rng.choice(DOMAINS)
    if rng.random() < 0.3:
        local = rng.choice(["joe", "a.b"])
    if rng.random() < 0.4:
        domain = "b.test"
    text = rng.choice(ROUTES) + local + ("@" if rng.random() < 0.95 else "") + domain
    if rng.random() < 0.03:
        text = rng.choice(["", " ", "postmaster", "Postmaster", "@a.test:", "@"])
    if rng.random() < 0.15:
        text = mutated(rng, text)
    return rng.choice(FORMS).format(text)


def mutated(rng, text):
    """The text with one or two characters changed."""
    for _ in range(rng.randint(1, 2)):
        at = rng.randint(0, len(text))
        put = rng.choice(list('@<>"\\:;,.[]()- %|\t') + ["\x01", "\x7f", "\x85", "é", "\u2028", "\u3002", ""])
        text = text[:at] + put + text[at + rng.randint(0, 1):]
    return text


def parameter(rng, of_mail):
    """One parameter."""
    if rng.random() < 0.04:
        return rng.choice(["FROB", "FROB=1", "=", "-A=1", "REQUIRETLS", "BY=1;R", "A,B", "SIZE", "RET", "NOTIFY", "ORCPT", "ENVID"])
    if of_mail or rng.random() < 0.03:
        return rng.choice([
            lambda: "SIZE=" + rng.choice(SIZES), lambda: "BODY=" + rng.choice(["7BIT", "8bitmime", "8BITMIME", "BINARYMIME", "", "X"]),
            lambda: rng.choice(["SMTPUTF8", "smtputf8", "SMTPUTF8=", "SMTPUTF8=1"]), lambda: "RET=" + rng.choice(["FULL", "hdrs", "HDRS", "", "X"]),
            lambda: "ENVID=" + rng.choice(XTEXT), lambda: "AUTH=" + rng.choice(XTEXT),
        ])()
    return rng.choice([
        lambda: "NOTIFY=" + rng.choice(["NEVER", "SUCCESS", "SUCCESS,FAILURE,DELAY", "delay", "NEVER,SUCCESS", "SUCCESS,NEVER", "", ",",
                                        "SUCCESS,", "SUCCESS,SUCCESS", "X"]),
        lambda: "ORCPT=" + rng.choice(["rfc822;", "RFC822;", "x400;", "utf-8;", "X-a;", ";", "", "rfc822", "a(b;"]) + rng.choice(XTEXT),
        lambda: "ORCPT=utf-8;" + rng.choice(["\\x{F6}@b.test", "ö@b.test", "a@b.test", "\\x{D800}@b", "\\x{F6@b", "a+40b", "\\x{0A}@b"]),
    ])()


def command(rng):
    """A command without its line end, as octets."""
    of_mail = rng.random() < 0.5
    keyword = rng.choice(["MAIL FROM:"] * 20 + ["mail from:", "MAIL FROM :", "MAIL  FROM:", "MAIL FROM", "MAIL\tFROM:", "MAIL TO:"])
    if not of_mail:
        keyword = rng.choice(["RCPT TO:"] * 20 + ["rcpt to:", "RCPT TO :", "RCPT TO", "RCPT FROM:"])
    text = keyword + (address(rng) if rng.random() < 0.6 else "<joe@b.test>")
    for _ in range(rng.choice([0, 0, 0, 1, 1, 2, 3])):
        text += rng.choice([" "] * 20 + ["  ", "\t", ""]) + parameter(rng, of_mail)
    text += rng.choice([""] * 10 + [" ", "\t"])
    octets = text.encode()
    return octets.replace("é".encode(), b"\xe9") if rng.random() < 0.5 else octets


# --- The readers -------------------------------------------------------------------------------------------------------------


def unquoted(text):
    """The mailbox as its owner means it: without quotes and escapes."""
    local, at, domain = text.rpartition("@")
    if len(local) >= 2 and local[0] == local[-1] == '"':
        local = re.sub(r"\\(.)", r"\1", local[1:-1])
    return local + at + domain


def as_sent(line):
    """The mailbox that Spillway passes on if it takes the command: the text of the path, without its route. fuzz/src/syntax.rs
    and src/smtp/path/tests.rs hold the parser to this."""
    text = line.split(b":", 1)[1].strip(b" \t").decode(errors="replace")
    quoted, end = False, len(text)
    at = 0
    while at < len(text):
        c = text[at]
        if c == "\\" and quoted:
            at += 1
        elif c == '"':
            quoted = not quoted
        elif not quoted and (c == ">" or (c in " \t" and text[0] != "<")):
            end = at
            break
        at += 1
    text = text[1:end] if text.startswith("<") else text[:end]
    if text.startswith("@"):
        text = re.sub(r"^(@(\[[^]]*\]|[^\[,:]*),?)+:", "", text)
    return unquoted(text)


def python(line):
    """Reads the command as smtpd.py of Python 3.11 does (which aiosmtpd began as). Returns the mailbox, or None."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return None
    verb, _, rest = text.strip().partition(" ")
    keyword = {"MAIL": "FROM:", "RCPT": "TO:"}.get(verb.upper())
    rest = rest.strip()
    if keyword is None or rest[:len(keyword)].upper() != keyword:
        return None
    rest = rest[len(keyword):].strip()
    if not rest:
        return None
    try:
        read = reader.get_angle_addr if rest.lstrip().startswith("<") else reader.get_addr_spec
        token, rest = read(rest)
        mailbox = token.addr_spec
    except Exception:  # Its parser fails in many ways, some of them by accident.
        return None
    if mailbox in (None, "<>") or not mailbox:
        mailbox = "" if verb.upper() == "MAIL" else None
    if mailbox is None:
        return None
    known = {"MAIL": {"SIZE", "BODY", "SMTPUTF8"}, "RCPT": set()}[verb.upper()]
    parameters = {}
    for word in rest.strip().upper().split():
        name, _, value = word.partition("=")
        if not re.fullmatch(r"[A-Z0-9-]+", name):
            return None
        parameters[name] = value if "=" in word else True
    if parameters.get("BODY", "7BIT") not in ("7BIT", "8BITMIME") or parameters.get("SMTPUTF8", True) is not True:
        return None
    if not str(parameters.get("SIZE", "0")).isdigit() or set(parameters) - known:
        return None
    return unquoted(mailbox)


class Talk:
    """An SMTP session."""

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), 60)
        self.file = self.socket.makefile("rb")
        self.reply()
        self.say(b"EHLO c.test")
        self.reply()

    def say(self, *lines):
        self.socket.sendall(b"".join(line + b"\r\n" for line in lines))

    def reply(self):
        while True:
            line = self.file.readline()
            if not line:
                raise EOFError("the server has closed the session")
            if line[3:4] != b"-":
                return line.decode(errors="replace").strip()

    def ask(self, lines):
        """The replies to the commands, each in a transaction of its own."""
        for line in lines:
            before = [] if line[:4].upper() == b"MAIL" else [b"MAIL FROM:<" + SENDER + b"> SMTPUTF8"]
            self.say(*before, line, b"RSET")
        replies = []
        for line in lines:
            if line[:4].upper() != b"MAIL":
                self.reply()
            replies.append(self.reply())
            self.reply()
        return replies


class Policy(threading.Thread):
    """Postfix asks this about each recipient or sender, and so tells how it has read the address."""

    def __init__(self):
        super().__init__(daemon=True)
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.start()

    def run(self):
        while True:
            client = self.listener.accept()[0]
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client):
        said = {}
        for line in client.makefile("rb"):
            name, _, value = line.rstrip(b"\n").partition(b"=")
            said[name] = value
            if not name:
                which = b"sender" if said.get(b"protocol_state") == b"MAIL" else b"recipient"
                read = base64.b64encode(said.get(which, b"")).decode()
                action = "DUNNO" if said.get(which) == SENDER else f"450 4.7.1 read ={read}"
                client.sendall(f"action={action}\n\n".encode())
                said = {}


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return taken.getsockname()[1]


def wait_for(port, process, log=None):
    for _ in range(600):
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None:
                sys.exit(f"{process.args[0]} has ended: {log.read_text() if log else ''}")
            time.sleep(0.1)
    sys.exit(f"{process.args[0]} does not listen")


def start_spillway(folder, program):
    port = free_port()
    (folder / "spillway.toml").write_text(f"""
[relay]
hostname = "relay.test"
[[listener]]
name = "smtp"
address = ["127.0.0.1:{port}"]
[limits]
errors = 10000
commands = 10000
[[next_hop]]
name = "hop"
domains = ["*"]
kind = "smtp"
address = ["127.0.0.1:9"]
tls = "off"
[store]
path = "{folder}/store"
disk_reserve = "1MiB"
[admin]
http = ""
""")
    log = folder / "spillway.log"
    process = subprocess.Popen([program, "run", "-c", folder / "spillway.toml"], stdout=subprocess.DEVNULL, stderr=log.open("w"))
    wait_for(port, process, log)
    return process, port


def start_postfix(folder, policy):
    port = free_port()
    daemons = next(p for p in ("/usr/lib/postfix/sbin", "/usr/libexec/postfix") if os.path.isdir(p))
    folder.mkdir()
    (folder / "main.cf").write_text(f"""
compatibility_level = 3.6
queue_directory = {folder}/queue
data_directory = {folder}/data
daemon_directory = {daemons}
command_directory = /usr/sbin
mail_owner = postfix
setgid_group = postdrop
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mynetworks = 127.0.0.0/8
myhostname = postfix.test
mydestination =
append_dot_mydomain = no
append_at_myorigin = no
alias_maps =
alias_database =
maillog_file = {folder}/log
maillog_file_prefixes = /
smtputf8_enable = yes
message_size_limit = 52428800
smtpd_delay_reject = no
smtpd_error_sleep_time = 0
smtpd_soft_error_limit = 1000000000
smtpd_hard_error_limit = 1000000000
smtpd_junk_command_limit = 1000000000
smtpd_sender_restrictions = check_policy_service inet:127.0.0.1:{policy}
smtpd_recipient_restrictions = check_policy_service inet:127.0.0.1:{policy}, permit_mynetworks, reject
smtpd_policy_service_request_limit = 0
""")
    services = ["pickup unix n - n 60 1 pickup", "cleanup unix n - n - 0 cleanup", "qmgr unix n - n 300 1 qmgr", "rewrite unix - - n - - trivial-rewrite",
                "bounce unix - - n - 0 bounce", "defer unix - - n - 0 bounce", "trace unix - - n - 0 bounce", "proxymap unix - - n - - proxymap",
                "smtp unix - - n - - smtp", "relay unix - - n - - smtp", "error unix - - n - - error", "retry unix - - n - - error",
                "anvil unix - - n - 1 anvil", "postlog unix-dgram n - n - 1 postlogd"]
    (folder / "master.cf").write_text(f"127.0.0.1:{port} inet n - n - - smtpd\n" + "\n".join(services) + "\n")
    for part in ("queue", "data"):
        (folder / part).mkdir()
    folder.chmod(0o755)
    shutil.chown(folder / "data", "postfix")
    subprocess.run(["postfix", "-c", folder, "check"], check=True, stderr=subprocess.DEVNULL)
    process = subprocess.Popen([f"{daemons}/master", "-c", folder], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    wait_for(port, process)
    return process, port


# --- The differences ---------------------------------------------------------------------------------------------------------

def explained(case):
    return next((name for name, _, applies in GROUPS if applies(case)), None)


def is_route(text):
    """Whether the text begins with a source route of domains and literals."""
    found = re.match(r"((?:@(?:\[[^]]*\]|[^\[,:@]+),)*@(?:\[[^]]*\]|[^\[,:@]+)):", text)
    if not found:
        return False
    for one in re.findall(r"@(\[[^]]*\]|[^\[,:@]+)", found[1]):
        try:
            if one.startswith("["):
                tag = one[1:6].upper() == "IPV6:"
                (ipaddress.IPv6Address if tag else ipaddress.IPv4Address)(one[6 if tag else 1:-1])
            elif not re.fullmatch(r"(?!-)[\w-]{1,63}(?<!-)(\.(?!-)[\w-]{1,63}(?<!-))*\.?", one):
                return False
        except ValueError:
            return False
    return True


class Case:
    """One command with what each reader made of it: the mailbox, or None."""

    def __init__(self, line, ours, postfix, python_read):
        self.line, self.said, self.postfix_said = line, ours, postfix
        self.text = line.decode(errors="replace")
        self.mail = line[:4].upper() == b"MAIL"
        self.ours = as_sent(line) if ours.startswith("250") else None
        self.postfix = None
        if " read =" in postfix:
            self.postfix = base64.b64decode(postfix.split(" read =")[1]).decode(errors="replace")
        elif postfix.startswith("250"):
            # Postfix asks nobody about <> and about postmaster.
            self.postfix = "" if self.mail else "postmaster"
        self.python = python_read
        self.path, self.parameters = self.split()
        self.inner = self.path[1:-1] if self.path.startswith("<") else self.path
        domain = r"(\[[^]]*\]|[^\[,:@]+)"
        self.after_route = re.sub(rf"^@{domain}?(,@?{domain}?)*:", "", self.inner)
        self.good_route = is_route(self.inner)

    def split(self):
        """Path with brackets, and parameters, for the groups below: roughly, as only explained cases need it."""
        found = re.match(r'[^:]*:[ \t]*(<(?:"(?:\\.|[^"\\])*"|[^>"])*>|(?!<)(?:"(?:\\.|[^"\\])*"|[^ \t"])*)(.*)', self.text, re.S)
        return found.groups() if found else ("", "")

    def takers(self):
        return tuple(name for name in ("ours", "postfix", "python") if getattr(self, name) is not None)

    def differs(self):
        """Whether the readers disagree: Postfix counts fully; Python's reader, which has few parameters, only without any."""
        readers = [self.ours, self.postfix] + ([] if self.parameters.strip() else [self.python])
        if len({read is None for read in readers}) > 1:
            return True
        return len({read.lower().rstrip(".") for read in readers if read is not None}) > 1


def main():
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--seed", type=int, default=1)
    options.add_argument("--count", type=int, default=20_000)
    options.add_argument("--seconds", type=int, default=0, help="go on for so long instead of --count")
    options.add_argument("--spillway", default="target/debug/spillway")
    options.add_argument("--group", metavar="NAME", help="print all lines of this group; - for those of none")
    options = options.parse_args()
    rng = random.Random(options.seed)
    processes = []
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        folder = pathlib.Path(folder)
        folder.chmod(0o755)
        try:
            ours, port = start_spillway(folder, options.spillway)
            processes.append(ours)
            postfix, postfix_port = start_postfix(folder / "postfix", Policy().port)
            processes.append(postfix)
            bad = compare(options, rng, port, postfix_port)
        finally:
            for process in processes:
                process.send_signal(signal.SIGTERM)
            for process in processes:
                process.wait(60)
    sys.exit(1 if bad else 0)


def compare(options, rng, port, postfix_port):
    """Sends the commands and prints the groups. Returns the number of differences in none of them."""
    counts, examples = collections.Counter(), {}
    both = done = 0
    ends = time.monotonic() + options.seconds
    while (time.monotonic() < ends) if options.seconds else (done < options.count):
        lines = [command(rng) for _ in range(COMMANDS_AT_ONCE * 10)]
        us, them = Talk(port), Talk(postfix_port)
        for at in range(0, len(lines), COMMANDS_AT_ONCE):
            some = lines[at:at + COMMANDS_AT_ONCE]
            for line, said, postfix_said in zip(some, us.ask(some), them.ask(some)):
                case = Case(line, said, postfix_said, python(line))
                done += 1
                both += case.ours is not None and case.postfix is not None
                if not case.differs():
                    continue
                name = explained(case) or f"NONE: {' and '.join(case.takers()) or 'nobody'} take it"
                counts[name] += 1
                examples.setdefault(name, case)
                if options.group == name or (options.group == "-" and name.startswith("NONE")):
                    print(repr(line), case.ours, case.postfix, case.python, said, postfix_said, sep=" | ")
        us.socket.close()
        them.socket.close()
    print(f"{done} commands from seed {options.seed}; {both} taken by Spillway and Postfix; {sum(counts.values())} differences")
    whys = {name: why for name, why, _ in GROUPS}
    for name, count in counts.most_common():
        case = examples[name]
        print(f"\n{count:7} {name}\n        {whys.get(name, 'No group explains it.')}")
        print(f"        {case.line!r:.150}\n        spillway {case.ours!r:.60}, postfix {case.postfix!r:.60}, python {case.python!r:.60}; {case.said:.60}; {case.postfix_said:.60}")
    return sum(count for name, count in counts.items() if name.startswith("NONE"))


if __name__ == "__main__":
    main()
