"""The main job: learn to configure pre-training runs from cheap ones, score on dearer ones.

python launch/main.py --config=configs/gym.py
python launch/main.py --config=configs/gym.py:smoke
"""

from ml_collections import ConfigDict

VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the job's config; `smoke` is the same job, every part of it small."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/gym.py:{variant}: the variants are :smoke, or none")
    c = ConfigDict()
    c.seed = 0
    c.protocol = "dev"  # dev: learn from low, held out mid; final: low and mid, held out high

    c.mesh = ConfigDict()
    c.mesh.data = -1  # replicas, and the configurations of a sweep; -1 is all that are left
    c.mesh.fsdp = 1  # shards of parameters and optimizer state
    c.mesh.tensor = 1  # shards of heads, MLP columns and vocabulary
    c.mesh.cpu_devices = 2  # where the CPU is all there is: devices to split it into

    c.gym = ConfigDict()
    c.gym.roots = ("gym_data",)  # folders of outcome tables, ROOT/SOURCE/TASK.parquet
    c.gym.budget = 5  # trials of an episode
    c.gym.matching = True  # replace an unmeasured configuration by the nearest measured one
    c.gym.invalid_penalty = 0.05  # regret that an invalid action costs in the reward

    c.ground_truth = g = ConfigDict()
    g.root = "gym_data"  # where the tables are written
    g.source = "stdlib_cpu"  # their source's name
    g.corpus = "stdlib"  # or tfds:NAME[/CONFIG]
    g.vocab_size = 512
    g.sequence_length = 64  # tokens
    g.head_dim = 16
    g.dtype = "bfloat16"  # what matrix products read
    g.validation_rows = 128  # sequences of each domain
    g.checkpoint_seconds = 60.0  # between checkpoints of a sweep group
    g.optimizer = optimizer(decay="cosine", warmup_fraction=0.1, final_fraction=0.1)
    g.low = ConfigDict()
    g.low.widths = (16, 24, 32)
    g.low.layers = 2
    g.low.tokens = (65_536, 131_072)
    g.low.learning_rates = grid(-9, -2)
    g.low.batch_sizes = (1, 2, 4, 8, 16)  # sequences
    g.low.seeds = (0, 1)
    g.mid = ConfigDict()
    g.mid.widths = (48,)
    g.mid.layers = 3
    g.mid.tokens = (131_072, 262_144)
    g.mid.learning_rates = grid(-10, -3)
    g.mid.batch_sizes = (1, 2, 4, 8, 16)
    g.mid.seeds = (0,)
    g.high = ConfigDict()
    g.high.widths = (64,)
    g.high.layers = 3
    g.high.tokens = (262_144, 524_288)
    g.high.learning_rates = grid(-10, -3)
    g.high.batch_sizes = (1, 2, 4, 8, 16)
    g.high.seeds = (0,)

    c.verify = ConfigDict()
    c.verify.rows = 5  # random rows of each own table to train again

    return c


def optimizer(learning_rate: float = 0.0, **changes) -> ConfigDict:
    """AdamW and its schedule; a ground-truth grid sets the learning rate itself."""
    c = ConfigDict()
    c.learning_rate = learning_rate  # peak
    c.warmup_fraction = 0.05  # of all steps
    c.decay = "cosine"  # constant, cosine, linear or wsd
    c.final_fraction = 0.05  # the last step's learning rate over the peak
    c.decay_fraction = 0.2  # wsd: share of the steps spent decaying
    c.weight_decay = 0.1
    c.b1 = 0.9
    c.b2 = 0.95
    c.epsilon = 1e-8
    c.clip_norm = 1.0  # 0 is no clipping
    c.update(changes)
    return c


def grid(first: int, last: int) -> tuple[float, ...]:
    """Powers of two, both ends included."""
    return tuple(2.0**k for k in range(first, last + 1))
