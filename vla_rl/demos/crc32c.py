"""CRC-32C (Castagnoli) of long byte strings, without a package in C.

A CRC is linear over GF(2): the bytes are cut into many lanes that numpy processes side by side, and the remainders of
the lanes are joined by "shift by the length of a lane", a 32 × 32 matrix of bits.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

POLYNOMIAL = 0x82F63B78  # reflected
ONES = 0xFFFFFFFF
MASK_DELTA = 0xA282EAD8  # TFRecord: crc32c.h of tensorflow
MAX_LANES = 8192
MIN_LANE = 32  # bytes; below this, joining costs more than the lanes save

Words = NDArray[np.uint32]


def crc32c(data: bytes | memoryview) -> int:
    """Return the CRC-32C of `data`; of b"123456789" it is 0xE3069283."""
    size = len(data)
    lanes = 1 << max(0, (size // MIN_LANE).bit_length() - 1)
    if lanes < 2:
        return _of_few(data)
    lanes = min(lanes, MAX_LANES)
    length = -(-size // (2 * lanes)) * 2  # length of a lane in bytes, even
    padded = np.zeros(lanes * length, np.uint8)  # leading zeros change nothing while the remainder is zero
    padded[-size:] = np.frombuffer(data, np.uint8)
    padded[-size : padded.size - size + 4] ^= 0xFF  # equivalent to starting with a remainder of ones
    words = np.ascontiguousarray(padded.view("<u2").reshape(lanes, -1).T)
    table = _two_bytes()
    remainders = np.zeros(lanes, np.uint32)
    for word in words:
        remainders = table[(remainders ^ word) & 0xFFFF] ^ (remainders >> 16)
    shift = _shift(length)
    while len(remainders) > 1:
        remainders = _apply(shift, remainders[0::2]) ^ remainders[1::2]
        shift = _apply(shift, shift)
    return int(remainders[0]) ^ ONES


def masked_crc32c(data: bytes | memoryview) -> int:
    """Return the CRC as TFRecord stores it: rotated right by 15 bits, plus a constant."""
    crc = crc32c(data)
    return (((crc >> 15) | (crc << 17)) + MASK_DELTA) & ONES


def _of_few(data: bytes | memoryview) -> int:
    table = _one_byte().tolist()
    remainder = ONES
    for byte in data:
        remainder = table[(remainder ^ byte) & 0xFF] ^ (remainder >> 8)
    return int(remainder) ^ ONES


@lru_cache(1)
def _one_byte() -> Words:
    table: Words = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = (table >> np.uint32(1)) ^ (np.uint32(POLYNOMIAL) * (table & np.uint32(1)))
    return table


@lru_cache(1)
def _two_bytes() -> Words:
    one, words = _one_byte(), np.arange(1 << 16, dtype=np.uint32)
    first = one[words & 0xFF]
    both: Words = (first >> 8) ^ one[(first ^ (words >> 8)) & 0xFF]
    return both


@lru_cache(64)
def _shift(length: int) -> Words:
    """Return the effect of `length` zero bytes on a remainder, as the images of its 32 bits."""
    bits = np.uint32(1) << np.arange(32, dtype=np.uint32)
    power = (bits >> 8) ^ _one_byte()[bits & 0xFF]  # effect of one zero byte
    result = bits
    while length:
        if length & 1:
            result = _apply(power, result)
        power = _apply(power, power)
        length >>= 1
    return result


def _apply(matrix: Words, vectors: Words) -> Words:
    images = np.zeros_like(vectors)
    for bit in range(32):
        images ^= matrix[bit] * ((vectors >> np.uint32(bit)) & np.uint32(1))
    return images
