"""The differences that differential.py may find, in groups: name, why Spillway is right, and which cases belong to it.

A case belongs to the first group that applies. `case.ours`, `case.postfix` and `case.python` are the mailboxes that the readers
take, or None; `case.path` and `case.parameters` are the two parts of the command, `case.inner` the text between the brackets,
`case.after_route` the same without a source route, `case.said` the reply of Spillway.
"""

import re

GROUPS = []


def group(name, why, applies):
    GROUPS.append((name, why, applies))


def domain(case):
    return case.after_route.rpartition("@")[2]


def local(case):
    return case.after_route.rpartition("@")[0]


def we_refuse(case):
    return case.ours is None


def they_refuse(case):
    return case.ours is not None


def is_keyword(word):
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9-]*", word.partition("=")[0])


def is_xtext(value, limit):
    """Whether the value is xtext of printable ASCII, also within the limit when `=` is encoded."""
    if not re.fullmatch(r"([!-*,-~]|\+[2-7][0-9A-Fa-f])+", value) or re.search(r"\+7[Ff]", value):
        return False
    return len(value) + 2 * value.count("=") <= limit


def is_parameter(name, value):
    """Whether the parameter may have the value."""
    upper = value.upper()
    if name == "SIZE":
        return re.fullmatch(r"[0-9]{1,20}", value)
    if name == "BODY":
        return upper in ("7BIT", "8BITMIME", "BINARYMIME")
    if name == "RET":
        return upper in ("FULL", "HDRS")
    if name == "NOTIFY":
        return upper == "NEVER" or all(word in ("SUCCESS", "FAILURE", "DELAY") for word in upper.split(","))
    if name == "ORCPT":
        kind, _, address = value.partition(";")
        if kind.lower() == "utf-8":
            return re.fullmatch(r"(\w|\\x\{F6\})+@[\w.]+", address)
        return re.fullmatch(r"[!#-'*+/-9=?A-Z^-~-]{1,64}", kind) and is_xtext(address, 500)
    if name in ("ENVID", "AUTH"):
        return is_xtext(value, 100 if name == "ENVID" else 500)
    return False


def malformed(case, name):
    """Whether the case has this parameter with a value that it cannot have."""
    values = [value for keyword, _, value in (word.partition("=") for word in case.parameters.split()) if keyword.upper() == name]
    return any(not is_parameter(name, value) or not value.isascii() for value in values)


# --- The command before the path ---

group("space before the colon", "RFC 5321 4.1.1.2 has none; it is harmless, and was taken before. Postfix and Python refuse it.",
      lambda c: they_refuse(c) and re.match(r"\w+\s+\w+\s+:", c.text))
group("tab after the verb", "RFC 5321 has a space; Postfix reads a tab as one, Python does not.",
      lambda c: they_refuse(c) and c.postfix is not None and re.match(r"\w+\t", c.text))

# --- What Spillway takes ---

group("route with an IPv6 literal", "RFC 5321 4.1.2 and 4.1.3: Postfix ends the route at the first colon, inside the literal. The route is not passed on.",
      lambda c: they_refuse(c) and re.search(r"@\[IPv6:[^]]*\][:,]", c.inner))
group("spaces inside the brackets", "the address is passed on without them. Postfix and Python do the same, in other combinations with a route.",
      lambda c: they_refuse(c) and c.inner != c.inner.strip())
group("local-part that begins with a hyphen", "atext (RFC 5322 3.2.3); Postfix refuses it unless allow_min_user is set, for mailers that run programs.",
      lambda c: they_refuse(c) and c.postfix is None and local(c).startswith("-"))
group("empty local-part at an IPv6 literal", "RFC 5321 4.1.2: Postfix leaves the quotes out, and then takes what follows for a source route.",
      lambda c: they_refuse(c) and c.postfix is None and re.fullmatch(r'""@\[IPv6:[^]]*\]', c.after_route, re.I))
group("dot after the domain", "the root label names the same domain; Postfix takes it, Python does not.",
      lambda c: they_refuse(c) and c.postfix is not None and domain(c).endswith("."))
# --- What Spillway refuses: parameters ---

group("AUTH without authentication", "RFC 4954 5: the parameter belongs to an extension that is not offered here.",
      lambda c: we_refuse(c) and ("AUTH" in c.said))
group("a parameter twice", "readers differ about which one counts.", lambda c: we_refuse(c) and "given twice" in c.said)
group("text after the bracket", "RFC 5321 4.1.2: Postfix takes a comma or a bracket for part of the address, or reads on at the next word.",
      lambda c: we_refuse(c) and c.said.startswith("501 5.5.4 Syntax") and c.path.startswith("<") and re.match(r"[^ \t]", c.parameters))
for name, why in {
    "SIZE": "RFC 1870 5: 1 to 20 digits.",
    "BODY": "RFC 6152 2.",
    "SMTPUTF8": "RFC 6531 3.4: it has no value.",
    "RET": "RFC 3461 4.3.",
    "NOTIFY": "RFC 3461 4.1: NEVER alone, or a list without gaps.",
    "ENVID": "RFC 3461 4.4: xtext of printable ASCII, at most 100 octets; it goes into notifications.",
    "ORCPT": "RFC 3461 4.2, RFC 6533 3: a type and xtext of printable ASCII, at most 500 octets, or a mailbox after utf-8; it goes into "
             "notifications. Outside ASCII, after SMTPUTF8 only.",
    "AUTH": "RFC 4954 5: xtext.",
}.items():
    group(f"malformed {name}", why, lambda c, name=name: we_refuse(c) and f"value for {name}" in c.said and malformed(c, name))
