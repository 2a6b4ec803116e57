"""The main job: learn to configure runs of four tasks from cheap ones, score on dearer ones.

    python launch/main.py --config=configs/gym.py

On 2 CPU cores: under 10 minutes, 5.9 GB. Expect 1 to 30 % invalid calls in GRPO's sampled episodes
(of changed and made-up experiments), and the agent, greedy, at a mean regret of .194 / .070 / .048
after 1 / 3 / 5 trials on the 22 held-out experiments (tasks weigh alike), none of its calls invalid
or matched, all of its claims true.

    python launch/main.py --config=configs/gym.py:smoke

The same job with every part of it small: two to three minutes; its figures mean nothing.

Ablations and stress are flags; README lists them.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

TASKS = ("architecture", "data_mixture", "grpo", "pretraining")
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

    c.distributed = ConfigDict()  # several processes as one job: each runs the same command
    c.distributed.coordinator = ""  # host:port of process 0; "": the scheduler's, or one process
    c.distributed.processes = -1  # how many; -1: as the scheduler says
    c.distributed.process_id = -1  # this one, from 0; -1: as the scheduler says
    c.distributed.one_host = False  # all are on one machine: a loopback address will do
    c.distributed.timeout_seconds = 300  # for all to come together
    c.distributed.collectives = "gloo"  # between CPUs: gloo or mpi

    c.gym = ConfigDict()
    c.gym.roots = "gym_data"  # folders of outcome tables, comma between; {workdir} is --workdir
    c.gym.tasks = TASKS  # of the tables found there, and of our own
    c.gym.trained_tasks = ""  # those the agent is trained on, comma between; empty for all
    c.gym.evidence = True  # whether anybody is shown cheaper experiments
    c.gym.budget = 5  # trials of an episode; `policy.context` has to hold them
    c.gym.matching = True  # replace an unmeasured configuration by the nearest measured one
    c.gym.invalid_penalty = 0.05  # regret that an invalid action costs in the reward

    c.ground_truth = g = ConfigDict()
    g.root = "gym_data"  # where the tables are written
    g.source = "stdlib_cpu"  # their source's name
    g.share = "0/1"  # i/n: this process trains every n-th group of runs from the i-th on
    g.checkpoint_seconds = 60.0  # between checkpoints of a group of runs
    g.language_model = m = ConfigDict()  # what the runs of three tasks have in common
    m.corpus = "stdlib"  # or tfds:NAME[/CONFIG]
    m.vocab_size = 512
    m.sequence_length = 64  # tokens
    m.dtype = "float32"  # what matrix products read; bfloat16's rounding grows into 1e-2 nats
    m.validation_rows = 128  # sequences of each domain
    m.optimizer = optimizer(decay="cosine", warmup_fraction=0.1, final_fraction=0.1)
    for task in TASKS:  # their grids
        g[task] = neighbour(task)["ground_truth"]()

    c.verify = ConfigDict()
    c.verify.rows = 5  # random rows of each own table to train again

    c.policy = ConfigDict()  # the agent's transformer
    c.policy.weights = ""  # published ones to start from: a folder, a GGUF file or a package
    c.policy.shape = ConfigDict()  # their config.json, for --stage=plan where they are not here
    c.policy.lora_rank = 0  # of published weights: train factors of so many columns; 0 trains all
    c.policy.lora_targets = "query,key,value,output,gate,up,down"  # the matrices that get factors
    c.policy.lora_scale = 2.0  # what the factors' product is multiplied by
    c.policy.scale = 1.0  # of the parameters, about: the widths below follow
    c.policy.vocab_size = 2048  # SentencePiece pieces, trained on the simulated trajectories
    c.policy.split_digits = False  # whole numbers may be pieces: turns are a third shorter
    c.policy.width = 128
    c.policy.layers = 4
    c.policy.heads = 2
    c.policy.kv_heads = 2
    c.policy.head_dim = 64
    c.policy.mlp_width = 352
    # Most of what it has to learn is to copy what it reads: these three start it there.
    c.policy.short_conv = 8
    c.policy.rope_fraction = 0.25
    c.policy.mimetic = True
    c.policy.scan_unroll = 4
    c.policy.dtype = "float32"  # what matrix products read; but distill.dtype
    c.policy.cache_dtype = ""  # of keys and values; policy.dtype by default; float32 on a CPU
    c.policy.remat = "none"  # or attention, or layer: computed again backwards, to save memory
    c.policy.row_logits = 2**24  # of a training row at once; the rest of a long one follows
    c.policy.context = 896  # tokens of a whole episode
    c.policy.turn_tokens = 112  # the most that it says in a turn

    c.rollout = ConfigDict()  # how the policy plays, in GRPO and in evaluation
    c.rollout.cache_block = 256  # tokens that the KV cache grows by; a compilation for each size
    c.rollout.chunk = 160  # an answer is read so many tokens at a time

    c.curate = ConfigDict()
    c.curate.distill_pairs = 3200  # (target, evidence) pairs to simulate
    c.curate.synthetic = 0.5  # share of them from the prior of synthetic landscapes
    c.curate.unchanged = 0.1  # share of the tables' families that are not augmented
    c.curate.invented_names = 0.2  # share of the pairs whose dimensions are called otherwise

    c.simulate = ConfigDict()
    c.simulate.reasoning = True  # whether turns have a think part
    c.simulate.perturbed = 0.25  # share of episodes with perturbed moves, to learn recovery
    c.simulate.processes = 2

    c.distill = ConfigDict()
    c.distill.steps = 700  # 0: GRPO starts from random parameters
    c.distill.batch_rows = 4  # as many updates learn as much with 6, fewer rows less
    c.distill.microbatches = 1  # pieces that an update's gradient is summed over
    c.distill.relabelled = 0.5  # share of the episodes whose numbers and names are exchanged
    c.distill.row_length = 896  # tokens; short episodes share a row
    c.distill.dtype = "bfloat16"
    c.distill.save_every = 200  # steps
    c.distill.optimizer = optimizer(3e-3, b2=0.98, weight_decay=0.05)

    c.grpo = ConfigDict()
    c.grpo.steps = 6  # 0: the distilled policy is scored
    c.grpo.groups = 6  # pairs a step
    c.grpo.group_size = 8  # episodes a pair
    c.grpo.minibatch_rows = 16  # episodes an update sees
    c.grpo.microbatches = 2  # 2.4 GB at the peak of an update, with 1 3.7 GB, as fast
    c.grpo.epochs = 1  # passes over each rollout
    c.grpo.synthetic = 0.25  # share of pairs from the synthetic prior
    c.grpo.clip_low = 0.2  # probability ratios count from 1 - clip_low ...
    c.grpo.clip_high = 0.28  # ... to 1 + clip_high
    c.grpo.kl_coefficient = 0.01  # of the divergence from the distilled policy
    c.grpo.entropy_coefficient = 0.0
    c.grpo.temperature = 1.0  # of the rollouts
    c.grpo.normalisation = "std"  # of advantages: std or none
    c.grpo.credit = "turn"  # a token gets the rewards from its turn on; or episode
    c.grpo.save_every = 3  # steps
    c.grpo.optimizer = optimizer(1e-4, warmup_fraction=0.1, decay="constant", weight_decay=0.0)

    c.evaluation = ConfigDict()
    c.evaluation.seeds = (0, 1, 2)
    c.evaluation.temperature = 0.0  # of the agent; 0 is greedy
    c.evaluation.methods = ""  # by name, comma between; empty for all of them
    c.evaluation.games = 192  # that a policy plays side by side, at most
    c.evaluation.meta_learning = 1.0  # of the steps of baselines that learn; less tries them out
    c.evaluation.advisor = "panel"  # who forecasts in the prompt (agent/forecast.py): or own
    c.evaluation.shots = 1  # examples that zero_shot is shown: published weights as they come
    c.evaluation.constrained = True  # the agent's turns run measured, untried configurations only

    c.cross_validate = ConfigDict()  # --stage=cross_validate: for choosing, without the held-out
    c.cross_validate.pairs = 240  # of changed copies of training experiments
    c.cross_validate.seed = 0

    c.pool = ConfigDict()  # --stage=pool: one report of several trainings
    c.pool.workdirs = ""  # their work directories, comma between; all but config.seed alike

    c.plan = ConfigDict()  # --stage=plan: what the job takes on devices that are not here
    c.plan.devices = 1  # how many, where an axis of the mesh is -1
    c.plan.device_memory_gib = 0.0  # what each has; a step that needs more is an error. 0: any

    c.stress = ConfigDict()  # of the evidence that games come with; results go to their own files
    c.stress.kind = "none"  # none, thin, reverse, noise or rename (gym/stress.py)
    c.stress.keep = 0.3  # thin: share of the evidence's configurations
    c.stress.noise = 0.5  # noise: its deviation in units of regret
    c.stress.seed = 0  # of what is drawn

    if variant == "smoke":
        shrink(c)
    return c


def shrink(c: ConfigDict) -> None:
    """Make every part of the job small: its figures mean nothing, its parts are all real."""
    g = c.ground_truth
    g.source, g.root = "smoke", "{workdir}/gym_data"
    c.gym.roots = g.root
    g.language_model.validation_rows = 8
    for task in TASKS:
        neighbour(task)["shrink"](g[task])
    c.policy.update({"width": 32, "layers": 2, "mlp_width": 64, "head_dim": 16, "heads": 2})
    c.policy.update({"kv_heads": 1, "scan_unroll": 2, "vocab_size": 1024})
    c.curate.distill_pairs = 100
    c.simulate.processes = 1
    c.distill.update({"steps": 10, "batch_rows": 4, "save_every": 5})
    c.grpo.update({"steps": 2, "groups": 2, "group_size": 4, "minibatch_rows": 8, "save_every": 1})
    c.evaluation.update({"seeds": (0, 1), "meta_learning": 0.05})


def publish(c: ConfigDict, weights: str) -> None:
    """Let published weights be the policy, of many layers and with a vocabulary of their own."""
    c.policy.weights = weights
    c.policy.remat = "layer"
    c.policy.scan_unroll = 1
    # Numbers are spelled digit by digit: distillation says how long episodes are.
    c.policy.context = c.distill.row_length = 2048
    c.policy.turn_tokens = 224
    c.distill.relabelled = 0.0  # such a model has seen numbers and names before


def neighbour(name: str) -> dict:
    """Run the config file beside this one; configs are files, not a package."""
    return runpy.run_path(str(Path(__file__).with_name(f"{name}.py")))


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
