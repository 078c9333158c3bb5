r"""Nash-MD-PG against RLHF on a fitted reward, over as many fresh seeds as the effect needs.

Of `nash_md_beats_rlhf` (three seeds) and `nash_md_fresh_seeds` (five, then ten) each fell short of
its rule by the spread of seeds. All eighteen give win rates over RLHF of mean 0.566 and standard
deviation 0.08: of such, ten seeds show an interval above one half three times in five, and
twenty-four more than nine times in ten. These are twenty-four further seeds, 300 to 323, of
unchanged settings.

The rule, written before the first of these runs, is that of `nash_md_fresh_seeds`: the lower end of
the 95% t-interval over seeds of Nash-MD's exact win rate exceeds one half, over the reference and
over RLHF. It holds: 0.558 (0.526 to 0.591) over RLHF, ahead in 18 of the 24.
"""

import pathlib

from bellmax.experiments.claims import nash_md_beats_rlhf, nash_md_fresh_seeds
from bellmax.experiments.claims.claim import Claim, Outcome

# Seeds 0 to 2, 100 to 104 and 200 to 209 were seen before.
FIRST_SEED = 300


def run(seeds: int, directory: pathlib.Path) -> Outcome:
    """Trains both policies from each seed and lets them meet."""
    numbers = range(FIRST_SEED, FIRST_SEED + seeds)
    return nash_md_fresh_seeds.over_seeds(numbers, directory, CLAIM.name)


CLAIM = Claim(
    name="nash_md_many_seeds",
    paper="Munos et al. 2023",
    url="https://arxiv.org/abs/2312.00886",
    statement=nash_md_fresh_seeds.CLAIM.statement,
    paper_figure=nash_md_beats_rlhf.CLAIM.paper_figure,
    budget="24 seeds of warm start, two fitted judges and two policies of 0.1M parameters, 70 min",
    acceptance=(
        "lower ends of the 95% t-intervals over 24 fresh seeds of both exact win rates above 1/2"
    ),
    default_seeds=24,
    run=run,
    slow=True,
)
