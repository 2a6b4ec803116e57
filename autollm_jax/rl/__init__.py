"""GRPO: loss and advantages, sampler, loop."""
