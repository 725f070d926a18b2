"""How fast do generators draw policies? All of them in one run, in batches of 256, the first named being the yardstick.

    python benchmarks/generators.py artifacts/laptop/walker2d/paper_full-111/generator.safetensors data/generators/walker2d.safetensors

Times drawing and decoding; the rollouts that a user does next are not counted. Each is warmed up once, then timed for at least ten seconds.
"""
import argparse
import time
from pathlib import Path

import numpy as np
import torch

from policydiffusion.generator import Generator


def policies_per_second(generator: Generator, seconds: float, batch: int = 256) -> float:
    "Policies drawn and decoded in a second."
    asked = np.random.default_rng(0).random((batch, generator.design.n_measures), np.float32)
    generator.generate(asked[:2])  # warm-up
    start, n = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        generator.generate(asked, seed=n, batch=batch)
        n += batch
    return n/(time.perf_counter() - start)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('generators', type=Path, nargs='+', help='generator files; speeds are relative to the first')
    parser.add_argument('--seconds', type=float, default=10., help='time for each')
    args = parser.parse_args()
    first = None
    for path in args.generators:
        generator = Generator.load(path)
        speed = policies_per_second(generator, args.seconds)
        first = first or speed
        how = generator.sampling
        print(f'{generator.method:12s} {how.sampler} {how.n_steps:3d} calls: {speed:9.1f} policies/s, {speed/first:7.1f} x the first ({torch.get_num_threads()} threads)')


if __name__ == '__main__':
    main()
