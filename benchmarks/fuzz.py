"Fuzz files, arguments, texts and settings: python benchmarks/fuzz.py [cases], 20,000 unless told otherwise."
import sys, time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]/'tests'/'fuzz'))
import campaign


def main(cases: int = 20_000) -> int:
    "Run all rooms and print the counts; 1 if anything was found."
    tally, started = campaign.Tally(), time.time()
    for room, (_, _, share) in campaign.ROOMS.items(): campaign.run(room, round(share*cases), tally)
    print(campaign.report(tally))
    print(f'{sum(tally.counts.values())} cases in {time.time() - started:.0f} s, {len(campaign.PUBLIC)} public functions and records')
    return int(bool(tally.findings))


if __name__ == '__main__': sys.exit(main(*map(int, sys.argv[1:])))
