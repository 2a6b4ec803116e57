"""The second ladder of own tables, while its runs are being trained.

    python launch/main.py --config=configs/ladder.py --stage=ground_truth

goes on from `gym_data_next`. A model is WIDTHxLAYERS with 8/3 as wide an MLP; its size is counted
without the embedding. Low: 6,000 to 25,000 parameters; mid: 55,000 to 98,000; high: 154,000 to
221,000. The learning rate falls linearly to zero (arXiv 2502.15938), which lowers the noise. A
third of the configurations has three seeds. Learning rates reach far below and above the optimum,
as a person's uncertainty does: (median - optimum) is then large beside the deviation over seeds.

The plan in training FLOPs (low, mid, high), as the command above says it for each of
`--config.ground_truth.levels=low` and so on before the first run:

    pretraining   1,094 runs   5.2e13   2.1e14   8.1e13
    architecture    550 runs   1.1e13   3.4e13   5.5e13
    data_mixture    416 runs   1.3e13   4.7e13   7.9e13
    grpo          1,520 runs   1.4e13   3.8e13   4.4e13

The evaluation of grpo's runs comes on top. Two processes, one a core, waste least: each
gets `--config.mesh.cpu_devices=1 --config.ground_truth.share=0/2` (and 1/2) and a work directory.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

K = 1024  # tokens


def get_config(variant: str = "") -> ConfigDict:
    """Return the main job's config with the grids of the second ladder."""
    module = runpy.run_path(str(Path(__file__).with_name("gym.py")))
    c = module["get_config"](variant)
    if variant == "smoke":
        return c
    g = c.ground_truth
    g.root = "gym_data_next"
    c.gym.tasks = ("pretraining", "architecture", "data_mixture", "grpo")
    g.language_model.validation_rows = 256
    g.language_model.optimizer = module["optimizer"](
        decay="linear", warmup_fraction=0.1, final_fraction=0.0
    )
    p = g.pretraining
    p.head_dim = 32
    low = (-10.5, -9.5, -8.5, -7.5, -7, -6.5, -6, -5.5, -5, -4.5, -4, -3.5, -2.5)
    mid = (-11.5, -10, -8.5, -7.5, -6.5, -5.5, -4.25, -3.5, -2.5)
    high = (-10, -8, -7, -6, -5, -3.5)
    p.low.update(pretraining(("16x2", "24x2", "32x2"), (256 * K, 512 * K), low, 1, 5))
    p.mid.update(pretraining(("48x2", "48x3", "64x2"), (512 * K, 1024 * K), mid, 2, 4))
    p.high.update(pretraining(("80x2", "96x2"), (512 * K, 768 * K), high, 3, 2))
    a = g.architecture
    a.batch_size = 16
    low = (16, 24, 32), (1, 2, 3)
    mid = (16, 32, 48, 64), (1, 2, 3)  # narrow ones widen the range, beside which seeds differ less
    high = (32, 48, 64, 96), (2, 3, 4)
    a.low.update(architecture(*low, (256 * K, 384 * K), (20_000, 28_000, 40_000)))
    a.mid.update(architecture(*mid, (384 * K, 512 * K), (60_000, 80_000, 100_000)))
    a.high.update(architecture(*high, (384 * K, 512 * K), (150_000, 200_000)))
    d = g.data_mixture
    d.head_dim, d.batch_size = 32, 16
    d.low.update(data_mixture(("24x2", "32x2"), (256 * K, 512 * K), 20))
    d.mid.update(data_mixture(("48x2", "64x2"), (256 * K, 384 * K, 512 * K), 16))
    d.high.update(data_mixture(("80x2", "96x2"), (384 * K, 512 * K), 16))
    r, optimizer = g.grpo, module["optimizer"]
    r.setup.backbone_optimizer = optimizer(
        3e-3, warmup_fraction=0.0, decay="constant", final_fraction=1.0, weight_decay=0.0
    )
    r.setup.optimizer = optimizer(decay="linear", final_fraction=0.0, b2=0.99, weight_decay=0.0)
    r.choices.clip_range = (0.2,)
    # The backbone solves .1 to .4 of the problems at temperature 1, more of them greedily.
    r.low = grpo(32, 2, (24, 48), addition=4500, numbers=1500, sorting=2000)
    r.mid = grpo(64, 4, (16, 32), addition=2500, numbers=800, sorting=1000)
    r.high = grpo(96, 6, (16, 24), numbers=400, sorting=500)
    r.high.learning_rates = r.high.learning_rates[1:]
    return c


def pretraining(models, tokens, exponents, smallest: int, batch_sizes: int) -> dict:
    """Learning rates 2^exponent; batch sizes from 2^smallest on."""
    return {
        "models": models,
        "tokens": tokens,
        "learning_rates": tuple(2.0**exponent for exponent in exponents),
        "batch_sizes": tuple(2 ** (smallest + k) for k in range(batch_sizes)),
        **REPEATED,
    }


def architecture(width, layers, tokens, limits) -> dict:
    """72 architectures; those over the largest limit are not trained."""
    return {
        "width": width,
        "layers": layers,
        "mlp_ratio": (2, 4),
        "tokens": tokens,
        "limits": limits,
        **REPEATED,
    }


def data_mixture(models, tokens, mixtures: int) -> dict:
    """Mixtures, half of them shared with the other levels."""
    return {
        "models": models,
        "tokens": tokens,
        "mixtures": mixtures,
        "own": mixtures // 2,
        "rate_times_width": 0.75,
        **REPEATED,
    }


def grpo(width, heads, steps, **backbone_steps) -> ConfigDict:
    """60 configurations for each kind of problem and budget of rollouts."""
    c = ConfigDict({"problems": tuple(backbone_steps), "width": width, "layers": 2, "heads": heads})
    c.backbone_steps = ConfigDict(backbone_steps)  # of pre-training
    c.steps = steps  # rollouts
    c.learning_rates = (5e-5, 1.5e-4, 5e-4, 1.5e-3, 5e-3)
    c.update(REPEATED)
    return c


REPEATED = {"seeds": 3, "repeated_every": 3}
