"""`tf.train.Example` without a protobuf library: three nested messages and three kinds of lists.

Example {1: Features}; Features {1: map<string, Feature>}; Feature {1: BytesList | 2: FloatList | 3: Int64List}, each
list a repeated field 1. Unknown fields are skipped.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5
Feature = list[memoryview] | NDArray[np.float32] | NDArray[np.int64]


class ProtobufError(ValueError):
    """Bytes that are not such a message."""


def parse_example(data: bytes) -> dict[str, Feature]:
    """Return the features of an Example by name; byte strings are views of `data`.

    Raises:
        ProtobufError: `data` is no Example.
    """
    features: dict[str, Feature] = {}
    for field, wire, body in _fields(memoryview(data)):
        if field == 1 and wire == BYTES:
            for inner, inner_wire, entry in _fields(_view(body)):
                if inner == 1 and inner_wire == BYTES:
                    name, feature = _entry(_view(entry))
                    features[name] = feature
    return features


def _entry(entry: memoryview) -> tuple[str, Feature]:
    name, feature = "", memoryview(b"")
    for field, wire, body in _fields(entry):
        if field == 1 and wire == BYTES:
            name = bytes(_view(body)).decode(errors="replace")
        elif field == 2 and wire == BYTES:
            feature = _view(body)
    for field, wire, body in _fields(feature):
        if wire == BYTES and field in (1, 2, 3):
            return name, (_byte_strings, _floats, _integers)[field - 1](_view(body))
    return name, []


def _byte_strings(values: memoryview) -> list[memoryview]:
    return [_view(body) for field, wire, body in _fields(values) if field == 1 and wire == BYTES]


def _floats(values: memoryview) -> NDArray[np.float32]:
    parts = [_view(body) for field, wire, body in _fields(values) if field == 1 and wire in (BYTES, FIXED32)]
    joined = b"".join(parts)
    if len(joined) % 4:
        raise ProtobufError("a list of floats has a length that is no multiple of 4 bytes")
    return np.frombuffer(joined, "<f4").astype(np.float32)


def _integers(values: memoryview) -> NDArray[np.int64]:
    numbers: list[int] = []
    for field, wire, body in _fields(values):
        if field != 1 or wire not in (BYTES, VARINT):
            continue
        if isinstance(body, int):
            numbers.append(body)
            continue
        at = 0
        while at < len(body):
            number, at = _varint(body, at)
            numbers.append(number)
    return np.array(numbers, np.uint64).astype(np.int64)  # a negative number is stored as its 64 bits


def _fields(message: memoryview) -> Iterator[tuple[int, int, memoryview | int]]:
    """Yield number, wire type and body of each field."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        wire = tag & 7
        if wire == VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, wire, value
            continue
        if wire == BYTES:
            size, at = _varint(message, at)
        elif wire in (FIXED32, FIXED64):
            size = 4 if wire == FIXED32 else 8
        else:
            raise ProtobufError(f"wire type {wire} does not exist")
        if at + size > len(message):
            raise ProtobufError("a field is longer than the message that holds it")
        yield tag >> 3, wire, message[at : at + size]
        at += size


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """Return the number at `at`, and the offset after it."""
    number = 0
    for place in range(10):
        if at + place >= len(message):
            raise ProtobufError("a number is cut off")
        byte = message[at + place]
        number |= (byte & 0x7F) << (7 * place)
        if byte < 0x80:
            return number & 0xFFFFFFFFFFFFFFFF, at + place + 1
    raise ProtobufError("a number is longer than 10 bytes")


def _view(body: memoryview | int) -> memoryview:
    assert isinstance(body, memoryview)
    return body
