"""Interactive LLM alignment in JAX: i×MCTS over simulated dialogues, and DPO on what it finds."""
