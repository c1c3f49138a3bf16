"""How fast it trains, beside other implementations and beside what the machine can do at most.

python -m benchmarks.speed   images per second of all contenders, with ratios
python -m benchmarks.costs   start-up, memory, Parzen windows, encoding and decoding

`NOTES.md` says what is measured how, and what was tried to make it faster.
"""
