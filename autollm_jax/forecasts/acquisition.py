"""Which cell to try next, from a surrogate's means and deviations: the expected improvement."""

import numpy as np
from scipy.special import ndtr


def expected_best(mean_R: np.ndarray, deviation_R: np.ndarray, scores_T: np.ndarray) -> np.ndarray:
    """Return the score [R] that the best trial is expected to have once a cell is tried next.

    Before the first trial that is the cell's own; later, less the best one's so far, it is the
    expected improvement with its sign changed.
    """
    return -improvement(mean_R, deviation_R, scores_T.min()) if len(scores_T) else mean_R


def improvement(mean_R: np.ndarray, deviation_R: np.ndarray, best: float) -> np.ndarray:
    """Return the expected improvement over `best`, for scores of which less is better."""
    gap_R = (best - mean_R) / deviation_R
    density_R = np.exp(-0.5 * gap_R**2) / np.sqrt(2 * np.pi)
    gain_R = deviation_R * (gap_R * ndtr(gap_R) + density_R)
    # Far from any improvement the sum is nothing but rounding: there only the order counts.
    return np.where(gap_R > -6, gain_R, 1e-30 * gap_R)
