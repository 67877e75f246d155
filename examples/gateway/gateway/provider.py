# Copyright (c) 2026 opskit contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The built-in provider: no network; the same prompt and model always give the same answer and counts."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

WORDS = (
    "gate key path river stone light cloud table field north paper green quiet round simple bright "
    "early open small warm clear deep even fine good high just kind long main near plain"
).split()


def token_counts(model: str, prompt: str) -> dict[str, int]:
    """Tokens by disjoint type for one call; about four bytes a token, long prompts partly cached."""
    digest = hashlib.sha256(f"{model}\0{prompt}".encode()).digest()
    total = max(1, -(-len(prompt.encode()) // 4))
    cache_read, cache_write = total // 128 * 64, total // 256 * 32
    return {
        "input": total - cache_read - cache_write,
        "cache_read": cache_read,
        "cache_write": cache_write,
        "output": 8 + digest[0] % 57,
        "reasoning": 1 + digest[1] % 32 if model.endswith("-think") else 0,
    }


async def answer(model: str, prompt: str, first_seconds: float, chunk_seconds: float) -> AsyncIterator[str]:
    """Yield the answer word by word, waiting before the first and before each further word."""
    digest = hashlib.sha256(f"{model}\0{prompt}".encode()).digest()
    await asyncio.sleep(first_seconds)
    for number in range(token_counts(model, prompt)["output"]):
        if number and chunk_seconds:
            await asyncio.sleep(chunk_seconds)
        yield WORDS[digest[number % 32] % len(WORDS)] + " "
