#!/usr/bin/env python3
"""Writes vectors.jsonl: positions and buckets of units, by GrowthBook's own SDK and by the reference libraries of the other hashes.

    python3 -m venv /tmp/vectors && /tmp/vectors/bin/pip install growthbook==4.0.0 mmh3==5.3.1 xxhash==4.1.0
    /tmp/vectors/bin/python tests/assign/vectors.py > tests/assign/vectors.jsonl

A line: the hash's namespace and value, its position, and for GrowthBook also the index of the bucket that its SDK serves with the
given weights. `src/engine/assign.rs` reads them in a test.
"""

import hashlib
import json

import mmh3
import xxhash
from growthbook import Experiment, GrowthBook

NAMESPACES = ["checkout", "new-checkout", "", "été"]
VALUES = ["t-17|u-90210", "t-qa|u-1", "u-1", "", "a", "ab", "abc", "abcd", "Ünï|cödé", "日本|語", "t|😀", "x" * 300]
VALUES += [f"t-{i % 7}|u-{i}" for i in range(200)]
WEIGHTS = [[0.5, 0.5], [0.75, 0.25], [0.9, 0.1], [0.333, 0.333, 0.334], [0.1, 0.2, 0.3, 0.4]]


def growthbook(namespace, value, weights):
    """Bucket, and position in steps of 1/10,000. The SDK takes no empty seed or value."""
    sdk = GrowthBook(attributes={"id": value})
    names = list(range(len(weights)))
    result = sdk.run(Experiment(key="any", seed=namespace, variations=names, weights=weights, hashVersion=2, hashAttribute="id"))
    assert result.inExperiment, (namespace, value)
    return result.variationId, round(result.bucket * 10_000)


def hashed(algorithm, text):
    """The first 32 bits of the hash."""
    data = text.encode()
    if algorithm == "murmur3":
        return mmh3.hash(data, 0, signed=False)
    if algorithm == "xxh3":
        return xxhash.xxh3_64_intdigest(data) >> 32
    return int.from_bytes(hashlib.sha256(data).digest()[:4], "big")


for n, namespace in enumerate(NAMESPACES):
    for i, value in enumerate(VALUES if n == 0 else VALUES[:12]):
        if namespace and value:
            weights = WEIGHTS[i % len(WEIGHTS)]
            bucket, position = growthbook(namespace, value, weights)
            line = {"algorithm": "growthbook_v2", "namespace": namespace, "value": value, "position": position}
            print(json.dumps({**line, "weights": weights, "bucket": bucket}))
        for algorithm in ("murmur3", "xxh3", "sha256") if i < 40 else ():
            position = hashed(algorithm, f"{namespace}:{value}")
            print(json.dumps({"algorithm": algorithm, "namespace": namespace, "value": value, "position": position}))
