"""What a run costs, measured on processes of their own."""

import re
from argparse import Namespace

from benchmarks import costs


def test_streaming_is_measured_beside_memory():
    small = Namespace(images=300, rounds=1, width=8, threads=1)
    rows = costs.streaming(small)
    for name, measured in (next(rows), next(rows)):
        assert name in ("300 images, in memory", "300 images, streamed")
        speed, peak = map(int, re.findall(r"\d+", measured.replace(",", "")))
        assert speed > 0 and peak > 0
    rows.close()
