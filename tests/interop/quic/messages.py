"""The protocol's messages in protobuf, read and written from the tables of docs/protocol.md.

A message is a dict of its fields by name; what protobuf does not send has its zero value,
and what may be absent is not there.
"""

import struct

U, I, B, S, BYTES, FIXED32, DOUBLE = "u", "i", "bool", "string", "bytes", "fixed32", "double"

# Each field: number, name, type or name of a message; "?" behind the name: may be absent,
# "*": a list, "%": a map of string to number.
TABLES = {
    "join": [(1, "room", S), (2, "token", S), (3, "resume?", "position"), (4, "acks", B)],
    "position": [(1, "epoch", U), (2, "seq", U), (3, "important", U)],
    "leave": [(1, "room", S)],
    "publish": [
        (1, "room", S),
        (2, "id", S),
        (3, "kind", S),
        (4, "payload", BYTES),
        (5, "key?", S),
        (6, "amount?", I),
    ],
    "ack": [(1, "room", S), (2, "important", U)],
    "pull": [(1, "room", S), (2, "from", U), (3, "to", U)],
    "pong": [],
    "digest": [(1, "room", S), (2, "from", U), (3, "to", U), (4, "count", U), (5, "xor", FIXED32)],
    "welcome": [(1, "session", S), (2, "ping_interval_ms", U), (3, "ack_slot", U)],
    "joined": [
        (1, "room", S),
        (2, "epoch", U),
        (3, "seq", U),
        (4, "important", U),
        (5, "online", U),
        (6, "recovered", B),
        (7, "state*", "event"),
        (8, "totals*", "total"),
        (9, "missed?", "range"),
        (10, "rebased", B),
        (11, "users", U),
        (12, "users_exact", B),
    ],
    "range": [(1, "from", U), (2, "to", U)],
    "frame": [
        (1, "room", S),
        (2, "epoch", U),
        (3, "first_seq", U),
        (4, "last_seq", U),
        (5, "important", U),
        (6, "time_ms", U),
        (7, "events*", "event"),
        (8, "totals*", "total"),
        (9, "dropped%", None),
        (10, "online?", U),
        (11, "ack?", "asked"),
        (12, "withheld?", U),
    ],
    "asked": [(1, "one_in", U), (2, "within_ms", U), (3, "digest_from?", U)],
    "event": [
        (1, "id", S),
        (2, "kind", S),
        (3, "user", S),
        (4, "seq?", U),
        (5, "important?", U),
        (6, "payload", BYTES),
        (7, "key?", S),
        (8, "amount?", I),
        (9, "time_ms", U),
    ],
    "total": [(1, "kind", S), (2, "key", S), (3, "sum", I), (4, "delta", I), (5, "user?", S)],
    "gap": [(1, "room", S), (2, "first_seq", U), (3, "last_seq", U), (4, "dropped%", None)],
    "accepted": [(1, "id", S), (2, "seq?", U), (3, "admission?", "admission")],
    "rejected": [
        (1, "id", S),
        (2, "code", S),
        (3, "reason", S),
        (4, "retry_after_ms?", U),
        (5, "admission?", "admission"),
    ],
    "admission": [(1, "business", U), (2, "user", U), (3, "share?", DOUBLE), (4, "ttl_ms", U)],
    "error": [
        (1, "code", S),
        (2, "reason", S),
        (3, "temporary", B),
        (4, "room?", S),
        (5, "retry_after_ms?", U),
    ],
    "goaway": [(1, "reconnect_after_ms", U), (2, "url?", S)],
    "ping": [],
    "left": [(1, "room", S)],
    "missed": [(1, "room", S), (2, "from", U), (3, "to", U), (4, "within_ms", U)],
}
CLIENT = {1: "join", 2: "leave", 3: "publish", 4: "ack", 5: "pull", 6: "pong", 7: "digest"}
SERVER = {
    1: "welcome",
    2: "joined",
    3: "frame",
    4: "gap",
    5: "accepted",
    6: "rejected",
    7: "error",
    8: "goaway",
    9: "ping",
    10: "left",
    11: "missed",
}
ZERO = {U: 0, I: 0, B: False, S: "", BYTES: b"", FIXED32: 0, DOUBLE: 0.0}
VARINT, FIXED64_WIRE, LENGTH, FIXED32_WIRE = 0, 1, 2, 5


class Malformed(Exception):
    """Not a message."""


