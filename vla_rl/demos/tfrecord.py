"""TFRecord files: u64 length, its masked CRC-32C, the data, their CRC-32C; little-endian, one after the other."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vla_rl.demos.crc32c import masked_crc32c
from vla_rl.demos.data_errors import AGAIN, DemosError, damaged

HEADER_BYTES = 12
FOOTER_BYTES = 4


@dataclass(frozen=True, slots=True)
class RecordRef:
    """Place of a record."""

    file: Path
    offset: int  # offset of the header, in bytes
    length: int  # length of the data, in bytes


def scan_records(file: Path) -> Iterator[RecordRef]:
    """Yield the records of a file, found by their headers alone.

    Raises:
        DemosError: a header is broken, or the file ends within a record.
    """
    size = file.stat().st_size
    offset = 0
    with file.open("rb") as stream:
        while offset < size:
            stream.seek(offset)
            header = stream.read(HEADER_BYTES)
            if len(header) < HEADER_BYTES:
                raise _cut_off(file, offset, HEADER_BYTES, size)
            length, crc = struct.unpack("<QI", header)
            if masked_crc32c(header[:8]) != crc:
                raise damaged(
                    file,
                    "the checksum of a record's length does not fit",
                    key=f"record at byte {offset}",
                    found=f"0x{crc:08x}; the length {length} has 0x{masked_crc32c(header[:8]):08x}",
                    allowed="uncompressed TFRecord files",
                )
            end = offset + HEADER_BYTES + length + FOOTER_BYTES
            if end > size:
                raise _cut_off(file, offset, end - offset, size)
            yield RecordRef(file, offset, length)
            offset = end


def read_record(ref: RecordRef) -> bytes:
    """Return the data of a record.

    Raises:
        DemosError: the checksum does not match, or the file has become shorter.
    """
    with ref.file.open("rb") as stream:
        stream.seek(ref.offset + HEADER_BYTES)
        data, footer = stream.read(ref.length), stream.read(FOOTER_BYTES)
    if len(data) + len(footer) < ref.length + FOOTER_BYTES:
        raise _cut_off(ref.file, ref.offset, HEADER_BYTES + ref.length + FOOTER_BYTES, ref.file.stat().st_size)
    (crc,) = struct.unpack("<I", footer)
    if (computed := masked_crc32c(data)) != crc:
        raise DemosError(
            ref.file,
            f"record at byte {ref.offset}",
            "the checksum of the data does not fit",
            found=f"0x{crc:08x} in the file, 0x{computed:08x} of its {ref.length} bytes",
            fix=AGAIN,
        )
    return data


def _cut_off(file: Path, offset: int, needed: int, size: int) -> DemosError:
    return DemosError(
        file,
        f"record at byte {offset}",
        "the file ends within a record",
        found=f"{size - offset} of {needed} bytes",
        fix=AGAIN,
    )