group("malformed keyword", "RFC 5321 4.1.2: Postfix does not look at it.",
      lambda c: we_refuse(c) and c.said.startswith("501 5.5.4 Syntax") and any(not is_keyword(word) for word in c.parameters.split()))
group("unknown parameter", "RFC 5321 4.1.1.11: 555.", lambda c: we_refuse(c) and c.said.startswith("555"))
group("8-bit address without SMTPUTF8", "RFC 6531 3.5: Postfix takes it for compatibility.",
      lambda c: we_refuse(c) and c.said.startswith("553 5.6.7"))

# --- What Spillway refuses: paths ---

group("no closing bracket or quote", "RFC 5321 4.1.2: where the path ends would be a guess.",
      lambda c: we_refuse(c) and c.said.startswith("501") and not c.path)
group("controls and octets that are no UTF-8", "they could end a line, or change on the way.",
      lambda c: we_refuse(c) and re.search("[\x00-\x1f\x7f-\x9f\ufffd]", c.inner))
group("invisible characters, and dots of IDNA", "some readers leave them out, show them in another order, or see other labels (UTS 46).",
      lambda c: we_refuse(c) and re.search("[\u2028\u2029\u200b\u202a-\u202e\u3002\xad]", c.inner))
group("numeric top-level domain", "RFC 3696 2: there is none; Postfix refuses a domain of numbers, and looks up one that ends in a number.",
      lambda c: we_refuse(c) and re.search(r"(^|\.)[0-9]+\.?$", domain(c).strip()))
group("route without brackets", "RFC 5321 4.1.2: a route stands in brackets; the form without brackets is for devices that know no routes.",
      lambda c: we_refuse(c) and not c.path.startswith("<") and c.inner.startswith("@"))
group("malformed route", "RFC 5321 4.1.2: `@domain,@domain:`. Postfix drops what is before the first colon, and keeps what is no route.",
      lambda c: we_refuse(c) and c.path.startswith("<") and c.inner.startswith("@") and c.after_route.startswith("@"))
group("bad domain in a route", "RFC 5321 4.1.2. Nobody checks what is not used; a route that is none may be an address.",
      lambda c: we_refuse(c) and c.path.startswith("<") and c.inner.startswith("@") and not c.good_route)
group("brackets within an address without brackets", "RFC 5321 4.1.2: unquoted, they are no atext.",
      lambda c: we_refuse(c) and not c.path.startswith("<") and re.search("[<>]", c.inner))
group("no domain", "RFC 5321 4.1.2: only postmaster may stand alone (4.5.1); Postfix completes the address.",
      lambda c: we_refuse(c) and "@" not in re.sub(r'^"(\\.|[^"\\])*"', "", c.after_route))
group("no local-part", "RFC 5321 4.1.2: at least one octet, or a quoted string.",
      lambda c: we_refuse(c) and c.after_route.startswith("@"))
group("two @ outside quotes", "readers differ about where the domain begins.",
      lambda c: we_refuse(c) and re.sub(r'"(\\.|[^"\\])*"', "", c.after_route).count("@") > 1)
group("quotes next to unquoted text, or in a domain", "obsolete (RFC 5322 4.4); readers differ in whether the quotes belong to the address.",
      lambda c: we_refuse(c) and '"' in c.after_route and not re.fullmatch(r'"(\\.|[^"\\])*"@[^"]*', c.after_route, re.S))
group("comments, backslashes and specials outside quotes", "RFC 5321 4.1.2 has none of them; Postfix and Python leave them out or keep them, each in its way.",
      lambda c: we_refuse(c) and re.search(r"[()<>,;:\\\[\] ]", re.sub(r'^"(\\.|[^"\\])*"', "", local(c))))
group("longer than a command holds", "498 octets, or 255 of the domain (RFC 5321 4.5.3.1.2 and 4.5.3.1.4).",
      lambda c: we_refuse(c) and "octets" in c.said)
group("a label of more than 63 octets", "RFC 1035 2.3.4; Postfix refuses it as well.",
      lambda c: we_refuse(c) and c.postfix is None and re.search(r"[\w-]{64}", domain(c)))
group("malformed literal", "RFC 5321 4.1.3: IPv4, or IPv6 with its tag; some readers read a leading zero as octal.",
      lambda c: we_refuse(c) and re.search(r"[\[\]]", domain(c)))
group("malformed domain", "RFC 5321 4.1.2: labels of letters, digits, hyphens inside, and the underscore that is in use. The others look it up, or pass "
      "it on to where it may mean something (`|`, `%`, `/`, `*`).",
      lambda c: we_refuse(c) and not re.fullmatch(r"(?!-)[\w-]+(?<!-)(\.(?!-)[\w-]+(?<!-))*\.?", domain(c)))
