"""The Matern-5/2 kernel, for NumPy and JAX arrays alike."""


def matern(squared, floor: float = 0.0):
    """Return k(s) = (1 + r + r^2 / 3) exp(-r) with r = sqrt(5 s), for squared distances s.

    Rasmussen and Williams, Gaussian Processes for Machine Learning, 2006, eq. 4.17.

    >>> import numpy as np
    >>> matern(np.array([0.0, 1.0])).round(3)
    array([1.   , 0.524])

    Args:
      squared: squared distances, in units of the length-scale; an array of NumPy or JAX.
      floor: the least squared distance. The slope of the root is infinite at 0, but not that of the
        kernel: a caller that differentiates gives a floor above 0.

    Returns:
      Correlations, an array of the same kind and shape.
    """
    xp = squared.__array_namespace__()  # numpy or jax.numpy: the array API standard's own way
    root = xp.sqrt(5 * xp.maximum(squared, floor))
    return (1 + root + root**2 / 3) * xp.exp(-root)
