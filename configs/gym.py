"""The main job: train the agent on cheap experiments of four tasks, score it on dearer ones.

    python launch/main.py --config=configs/gym.py

README's section Results has what to expect of it on 2 CPU cores: regrets, minutes, memory;
docs/experiments.md (38 to 68) has the reasons for the recipe.

    python launch/main.py --config=configs/gym.py:smoke

The same job with every part small: a few minutes. Its figures mean nothing.

Flags select ablations and stress tests; docs/policies.md lists them.
"""

import runpy
from pathlib import Path

from ml_collections import ConfigDict

TASKS = ("architecture", "data_mixture", "grpo", "pretraining")
VARIANTS = ("", "smoke")


def get_config(variant: str = "") -> ConfigDict:
    """Return the job's config; the variant `smoke` makes every part small."""
    if variant not in VARIANTS:
        raise ValueError(f"configs/gym.py:{variant}: the variants are :smoke, or none")
    c = ConfigDict()
    c.seed = 0
    c.protocol = "dev"  # dev: train on low, hold out mid; final: low and mid, hold out high
    c.compilation_cache = "{workdir}/compiled"  # folder of compiled programs; "": none are kept

    c.mesh = ConfigDict()
    c.mesh.data = -1  # replicas, and the runs of a sweep; -1 takes all remaining devices
    c.mesh.fsdp = 1  # shards of parameters and optimizer state
    c.mesh.tensor = 1  # shards of heads, MLP columns and vocabulary
    c.mesh.player_tensor = 0  # the same while episodes are played, of fsdp x tensor; 0: as tensor
    c.mesh.cpu_devices = 2  # without accelerators: devices to split the CPU into

    c.distributed = ConfigDict()  # one job in several processes: each runs the same command
    c.distributed.coordinator = ""  # host:port of process 0; "": the scheduler's, or one process
    c.distributed.processes = -1  # number of processes; -1: the scheduler's
    c.distributed.process_id = -1  # number of this process, from 0; -1: the scheduler's
    c.distributed.one_host = False  # all processes are on one machine: accept a loopback address
    c.distributed.timeout_seconds = 300  # most seconds until all processes are connected
    c.distributed.collectives = "gloo"  # collectives between CPUs: gloo or mpi

    c.gym = ConfigDict()
    c.gym.roots = "gym_data"  # folders of outcome tables, comma-separated; {workdir} is --workdir
    c.gym.tasks = TASKS  # tasks to read from these folders, and to make own tables of
    c.gym.trained_tasks = ""  # tasks to train the agent on, comma-separated; empty for all
    c.gym.trained_sources = ""  # sources to train the agent on, likewise
    c.gym.evidence = True  # whether players see cheaper experiments
    c.gym.budget = 5  # trials per episode; `policy.context` has to hold them
    c.gym.matching = True  # replace an unmeasured configuration by the nearest measured one
    c.gym.invalid_penalty = 0.05  # regret that an invalid action costs in the reward

    c.ground_truth = g = ConfigDict()
    g.root = "gym_data"  # folder to write the project's own tables to
    g.source = "stdlib_cpu"  # the source's name of these tables
    g.share = "0/1"  # i/n: train the groups of every n-th program, from program i on
    g.levels = ("low", "mid", "high")  # levels whose runs are trained now
    g.checkpoint_seconds = 60.0  # seconds between two checkpoints of a group of runs
    g.most_noise = 0.25  # a noisier experiment of mid or high is left out; in units of regret
    g.language_model = m = ConfigDict()  # settings that the runs of three tasks share
    m.corpus = "stdlib"  # or tfds:NAME[/CONFIG]
    m.vocab_size = 512
    m.sequence_length = 64  # tokens
    m.dtype = "float32"  # inputs of matrix products; bfloat16 rounding grows to 1e-2 nats
    m.validation_rows = 256  # sequences of each domain
    # A fall to zero lowers the deviation between seeds (arXiv 2502.15938).
    m.optimizer = optimizer(decay="linear", warmup_fraction=0.1, final_fraction=0.0)
    for task in TASKS:  # the grid of each task
        g[task] = neighbour(task)["ground_truth"]()

    c.verify = ConfigDict()
    c.verify.rows = 5  # random rows of each own table to train again

    c.policy = ConfigDict()  # the agent's transformer
    c.policy.weights = ""  # published weights to start from: a folder, a GGUF file or a package
    c.policy.shape = ConfigDict()  # config.json of absent weights, for --stage=plan
    c.policy.lora_rank = 0  # rank of LoRA factors on published weights; 0 trains all weights
    c.policy.lora_targets = "query,key,value,output,gate,up,down"  # matrices with factors
    c.policy.lora_scale = 2.0  # multiplies the product of the factors
    c.policy.scale = 1.0  # scales the number of parameters, about, through the widths below
    c.policy.vocab_size = 512  # SentencePiece vocabulary, trained on the simulated episodes
    c.policy.split_digits = False  # whole numbers may be pieces
    c.policy.full_texts = False  # prompts with configurations and deviations, a third longer
    c.policy.width = 64
    c.policy.layers = 3
    c.policy.heads = 2
    c.policy.kv_heads = 2
    c.policy.head_dim = 32
    c.policy.mlp_width = 176
    c.policy.short_conv = 8
    c.policy.rope_fraction = 0.25
    c.policy.mimetic = True
    c.policy.scan_unroll = 3
    c.policy.dtype = "float32"  # inputs of matrix products, except in distillation (distill.dtype)
    c.policy.cache_dtype = ""  # type of keys and values; "" is policy.dtype; float32 on a CPU
    c.policy.activations = ""  # type of what layers pass on; "" is dtype, float32 below width 96
    c.policy.gradients = "float32"  # type in which devices add matrices' gradients; or bfloat16
    c.policy.attention = "auto"  # by platform; or blocks, splash (TPU), triton (CUDA)
    c.policy.attention_block = 400  # queries of one of the `blocks`; 128 for wide models
    # Recomputed in the backward pass, to save memory: none, attention, outputs (a layer but for
    # attention's outputs), weights (as outputs; gathered matrices are kept), layer, or offload (as
    # outputs; what is kept waits in the host's memory).
    c.policy.remat = "none"
    c.policy.row_logits = 2**24  # logits of a training row at once; longer rows go in parts
    c.policy.context = 800  # tokens of a whole episode
    c.policy.turn_tokens = 48  # most tokens of a turn of the policy

    c.rollout = ConfigDict()  # how the policy plays, in GRPO and in evaluation
    c.rollout.cache_block = 800  # tokens by which the KV cache grows; each size compiles once
    c.rollout.chunk = 160  # tokens of an answer that the policy reads at once
    c.rollout.cache_doubling = False  # the KV cache doubles instead: fewer sizes to compile
    c.rollout.rows = 0  # GRPO: most episodes side by side, others wait for their rows; 0: all
    c.rollout.ended_share = 1.0  # share of turns that have ended when the environment answers
    c.rollout.processes = 1  # GRPO: that answer the policy's turns; more are spawned for it
    c.rollout.drafts = 0  # tokens looked up in the prompt that a pass reads ahead; no short_conv

    c.curate = ConfigDict()
    c.curate.distill_pairs = 300  # (target, evidence) pairs to simulate
    c.curate.synthetic = 0.4  # share of the pairs from the prior of synthetic landscapes
    c.curate.unchanged = 0.5  # share of the tables' families that are not augmented
    c.curate.far = 0.5  # share of the pairs whose evidence is far below the target
    c.curate.failing = 0.15  # share of the pairs in which one adviser is wrong on purpose
    c.curate.renamed = 0.2  # share of the pairs with neutral names of dimensions and components

    c.simulate = ConfigDict()
    c.simulate.episodes = 4  # of each pair
    c.simulate.softness = 0.03  # temperature of the teacher's hindsight, in units of reward
    c.simulate.uniform = 0.1  # share of the teacher's choices that hindsight does not guide
    c.simulate.lookahead = False  # hindsight of the rest of the episode, not of one trial alone
    c.simulate.prior = 0.3  # chance of all advisers together before hindsight
    c.simulate.reasoning = True  # whether turns have a think part
    c.simulate.processes = 2  # that simulate, and prepare the pairs of GRPO

    c.distill = ConfigDict()
    c.distill.steps = 150  # 0: GRPO starts from random parameters
    c.distill.batch_rows = 4
    c.distill.microbatches = 1  # parts of a batch, over which the gradient is summed
    c.distill.row_length = 800  # tokens; short episodes share a row
    c.distill.dtype = "float32"
    c.distill.save_every = 100  # steps
    c.distill.optimizer = optimizer(3e-3, b2=0.98, weight_decay=0.05)

    c.grpo = ConfigDict()
    c.grpo.steps = 8  # 0: the distilled policy is scored
    c.grpo.pairs = 96  # pairs to play; each is played again in later steps
    c.grpo.synthetic = 0.25  # share of pairs from the synthetic prior
    c.grpo.groups = 32  # pairs a step
    c.grpo.group_size = 1  # episodes a pair
    c.grpo.share_prefixes = True  # sampled groups: an update reads what members share once
    c.grpo.members = "enumerated"  # of a group: all choices of a decision, or sampled episodes
    # Enumerated choices earn what the rest of the episode brings where all advisers together decide
    # the later trials; False: what their own trial brings.
    c.grpo.lookahead = True
    c.grpo.minibatch_rows = 16  # episodes an update sees
    c.grpo.microbatches = 1
    c.grpo.epochs = 3  # passes over each rollout
    c.grpo.clip_low = 0.2  # probability ratios count from 1 - clip_low ...
    c.grpo.clip_high = 0.28  # ... to 1 + clip_high
    c.grpo.dual_clip = (
        0.0  # sampled groups: most that a ratio counts where the reward is low; 0: no
    )
    c.grpo.ratio = "token"  # sampled groups: a probability ratio each token, or sequence: each turn
    c.grpo.importance_cap = (
        0.0  # sampled groups: most weight against sampler mismatch; 0: no weights
    )
    c.grpo.mask_truncated = False  # leave rows that were cut, by the context or a turn's limit, out
    c.grpo.kl_coefficient = 0.003  # weight of the divergence from the distilled policy
    c.grpo.speech_coefficient = 0.1  # enumerated members: the same for tokens that decide nothing
    c.grpo.entropy_coefficient = 0.003
    c.grpo.temperature = 1.0  # temperature of rollouts
    c.grpo.normalisation = "none"  # normalisation of sampled groups' advantages: std or none
    c.grpo.baseline = True  # sampled groups: rewards count above the pick of all advisers together
    c.grpo.refills = 2  # sampled groups: rounds that may replace groups that teach nothing
    c.grpo.first_turn = 2  # decisions before this turn, from 1, stay as distilled; the last learns
    c.grpo.credit = "turn"  # turn: a token gets the rewards from its turn on; or episode
    c.grpo.kept_out = 32  # pairs of other families, to find the best policy; 0: the last is best
    c.grpo.evaluate_every = 4  # steps between two looks at them
    c.grpo.off_policy_steps = 0  # 1: play a step while the one before is learned, on a split mesh
    c.grpo.player_replicas = 1  # replicas of the mesh's data axis that play then; the rest trains
    c.grpo.save_every = 10  # steps
    c.grpo.optimizer = optimizer(5e-4, warmup_fraction=0.1, decay="cosine", weight_decay=0.0)

    c.evaluation = ConfigDict()
    c.evaluation.seeds = (0,)  # of a method's chance and of the candidates' letters
    c.evaluation.temperature = 0.0  # temperature of the agent; 0 is greedy
    c.evaluation.methods = ""  # names of methods, comma-separated; empty for all but the peers
    c.evaluation.games = 32  # most games that a policy plays side by side
    c.evaluation.processes = 2  # that play the baselines; 1: none learn beside the training either
    c.evaluation.meta_learning = 1.0  # share of the learned baselines' training steps
    c.evaluation.shots = 1  # examples in the prompt of zero_shot (untrained published weights)
    c.evaluation.constrained = True  # the agent names offered candidates alone, in GRPO too

    c.cross_validate = ConfigDict()  # --stage=cross_validate: without held-out experiments
    c.cross_validate.pairs = 240  # pairs of changed copies of training experiments
    c.cross_validate.seed = 0

    c.pool = ConfigDict()  # --stage=pool: one report of several trainings
    c.pool.workdirs = ""  # work directories, comma-separated; configs differ only in seed

    c.plan = ConfigDict()  # --stage=plan: memory and FLOPs of the job without its devices
    c.plan.compiler = "fake"  # or an accelerator's own: tpu:v5e:4x4[:SLICES], gpu:h100:1x8
    c.plan.steps = ""  # steps to compile, comma-separated ("grpo decode", ...); all by default
    c.plan.budgets = ""  # file of budgets; a step over its budget is an error
    c.plan.write_budgets = False  # write what this plan takes as the budgets of its compiler
    c.plan.devices = 1  # number of devices, where an axis of the mesh is -1
    c.plan.device_memory_gib = 0.0  # memory of each; a larger step is an error; 0: no limit

    c.profile = ConfigDict()  # traces of jax.profiler, to WORKDIR/profile/STAGE
    c.profile.steps = ""  # first:end, as 10:13 for steps 10, 11 and 12; "": none
    c.profile.stage = ""  # distill or grpo; "": both

    c.stress = ConfigDict()  # stress test: a change of the evidence; has results of its own
    c.stress.kind = "none"  # none, thin, reverse, noise, rename or lie (gym/stress.py)
    c.stress.keep = 0.3  # thin: share of the evidence's configurations
    c.stress.noise = 0.5  # noise: standard deviation in units of regret
    c.stress.seed = 0  # seed of the change
    c.stress.adviser = "own"  # lie: the adviser that lies

    if variant == "smoke":
        shrink(c)
    return c


