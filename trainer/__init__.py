"""The trainer: Sync-GRPO with Dynamic Group Scaling against the reward service."""
