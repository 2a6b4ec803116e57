"""The policy's side: prompts, parsing, curation, simulation, distillation, multi-turn rollout."""