def shrink(c: ConfigDict) -> None:
    """Make every part of the job small. All parts run, but the figures mean nothing."""
    g = c.ground_truth
    g.source, g.root = "smoke", "{workdir}/gym_data"
    c.gym.roots = g.root
    g.most_noise = 1e9
    g.language_model.validation_rows = 8
    for task in TASKS:
        neighbour(task)["shrink"](g[task])
    c.policy.update({"width": 32, "layers": 2, "mlp_width": 64, "head_dim": 16, "heads": 2})
    c.policy.update({"kv_heads": 1, "scan_unroll": 2})
    c.rollout.cache_block = 480  # two sizes of the cache
    c.curate.distill_pairs = 24
    c.simulate.processes = 1
    c.distill.update({"steps": 10, "batch_rows": 4, "save_every": 5})
    c.grpo.update({"steps": 2, "groups": 2, "group_size": 4, "minibatch_rows": 8, "save_every": 1})
    c.grpo.update({"pairs": 4, "kept_out": 3, "evaluate_every": 1})
    c.evaluation.update({"seeds": (0, 1), "meta_learning": 0.05, "processes": 1})


def publish(c: ConfigDict, weights: str) -> None:
    """Use published weights, with their own vocabulary, as the policy."""
    c.policy.weights = weights
    c.policy.remat = "layer"
    c.policy.scan_unroll = 1
    c.policy.attention_block = 128
    c.policy.full_texts = True
    # Such vocabularies spell numbers digit by digit, so episodes are longer (distillation prints
    # their lengths).
    c.policy.context = c.distill.row_length = 4096
    c.policy.turn_tokens = 96
    c.grpo.members = "sampled"  # a panel's name is several tokens
    c.grpo.update({"groups": 16, "group_size": 8})


def neighbour(name: str) -> dict:
    """Run another config file of this folder, which is not a package."""
    return runpy.run_path(str(Path(__file__).with_name(f"{name}.py")))


def optimizer(learning_rate: float = 0.0, **changes) -> ConfigDict:
    """Return the config of AdamW and its schedule; a grid sets the learning rate itself."""
    c = ConfigDict()
    c.learning_rate = learning_rate  # peak learning rate
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
