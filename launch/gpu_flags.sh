# Sets XLA's options for GPUs; the other scripts of this folder source it in bash.
#
# A variable that is set already is kept, or has the last word. XLA ends a process whose flags it does
# not know; tests/launch/test_gpu_flags.py gives these to the installed jaxlib.
#
# For TPUs there is no such file: libtpu overlaps collectives with products by default, and takes all
# memory. Flags that others set for it (xla_tpu_enable_async_collective_fusion and its kin) leave the
# compiled step of an fsdp model as it is, by libtpu 0.0.42.1. The one that does not is an option of
# the training steps themselves: autollm_jax/sharding/xla_options.py.

# Overlaps communication with products, for longer compilation: collectives of a loop over layers or
# microbatches run one iteration ahead (pipelined), loops are unrolled by two, and small collectives
# are combined. Compiled programs are kept, so a job pays for it once.
export JAX_OPTIMIZATION_LEVEL=${JAX_OPTIMIZATION_LEVEL:-O1}
# Starts collectives early and waits for them late. O1 implies it in today's XLA; an XLA before O1 has
# the flag alone. That collectives are asynchronous is XLA's default.
export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"
# A job has its GPUs to itself, and JAX takes three quarters of their memory by default. The rest of
# these 8 % is for what allocates beside it: the context, cuDNN and NCCL.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-.92}
