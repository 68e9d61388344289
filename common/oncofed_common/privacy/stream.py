"""Where does randomness that protects patients come from?

From the key stream of AES-256 in counter mode (NIST SP 800-38A) under a key that the operating system
gave, that lives in memory only, and that nothing can print, copy or pickle. A stream made from a seed
is for virtual homes alone: whoever knows the seed can take the noise off again, so such a stream says
``protected = False`` and the caller carries that beside every epsilon.

A forked child would repeat its parent's noise, and two sums under the same noise give away their
difference: a stream works only in the process that made it.
"""

from __future__ import annotations

import os
from typing import NoReturn

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR
from numpy.typing import NDArray

from oncofed_common.errors import PrivacyRefusal

KEY_BYTES = 32


class Stream:
    """Uniform bytes, read once each.

    Attributes:
        protected: whether the key came from the operating system and is known to nobody.
    """

    __slots__ = ("_encryptor", "_process", "protected")

    def __init__(self, key: bytes, *, protected: bool) -> None:
        if len(key) != KEY_BYTES:
            raise PrivacyRefusal(
                f"a stream key of {len(key)} bytes",
                allowed=f"{KEY_BYTES} bytes",
                next="derive the key with SHA-256",
                code="stream_key",
            )
        # Every key serves one stream, so the counter may start at zero.
        self._encryptor = Cipher(AES256(key), CTR(bytes(16))).encryptor()
        self._process = os.getpid()
        self.protected = protected

    @classmethod
    def from_os(cls) -> Stream:
        """A stream under a fresh key of the operating system: the only one for real patients."""
        return cls(os.urandom(KEY_BYTES), protected=True)

    @classmethod
    def from_seed(cls, key: bytes) -> Stream:
        """A stream that anybody with ``key`` (32 bytes) can repeat: for virtual homes only."""
        return cls(key, protected=False)

    def bytes(self, count: int) -> bytes:
        """The next ``count`` bytes.

        Raises:
            PrivacyRefusal: the process is not the one that made the stream.
        """
        if os.getpid() != self._process:
            raise PrivacyRefusal(
                "a noise stream carried into another process",
                allowed="a stream in the process that made it",
                next="make a stream in each process",
                code="stream_forked",
            )
        return self._encryptor.update(bytes(count))

    def uint64(self, count: int) -> NDArray[np.uint64]:
        """The next ``count`` uniform 64-bit numbers, shape (count,)."""
        return np.frombuffer(self.bytes(8 * count), dtype="<u8").astype(np.uint64, copy=False)

    def uint128(self, count: int) -> tuple[NDArray[np.uint64], NDArray[np.uint64]]:
        """The next ``count`` uniform 128-bit numbers as (high, low) words, shape (count,) each."""
        words = self.uint64(2 * count)
        return words[:count], words[count:]

    def bits(self, count: int) -> NDArray[np.bool_]:
        """The next ``count`` fair coins, shape (count,); a started byte is used up."""
        packed = np.frombuffer(self.bytes((count + 7) // 8), dtype=np.uint8)
        return np.unpackbits(packed, count=count).astype(np.bool_)

    def torch_seed(self) -> int:
        """A uniform 63-bit number, for a generator whose numbers need not be secret."""
        return int(self.uint64(1)[0]) >> 1

    def __repr__(self) -> str:
        return f"Stream(protected={self.protected})"

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise PrivacyRefusal(
            "a noise stream about to be copied or written",
            allowed="one reader, in memory",
            next="make a new stream where you need one",
            code="stream_copied",
        )
