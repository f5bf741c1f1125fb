"""Checksums, protobuf and TFRecord, from their definitions."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import toy_demos as toy

from vla_rl.demos import DemosError
from vla_rl.demos.crc32c import MAX_LANES, crc32c, masked_crc32c
from vla_rl.demos.protobuf import ProtobufError, parse_example
from vla_rl.demos.tfrecord import read_record, scan_records


@pytest.mark.parametrize(
    ("data", "crc"),
    [  # the check value of the polynomial, and the vectors of RFC 3720, B.4
        (b"123456789", 0xE3069283),
        (b"", 0),
        (bytes(32), 0x8A9136AA),
        (b"\xff" * 32, 0x62A8AB43),
        (bytes(range(32)), 0x46DD794E),
        (bytes(range(31, -1, -1)), 0x113FDB5C),
    ],
)
def test_the_published_vectors_are_met(data: bytes, crc: int) -> None:
    assert crc32c(data) == crc


def test_the_mask_is_a_rotation_by_15_bits_and_a_constant() -> None:
    # 0xE3069283 rotated right by 15: 0x2507C60D; plus 0xA282EAD8
    assert masked_crc32c(b"123456789") == 0x2507C60D + 0xA282EAD8 == 0xC78AB0E5


@pytest.mark.parametrize("size", [1, 3, 63, 64, 65, 100, 127, 1000, 4096, 65_537, MAX_LANES * 32 + 5])
def test_lanes_give_what_byte_after_byte_gives(size: int) -> None:
    data = np.random.default_rng(size).integers(0, 256, size, dtype=np.uint8).tobytes()
    assert crc32c(data) == toy.table_crc32c(data)
    if size < 2000:
        assert crc32c(data) == toy.slow_crc32c(data)


@pytest.mark.parametrize("packed", [True, False])
def test_lists_are_read_packed_and_one_by_one(packed: bool) -> None:
    numbers = np.array([1.5, -2.25, 0.0], np.float32)
    message = toy.example(
        {
            "floats": toy.float_feature(numbers, packed=packed),
            "ints": toy.int_feature([0, 300, -1, 2**40], packed=packed),
            "bytes": toy.bytes_feature([b"", b"ab", bytes(300)]),
        }
    )
    features = parse_example(message)
    assert features["floats"].tolist() == numbers.tolist()
    assert features["ints"].tolist() == [0, 300, -1, 2**40]
    assert [bytes(one) for one in features["bytes"]] == [b"", b"ab", bytes(300)]


def test_unknown_fields_are_skipped_by_their_wire_type() -> None:
    unknown = toy.varint(9 << 3) + toy.varint(7) + toy.varint(9 << 3 | 1) + bytes(8) + toy.varint(9 << 3 | 5) + bytes(4)
    unknown += toy.delimited(9, b"xyz")
    entry = unknown + toy.delimited(2, unknown + toy.float_feature(np.ones(2))) + toy.delimited(1, b"key")
    message = unknown + toy.delimited(1, unknown + toy.delimited(1, entry)) + unknown
    assert parse_example(message)["key"].tolist() == [1.0, 1.0]


@pytest.mark.parametrize(
    ("message", "fault"),
    [
        (b"\x0a\x05ab", "longer than the message"),
        (b"\x0a", "cut off"),
        (b"\x80" * 11, "longer than 10 bytes"),
        (b"\x0b", "wire type 3"),
        (toy.example({"a": toy.delimited(2, toy.delimited(1, b"abc"))}), "multiple of 4"),
    ],
)
def test_bytes_that_are_no_message_are_told(message: bytes, fault: str) -> None:
    with pytest.raises(ProtobufError, match=fault):
        parse_example(message)


def test_records_come_back_in_order(tmp_path: Path) -> None:
    file = tmp_path / "a.tfrecord"
    contents = [b"first", b"", bytes(5000)]
    file.write_bytes(b"".join(map(toy.record, contents)))
    assert [read_record(one) for one in scan_records(file)] == contents


@pytest.mark.parametrize(
    ("damage", "fault"),
    [
        (lambda data: data[:-1], "ends within a record"),
        (lambda data: data[:25], "ends within a record"),
        (lambda data: data[:21] + b"\xff" + data[22:], "length does not fit"),
        (lambda data: b"\x1f\x8b" + data[2:], "length does not fit"),
    ],
)
def test_a_damaged_file_is_told_before_it_is_read(damage, fault: str, tmp_path: Path) -> None:
    file = tmp_path / "a.tfrecord"
    file.write_bytes(damage(toy.record(b"first") + toy.record(b"second")))  # 21 bytes, then 22
    with pytest.raises(DemosError, match=fault) as raised:
        list(scan_records(file))
    assert str(file) in str(raised.value)


def test_a_wrong_checksum_names_file_and_byte(tmp_path: Path) -> None:
    file = tmp_path / "a.tfrecord"
    content = bytearray(toy.record(b"first") + toy.record(b"second"))
    content[21 + 12] ^= 1  # the first byte of the second record's data
    file.write_bytes(content)
    first, second = scan_records(file)
    assert read_record(first) == b"first"
    with pytest.raises(DemosError, match=r"record at byte 21: the checksum of the data does not fit") as raised:
        read_record(second)
    assert str(file) in str(raised.value)