def put_varint(value):
    """Protobuf's own integers: seven bits a byte, the lowest first."""
    out = bytearray()
    value &= (1 << 64) - 1
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def take_varint(data, at):
    """The integer at a place, and the place behind it."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise Malformed("an integer is cut off")
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value & ((1 << 64) - 1), at
    raise Malformed("an integer is too long")


def put_field(number, wire, data):
    """A field with its tag."""
    length = put_varint(len(data)) if wire == LENGTH else b""
    return put_varint(number << 3 | wire) + length + data


def put_value(number, kind, value):
    """One value of a field."""
    if kind in (U, I, B):
        return put_field(number, VARINT, put_varint(int(value)))
    if kind == FIXED32:
        return put_field(number, FIXED32_WIRE, struct.pack("<I", value))
    if kind == S:
        return put_field(number, LENGTH, value.encode())
    if kind == BYTES:
        return put_field(number, LENGTH, value)
    return put_field(number, LENGTH, put_fields(kind, value))


def put_fields(message, fields):
    """A message without the number that names it."""
    out = b""
    known = set()
    for number, name, kind in TABLES[message]:
        name, optional = name.rstrip("?"), name.endswith("?")
        known.add(name)
        if name in fields and (optional or fields[name] != ZERO.get(kind)):
            out += put_value(number, kind, fields[name])
    if unknown := set(fields) - known:
        raise ValueError(f"{message} has no {unknown}")
    return out


def client_message(name, fields):
    """A ClientMessage."""
    number = next(number for number, known in CLIENT.items() if known == name)
    return put_field(number, LENGTH, put_fields(name, fields))


def raw_fields(data):
    """(number, wire type, value) of every field."""
    at = 0
    while at < len(data):
        tag, at = take_varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == VARINT:
            value, at = take_varint(data, at)
        elif wire in (FIXED64_WIRE, FIXED32_WIRE):
            size = 8 if wire == FIXED64_WIRE else 4
            value, at = data[at : at + size], at + size
        elif wire == LENGTH:
            size, at = take_varint(data, at)
            value, at = data[at : at + size], at + size
        else:
            raise Malformed(f"wire type {wire}")
        if at > len(data):
            raise Malformed("a field is cut off")
        yield number, wire, value


def take_value(kind, wire, value):
    """A value as its type has it."""
    expected = {U: VARINT, I: VARINT, B: VARINT, FIXED32: FIXED32_WIRE, DOUBLE: FIXED64_WIRE}
    if wire != expected.get(kind, LENGTH):
        raise Malformed(f"wire type {wire} for {kind}")
    if kind == U:
        if value >= 1 << 53:
            raise Malformed("a number that a double does not hold")
        return value
    if kind == I:
        return value - (1 << 64) if value >> 63 else value
    if kind == B:
        return bool(value)
    if kind == S:
        return value.decode()
    if kind == BYTES:
        return bytes(value)
    if kind == FIXED32:
        return struct.unpack("<I", value)[0]
    if kind == DOUBLE:
        return struct.unpack("<d", value)[0]
    return take_fields(kind, value)


def take_fields(message, data):
    """A message's fields by name. One that the tables do not have is a fault here: the
    document must say all that is sent."""
    table = {number: (name, kind) for number, name, kind in TABLES[message]}
    out = {}
    for name, kind in table.values():
        bare = name.rstrip("?*%")
        if name.endswith("*"):
            out[bare] = []
        elif name.endswith("%"):
            out[bare] = {}
        elif not name.endswith("?"):
            out[bare] = ZERO[kind]
    for number, wire, value in raw_fields(data):
        if number not in table:
            raise Malformed(f"{message} has field {number}, which docs/protocol.md does not")
        name, kind = table[number]
        bare = name.rstrip("?*%")
        if name.endswith("*"):
            out[bare].append(take_value(kind, wire, value))
        elif name.endswith("%"):
            entry = {1: "", 2: 0}
            entry.update((key, part) for key, _, part in raw_fields(value))
            out[bare][bytes(entry[1]).decode() if entry[1] else ""] = entry[2]
        else:
            out[bare] = take_value(kind, wire, value)
    return out


def server_message(data):
    """Name and fields of a ServerMessage."""
    found = list(raw_fields(data))
    if len(found) != 1 or found[0][0] not in SERVER or found[0][1] != LENGTH:
        raise Malformed(f"not exactly one message: {found}")
    name = SERVER[found[0][0]]
    return name, take_fields(name, found[0][2])


def put_length(value, size=None):
    """A variable-length integer of RFC 9000, in the shortest form or in `size` bytes."""
    sizes = ((1, 0), (2, 1), (4, 2), (8, 3))
    for bytes_, prefix in sizes:
        if size in (None, bytes_) and value < 1 << (bytes_ * 8 - 2):
            return (value | prefix << (bytes_ * 8 - 2)).to_bytes(bytes_, "big")
    raise ValueError(value)


def framed(data, size=None):
    """A message for a stream."""
    return put_length(len(data), size) + data


class Unframe:
    """The messages of a stream, in whatever pieces its bytes come."""

    def __init__(self):
        self.held = b""

    def feed(self, data):
        """Whole messages."""
        self.held += data
        while self.held:
            prefix = 1 << (self.held[0] >> 6)
            if len(self.held) < prefix:
                return
            length = int.from_bytes(self.held[:prefix], "big") & ((1 << (prefix * 8 - 2)) - 1)
            if len(self.held) < prefix + length:
                return
            message, self.held = self.held[prefix : prefix + length], self.held[prefix + length :]
            yield message
