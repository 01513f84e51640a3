"""95 % intervals of differences, where both trainings (seeds) and problems are samples. Of a single share: report.wilson_interval."""
import numpy as np


def interval(values):
    """(mean, low, high), 95 %, of differences (seeds, problems), seeds and problems both being samples; low, high None where nothing varies.

    Variance of the mean = variance of the seeds' means / seeds + variance of the problems' means / problems (crossed random effects; what
    is left over counts twice, so the interval is a little wide), Student's t with Satterthwaite's degrees of freedom. With one seed only
    the problems vary, with one number a training only the seeds.
    """
    values = np.asarray(values, float)
    parts = [(means.var(ddof=1) / len(means), len(means) - 1) for means in (values.mean(1), values.mean(0)) if len(means) > 1]
    return t_interval(float(values.mean()), parts)


def t_interval(mean, parts):
    """(mean, low, high), 95 %, from independent parts of its variance: [(variance, degrees of freedom)]."""
    variance = sum(v for v, _ in parts)
    if variance == 0:                                                    # one number, or all alike: how sure it is cannot be told
        return mean, None, None
    from scipy import stats                                              # here, as it takes a second and only results need it
    freedom = variance ** 2 / sum(v ** 2 / df for v, df in parts)
    half = float(stats.t.ppf(0.975, freedom) * variance ** 0.5)
    return mean, mean - half, mean + half


def share_interval(first, second, problems):
    """The same for two rows of a results file that keeps no answers: values by seed, both shares (or scores in [0, 1], which vary less) of
    `problems`. As if unpaired, so rather wide; one right and one wrong are added to each for the variance (Agresti and Caffo 2000)."""
    gaps = np.asarray(first, float) - np.asarray(second, float)
    smooth = [(np.mean(x) * problems + 1) / (problems + 2) for x in (first, second)]
    parts = [(sum(p * (1 - p) for p in smooth) / (problems + 2), problems - 1)]
    if len(gaps) > 1:
        parts.append((gaps.var(ddof=1) / len(gaps), len(gaps) - 1))
    return t_interval(float(gaps.mean()), parts)


def bootstrapped(row, lows, highs):
    """The same for a row whose interval over problems was bootstrapped in every seed: that one with a single seed, else both parts. As if
    a problem were equally hard for every seed: more seeds make the problems' part no smaller, so rather wide."""
    values = np.asarray(row["values"], float)
    if len(values) == 1:
        return row["mean"], lows[0], highs[0]
    errors = (np.asarray(highs) - np.asarray(lows)) / (2 * 1.96)         # (S,)
    return t_interval(float(values.mean()), [((errors ** 2).mean(), row["problems"] - 1), (values.var(ddof=1) / len(values), len(values) - 1)])
